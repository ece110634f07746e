"""Records as bytes: a reader finds what was put in, and nothing but JSON on one line."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest

from classifleet.config import ErrorCode, ImageError, Item, ModelAnswer, Payload, Prediction, Timings
from classifleet.worker.records import failed_records, finish, make_record

TEXTS = (
    "cat",
    "Katze \u00e4\u00df",
    "\u732b \U0001f408",
    'quote " and \\ back',
    "line\nbreak\ttab\x00\x1f\x7f",
    "\u2028\u2029",
    "</script>",
)
FLOATS = (0.0, 1.0, 0.1, 1e-06, 9.9e-05, 0.0001, 0.333333, 0.999999, 1e16, 1.5e300, 5e-324, -2.5, 123456789.125)


def golden() -> str:
    return (
        '{"v":1,"id":"a","job":"j","ref":"https://h/a.jpg?redacted","status":"ok","models":{"pets@1":{"status":"ok",'
        '"digest":"d","kind":"single","predictions":[{"class":"K\u00e4tzchen","class_id":1,"confidence":0.75}],'
        '"truncated":true,"top":"K\u00e4tzchen","confidence":0.75}},"attempt":2,"worker":"w","timings_ms":{"queue":5.0,'
        '"fetch":0.1,"total":12.3},"finished_at":"2026-11-22T01:02:03.004+00:00","meta":{"k":"v"},'
        '"image":{"width":2,"height":3,"format":"PNG","bytes":4,"sha256":"s"}}'
    )


def model_answer(label: str, confidence: float) -> ModelAnswer:
    prediction: Prediction = {"class": label, "class_id": 1, "confidence": confidence}
    return ModelAnswer(
        status="ok", digest="d", kind="single", predictions=[prediction], truncated=True,
        top=label, confidence=confidence,
    )  # fmt: skip


def test_the_bytes_of_a_record() -> None:
    payload = Payload(
        job="j", chunk="c", items=[Item(id="a", ref="https://h/a.jpg?key=1", meta={"k": "v"})], models=["pets"]
    )
    record = make_record(
        payload.items[0], payload, attempt=2, worker="w", status="ok", error=None,
        image={"width": 2, "height": 3, "format": "PNG", "bytes": 4, "sha256": "s"},
        models={"pets@1": model_answer("K\u00e4tzchen", 0.75)},
        timings=Timings(queue=5.0, fetch=0.12, total=12.345),
        finished_at=datetime(2026, 11, 22, 1, 2, 3, 4567, tzinfo=UTC),
    )  # fmt: skip
    [(name, encoded)] = finish([record]).records
    assert (name, encoded.decode()) == ("a", golden())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_record_holds_comes_out_as_it_went_in(seed: int) -> None:
    dice = random.Random(seed)
    items = [
        Item(id=f"{n}{dice.choice(TEXTS)}", ref=f"s3://b/{dice.choice(TEXTS)}", meta={dice.choice(TEXTS): "x"})
        for n in range(8)
    ]
    payload = Payload(job="j", chunk="c", items=items, models=["pets"])
    records = [
        make_record(
            item, payload, attempt=1, worker="w", status="ok", error=None,
            models={"pets@1": model_answer(dice.choice(TEXTS), dice.choice((*FLOATS, round(dice.random(), 6))))},
        )
        for item in items
    ]  # fmt: skip
    for record, (name, encoded) in zip(records, finish(records).records, strict=True):
        assert json.loads(encoded) == record
        assert (name, b"\n" in encoded) == (record["id"], False)


def test_what_failed_together_has_a_record_each() -> None:
    items = [Item(id=str(n), ref=f"data:,{n}", meta={"n": str(n)} if n % 2 else None) for n in range(5)]
    payload = Payload(job="j", chunk="c", items=items, models=["pets"])
    error = ImageError(ErrorCode.CANCELLED)
    finished = finish(failed_records(payload, error, attempt=0, worker="w"))
    for item, (_, encoded) in zip(items, finished.records, strict=True):
        alone = make_record(item, payload, attempt=0, worker="w", status="error", error=error)
        assert {**json.loads(encoded), "finished_at": ""} == {**alone, "finished_at": ""}
    assert (finished.tally.failed, finished.tally.codes) == (5, {"cancelled": 5})
