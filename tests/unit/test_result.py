"""Result: a faithful, read-only view of a record."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifleet.config import CODES, ErrorCode, ImageError, InvalidRequest
from classifleet.producer.result import Answer, Failure, Image, Prediction, Result

NOT_FOUND = {"code": "not_found", "message": "Nothing there.", "retryable": False}
MODEL_FAILED = {"code": "model_failed", "message": "It gave NaN.", "retryable": False}


def prediction(label: str, class_id: int, confidence: float) -> dict[str, Any]:
    return {"class": label, "class_id": class_id, "confidence": confidence}


def single(**fields: Any) -> dict[str, Any]:
    """The answer of a model of four classes of which one applies; complete, best first."""
    predictions = [
        prediction("cat", 1, 0.75),
        prediction("lynx", 3, 0.2),
        prediction("ant", 0, 0.05),
        prediction("dog", 2, 0.0),
    ]
    answer = {"status": "ok", "digest": "sha256:aa", "kind": "single", "predictions": predictions}
    return {**answer, "truncated": False, "top": "cat", "confidence": 0.75, **fields}


def multi(**fields: Any) -> dict[str, Any]:
    predictions = [prediction("sea", 1, 0.9), prediction("beach", 0, 0.6), prediction("city", 2, 0.0)]
    answer = {"status": "ok", "digest": "sha256:bb", "kind": "multi", "predictions": predictions, "truncated": False}
    return {**answer, "top": "sea", "confidence": 0.9, "predicted_classes": ["sea", "beach"], **fields}


def failed_model() -> dict[str, Any]:
    return {"status": "error", "error": MODEL_FAILED, "digest": "sha256:cc"}


def record(**models: dict[str, Any]) -> dict[str, Any]:
    """A record with these answers; `pets_1` is the model `pets@1`."""
    answers = {name.replace("_", "@"): answer for name, answer in (models or {"pets_1": single()}).items()}
    failed = [name for name, answer in answers.items() if "error" in answer]
    return {
        "v": 1,
        "id": "cat.jpg",
        "job": "job-1",
        "ref": "https://example.org/cat.jpg?redacted",
        "meta": {"album": "7"},
        "status": "ok" if not failed else "error" if len(failed) == len(answers) else "partial",
        "image": {"width": 640, "height": 480, "format": "JPEG", "bytes": 83211, "sha256": "ab12"},
        "models": answers,
        "attempt": 2,
        "worker": "gpu-0",
        "timings_ms": {"queue": 2.0, "fetch": 30.5, "decode": 4.0, "batch_wait": 0.5, "forward": 12.0, "total": 49.0},
        "finished_at": "2026-02-03T04:05:06.789Z",
    }


def failed_record(**fields: Any) -> dict[str, Any]:
    """A record of an image that no model saw."""
    lost = {**record(), "status": "error", "error": NOT_FOUND, "models": {}, "timings_ms": {"queue": 2.0}}
    del lost["image"], lost["meta"]
    return {**lost, **fields}


RECORDS = {
    "single": record(),
    "multi": record(scene_1=multi()),
    "both": record(pets_1=single(), scene_1=multi()),
    "truncated": record(pets_1=single(predictions=[prediction("cat", 1, 0.75)], truncated=True)),
    "partial": record(pets_1=single(), scene_1=failed_model()),
    "all models failed": record(pets_1=failed_model()),
    "failed": failed_record(),
    "failed with models": {**record(pets_1=failed_model()), "error": MODEL_FAILED},
}
every_record = pytest.mark.parametrize("given_record", RECORDS.values(), ids=RECORDS.keys())


@every_record
@pytest.mark.parametrize("encode", [dict, json.dumps, lambda r: json.dumps(r).encode()], ids=["dict", "str", "bytes"])
def test_gives_back_the_native_record(given_record, encode):
    assert Result.from_record(encode(given_record)).to_dict() == given_record


@every_record
def test_pickles_and_compares_and_hashes(given_record):
    result = Result.from_record(given_record)
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert {copy, result} == {result}
    assert copy.to_dict() == given_record


@given(st.text(min_size=1), st.dictionaries(st.text(), st.text()), st.floats(0, 1), st.text())
def test_round_trip_of_any_text(id_, meta, confidence, label):
    answer = single(predictions=[prediction(label, 0, confidence)], top=label, confidence=confidence)
    given_record = {**record(a_1=answer), "id": id_, "meta": meta}
    result = Result.from_record(json.dumps(given_record))
    assert result.to_dict() == given_record
    assert (result.id, result.meta, result.top, result.confidence) == (id_, meta, label, confidence)
    assert repr(result)


def test_every_attribute_of_a_result():
    result = Result.from_record(record())
    assert result.id == "cat.jpg"
    assert result.ref == "https://example.org/cat.jpg?redacted"
    assert result.meta == {"album": "7"}
    assert result.ok is True
    assert result.error is None
    assert result.image == Image(width=640, height=480, format="JPEG", bytes=83211, sha256="ab12")
    assert result.timings == {
        "queue": 0.002,
        "fetch": 0.0305,
        "decode": 0.004,
        "batch_wait": 0.0005,
        "forward": 0.012,
        "total": 0.049,
    }
    assert list(result.models) == ["pets@1"]
    assert result.top == "cat"
    assert result.confidence == 0.75
    assert list(result.labels.items()) == [("cat", 0.75), ("lynx", 0.2), ("ant", 0.05), ("dog", 0.0)]
    assert result.predictions[1] == Prediction(label="lynx", class_id=3, confidence=0.2)
    assert len(result.predictions) == 4
    result.raise_for_error()


def test_every_attribute_of_an_answer():
    answer = Result.from_record(record(scene_1=multi()))["scene"]
    assert answer.model == "scene@1"
    assert answer.ok is True
    assert answer.error is None
    assert answer.digest == "sha256:bb"
    assert answer.kind == "multi"
    assert answer.top == "sea"
    assert answer.confidence == 0.9
    assert answer.labels == {"sea": 0.9, "beach": 0.6, "city": 0.0}
    assert [p.class_id for p in answer.predictions] == [1, 0, 2]
    assert answer.predicted_classes == ("sea", "beach")
    assert answer.truncated is False
    answer.raise_for_error()


def test_the_class_that_applies_of_a_single_label_model_is_its_top():
    assert Result.from_record(record())["pets"].predicted_classes == ("cat",)


def test_top_stands_though_a_threshold_left_no_predictions():
    result = Result.from_record(record(pets_1=single(predictions=[], truncated=True)))
    assert (result.top, result.confidence, result.predictions, dict(result.labels)) == ("cat", 0.75, (), {})


def test_models_by_name_with_and_without_version():
    result = Result.from_record(record(pets_1=single(), pets_2=single(top="dog"), scene_1=multi()))
    assert result["scene"].model == "scene@1"
    assert result["pets@2"].top == "dog"
    assert result.models["pets@1"] == result["pets@1"]
    assert all(name in result for name in ("scene", "scene@1", "pets", "pets@2"))
    assert "pets@3" not in result
    assert "nsfw" not in result
    with pytest.raises(InvalidRequest, match=r"'pets' is ambiguous: name one of pets@1, pets@2"):
        result["pets"]
    with pytest.raises(InvalidRequest, match=r"no answer of 'nsfw': this record has pets@1, pets@2, scene@1"):
        result["nsfw"]


@pytest.mark.parametrize("name", ["top", "confidence", "labels", "predictions"])
def test_shortcuts_need_exactly_one_model(name):
    result = Result.from_record(record(pets_1=single(), scene_1=multi()))
    with pytest.raises(InvalidRequest, match=r'ask result\["pets@1"\] or result\["scene@1"\]'):
        getattr(result, name)


@pytest.mark.parametrize("name", ["top", "confidence", "labels", "predictions"])
def test_shortcuts_of_a_failed_image_raise_its_error(name):
    result = Result.from_record(failed_record())
    with pytest.raises(ImageError, match=r"cat.jpg: Nothing there\.") as caught:
        getattr(result, name)
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_failed_image():
    result = Result.from_record(failed_record())
    assert result.ok is False
    assert result.error == Failure(ErrorCode.NOT_FOUND, "Nothing there.", retryable=False)
    assert str(result.error) == "not_found: Nothing there."
    assert result.image is None
    assert result.meta == {}
    assert result.models == {}
    with pytest.raises(ImageError, match="Nothing there") as caught:
        result.raise_for_error()
    assert caught.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(ImageError, match="Nothing there"):
        result["pets"]
    assert "pets" not in result


def test_one_failed_model_of_two():
    result = Result.from_record(record(pets_1=single(), scene_1=failed_model()))
    assert result.ok is False
    assert result.error == Failure(ErrorCode.MODEL_FAILED, "It gave NaN.", retryable=False)
    assert result["pets"].top == "cat"
    answer = result["scene"]
    assert (answer.ok, answer.error, answer.digest) == (False, result.error, "sha256:cc")
    for name in ("kind", "top", "confidence", "labels", "predictions", "predicted_classes", "truncated"):
        with pytest.raises(ImageError, match=r"scene@1: It gave NaN\."):
            getattr(answer, name)
    with pytest.raises(ImageError) as caught:
        result.raise_for_error()
    assert caught.value.code is ErrorCode.MODEL_FAILED


@pytest.mark.parametrize("code", list(CODES))
def test_every_code_raises_as_itself(code):
    error = {"code": code.value, "message": "why", "retryable": code.spec.retryable}
    with pytest.raises(ImageError) as caught:
        Result.from_record(failed_record(error=error)).raise_for_error()
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("given_record", "expected"),
    [
        (record(), "<Result 'cat.jpg' pets@1: cat 0.750>"),
        (record(scene_1=multi()), "<Result 'cat.jpg' scene@1: sea 0.900, beach 0.600>"),
        (record(scene_1=multi(predicted_classes=[])), "<Result 'cat.jpg' scene@1: none>"),
        (
            record(scene_1=multi(predicted_classes=["sea", "beach", "sun", "sky"])),
            "<Result 'cat.jpg' scene@1: sea 0.900, beach 0.600, sun, …>",
        ),
        (
            record(pets_1=single(), scene_1=failed_model()),
            "<Result 'cat.jpg' pets@1: cat 0.750; scene@1: model_failed>",
        ),
        (failed_record(), "<Result 'cat.jpg' not_found: Nothing there.>"),
    ],
)
def test_repr(given_record, expected):
    assert repr(Result.from_record(given_record)) == expected


def test_repr_of_an_answer():
    assert repr(Result.from_record(record())["pets"]) == "<Answer pets@1: cat 0.750>"


def test_nothing_can_be_changed():
    given_record = record()
    result = Result.from_record(given_record)
    given_record["models"].clear()
    result.to_dict()["models"]["pets@1"]["predictions"].clear()
    assert result.to_dict() == record()
    with pytest.raises(FrozenInstanceError):
        result._record = {}
    with pytest.raises((TypeError, AttributeError)):  # which one differs between Pythons
        result.extra = 1
    with pytest.raises(TypeError):
        result.meta["album"] = "8"
    with pytest.raises(TypeError):
        result.models["pets@1"] = None
    with pytest.raises(TypeError):
        result.labels["cat"] = 1.0
    assert not hasattr(result, "__dict__")
    assert isinstance(result["pets"], Answer)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "not a record"),
        (b"[]", "not a record of version 1"),
        ({}, "not a record of version 1"),
        ({**record(), "v": 2}, "not a record of version 1, which this classifleet reads: 2"),
        ({"v": 1, "id": "x"}, "the record has no job, models, ref, status, timings_ms"),
        (record(pets_1={"status": "ok", "kind": "single"}), "the answer of pets@1 has no confidence, predictions"),
        (record(pets_1={"status": "error"}), "the answer of pets@1 has no error"),
        ({**record(), "status": "error"}, "its status is 'error' and its error is None"),
        ({**record(), "error": NOT_FOUND}, "its status is 'ok' and its error is"),
    ],
)
def test_what_is_not_a_record_is_refused(bad, why):
    with pytest.raises(InvalidRequest, match=why):
        Result.from_record(bad)


def test_importing_loads_nothing_heavy():
    heavy = "{'rich', 'PIL', 'numpy', 'torch', 'boto3'}"
    code = (
        f"import sys, classifleet.producer.result, classifleet.producer.formats; print({heavy} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
