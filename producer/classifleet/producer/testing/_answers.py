"""From what a test says the answers are to records, as a worker writes them. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from classifleet.config import (
    ErrorCode,
    ImageError,
    ImageInfo,
    ModelAnswer,
    Options,
    Prediction,
    Record,
    Timings,
    parse_reference,
    redact,
)
from classifleet.config.record import RECORD_VERSION
from classifleet.config.reference import decode_data_uri
from classifleet.producer.testing._memory import ATTEMPT
from classifleet.producer.testing._state import Submission

Labels = Mapping[str, float]
"""Confidence by label, every class of the model in its order."""
Answer = ErrorCode | Mapping[str, float | Labels | ErrorCode]
"""Labels for every model, or by model (any that is not named is not found), or why the image has no answer."""
Answers = Mapping[Any, Answer] | Callable[[Submission], Answer]
"""Answers by reference (or by the image's bytes; any other is not found), or a function that gives them.

The function may also raise an `ImageError`, which becomes the image's record.
"""

WORKER: Final = "in-memory"
LATEST: Final = "1"
_MULTI_LABEL_THRESHOLD: Final = 0.5
_DIGEST: Final = "0" * 64
_ALL_STAGES: Final = Timings(queue=0.0, fetch=0.0, decode=0.0, batch_wait=0.0, forward=0.0, total=0.0)
_NO_STAGE: Final = Timings(queue=0.0, total=0.0)


def make_record(image: Submission, answers: Answers, multi_label: Container[str]) -> Record:
    """The record of one image."""
    try:
        _check_reference(image.ref)
        by_model = _by_model(image, _find(image, answers))
    except ImageError as error:
        return failed_record(image, error)
    models = {
        _versioned(name, labels): _model_answer(name, labels, image.options, multi_label)
        for name, labels in by_model.items()
    }
    failures = [answer["error"] for answer in models.values() if "error" in answer]
    record = _base_record(image)
    record["models"] = models
    if any(failure["code"] != ErrorCode.MODEL_NOT_FOUND for failure in failures) or len(failures) < len(models):
        record["image"], record["timings_ms"] = _image_info(image), _ALL_STAGES.copy()
    if len(failures) == len(models):
        record["status"], record["error"] = "error", failures[0]
    elif failures:
        record["status"] = "partial"
    return record


def _check_reference(ref: str) -> None:
    reference = parse_reference(ref)
    if reference.scheme == "data":
        decode_data_uri(reference.location, max_bytes=len(ref))


def failed_record(image: Submission, error: ImageError) -> Record:
    """The record of an image that no model saw."""
    record = _base_record(image)
    record["status"], record["error"] = "error", error.as_info()
    return record


def _base_record(image: Submission) -> Record:
    record = Record(
        v=RECORD_VERSION,
        id=image.id,
        job=image.job,
        ref=redact(image.ref),
        status="ok",
        models={},
        attempt=ATTEMPT,
        worker=WORKER,
        timings_ms=_NO_STAGE.copy(),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    if image.meta:
        record["meta"] = dict(image.meta)
    return record


def _image_info(image: Submission) -> ImageInfo:
    """Nothing is decoded here, so the size is made up."""
    data = image.data or b""
    return ImageInfo(width=640, height=480, format="JPEG", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _find(image: Submission, answers: Answers) -> Answer:
    if callable(answers):
        return answers(image)
    for key in (image.ref, image.data):
        if key is not None and key in answers:
            return answers[key]
    raise ImageError(ErrorCode.NOT_FOUND, "the fleet in memory was given no answer for this reference")


def _by_model(image: Submission, answer: Answer) -> dict[str, Labels | ErrorCode]:
    if isinstance(answer, ErrorCode):
        raise ImageError(answer)
    by_model = {name: value for name, value in answer.items() if not isinstance(value, (int, float))}
    labels = {label: value for label, value in answer.items() if isinstance(value, (int, float))}
    if by_model and labels:
        raise ValueError(f"the answer to {image.ref!r} mixes labels ({', '.join(labels)}) with answers by model")
    if not by_model:
        return dict.fromkeys(image.models, labels)
    return {
        name: by_model.get(name, by_model.get(name.partition("@")[0], ErrorCode.MODEL_NOT_FOUND))
        for name in image.models
    }


def _versioned(model: str, labels: Labels | ErrorCode) -> str:
    """The model as a worker names it, which knows no version of a model that it does not have."""
    return model if "@" in model or labels is ErrorCode.MODEL_NOT_FOUND else f"{model}@{LATEST}"


def _model_answer(name: str, labels: Labels | ErrorCode, options: Options, multi_label: Container[str]) -> ModelAnswer:
    if isinstance(labels, ErrorCode):
        return ModelAnswer(status="error", error=ImageError(labels).as_info())
    if not labels:
        raise ValueError(f"the answer of {name} has no labels")
    ranked = _ranked(labels)
    count = len(ranked) if options.scores == "all" else options.top_k
    least = options.threshold if options.threshold is not None else float("-inf")
    shown = [prediction for prediction in ranked[:count] if prediction["confidence"] >= least]
    multi = name.partition("@")[0] in multi_label
    answer = ModelAnswer(
        status="ok",
        digest=_DIGEST,
        kind="multi" if multi else "single",
        predictions=shown,
        truncated=len(shown) < len(ranked),
        top=ranked[0]["class"],
        confidence=ranked[0]["confidence"],
    )
    if multi:
        threshold = _MULTI_LABEL_THRESHOLD if options.threshold is None else options.threshold
        answer["predicted_classes"] = [p["class"] for p in ranked if p["confidence"] >= threshold]
    return answer


def _ranked(labels: Labels) -> list[Prediction]:
    """All classes, best first; equal confidences in the order given."""
    predictions = [
        Prediction({"class": label, "class_id": i, "confidence": float(confidence)})
        for i, (label, confidence) in enumerate(labels.items())
    ]
    return sorted(predictions, key=lambda prediction: -prediction["confidence"])
