from __future__ import annotations

import json

from classifleet.config import ErrorCode, ImageError, Item, Payload
from classifleet.worker.letters import dead_letters
from classifleet.worker.records import make_record


def test_a_letter_for_each_image_whose_fault_is_ours() -> None:
    items = [Item(id=code.value, ref="blob:abc", meta={"user": "7"}) for code in ErrorCode]
    payload = Payload(job="j", chunk="0", items=items, models=["imagenet"], deadline_seconds=5, sink="s3://b/p")
    records = [
        make_record(item, payload, attempt=3, worker="w", status="error", error=ImageError(code))
        for item, code in zip(items, ErrorCode, strict=True)
    ]
    letters = dead_letters(payload, records, "bulk")
    assert {letter.code for letter in letters} == {"model_failed", "poison", "internal"}
    [poison] = [letter for letter in letters if letter.code == "poison"]
    assert poison.key == f"j.0.{list(ErrorCode).index(ErrorCode.POISON)}"
    assert poison.ref == "blob:abc"
    body = json.loads(poison.body)
    assert body.pop("finished_at")
    assert body.pop("error")["code"] == "poison"
    assert body == {
        "job": "j",
        "chunk": "0",
        "item": {"id": "poison", "ref": "blob:abc", "meta": {"user": "7"}},
        "models": ["imagenet"],
        "options": {"top_k": 5, "scores": "top"},
        "deadline_seconds": 5.0,
        "sink": "s3://b/p",
        "lane": "bulk",
        "attempt": 3,
        "worker": "w",
    }


def test_what_was_answered_has_none() -> None:
    payload = Payload(job="j", chunk="0", items=[Item(id="a", ref="x")], models=["imagenet"])
    record = make_record(payload.items[0], payload, attempt=1, worker="w", status="ok", error=None)
    assert dead_letters(payload, [record], "interactive") == []
