"""Record v1: what is known of one image when it is done. Plain JSON, typed for the people who write code.

A record is written once by a worker and never changed. Everything else (`Result`, the result formats, the parts
in object storage) is a view of it.
"""

from __future__ import annotations

from typing import Final, Literal, NotRequired, TypedDict

RECORD_VERSION: Final = 1


class ErrorInfo(TypedDict):
    """Why an image, or one model's answer to it, is missing."""

    code: str
    message: str
    retryable: bool


class ImageInfo(TypedDict):
    """What the worker saw of the image: size in pixels after EXIF orientation, bytes as fetched.

    `truncated` is there, and true, when the file's end was missing and the rest of the picture was filled with grey.
    """

    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    truncated: NotRequired[bool]


# "class" is the field's name on the wire, so the functional form is needed.
Prediction = TypedDict("Prediction", {"class": str, "class_id": int, "confidence": float})
Prediction.__doc__ = "One label of one model; confidence is in 0..1 (raw output if the model has no activation)."


class ModelAnswer(TypedDict):
    """One model's answer: predictions by falling confidence, `truncated` if classes were left out.

    `predicted_classes` (multi-label models alone) are the labels at or above the model's threshold.
    """

    status: Literal["ok", "error"]
    error: NotRequired[ErrorInfo]
    digest: NotRequired[str]
    kind: NotRequired[Literal["single", "multi"]]
    predictions: NotRequired[list[Prediction]]
    truncated: NotRequired[bool]
    top: NotRequired[str]
    confidence: NotRequired[float]
    predicted_classes: NotRequired[list[str]]


class Timings(TypedDict, total=False):
    """Milliseconds per stage. `total` runs from the image's place in the queue to its record."""

    queue: float
    fetch: float
    decode: float
    batch_wait: float
    forward: float
    total: float


class Record(TypedDict):
    """One image's final answer. `status` is "partial" when some but not all models answered."""

    v: int
    id: str
    job: str
    ref: str
    meta: NotRequired[dict[str, str]]
    status: Literal["ok", "partial", "error"]
    error: NotRequired[ErrorInfo]
    image: NotRequired[ImageInfo]
    models: dict[str, ModelAnswer]
    attempt: int
    worker: str
    timings_ms: Timings
    finished_at: str
