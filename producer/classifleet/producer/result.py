"""`Result`: what a fleet says of one image. A read-only view of its record.

    Result      one image          id ref meta ok error image timings models
      Answer    one model of it    top confidence labels predictions predicted_classes kind truncated …
        Prediction                 label class_id confidence
      Failure   why there is none  code message retryable
      Image     what was decoded   width height format bytes sha256 truncated

An image that failed is a result like any other. Reading an answer that is not there raises `ImageError`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Self, cast

from classifleet.config import ErrorCode, ErrorInfo, InvalidRequest
from classifleet.config.record import RECORD_VERSION, ModelAnswer, Record
from classifleet.producer.formats import find_model, first_error, format_record, image_error

_REPR_LABELS: Final = 3
_RECORD_FIELDS: Final = frozenset({"id", "job", "ref", "status", "models", "timings_ms"})
_ANSWER_FIELDS: Final = frozenset({"kind", "predictions", "truncated", "top", "confidence"})


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one model; `confidence` is in 0..1 (raw output if the model has no activation)."""

    label: str
    class_id: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image, or one model's answer to it, is missing."""

    code: ErrorCode
    message: str
    retryable: bool

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True, slots=True)
class Image:
    """The image as decoded: size in pixels after EXIF orientation, bytes and sha256 as fetched.

    `truncated`: the file's end was missing, and the rest of the picture was filled with grey.
    """

    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    truncated: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """One model's answer. All but `model`, `ok`, `error` and `digest` raise `ImageError` if the model failed.

    Attributes:
        model: Name and version, `imagenet@1`.
    """

    model: str
    _answer: ModelAnswer

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return "error" not in self._answer

    @property
    def error(self) -> Failure | None:
        """Why it did not."""
        return _failure(self._answer.get("error"))

    @property
    def digest(self) -> str | None:
        """The sha256 of the model that answered."""
        return self._answer.get("digest")

    @property
    def kind(self) -> Literal["single", "multi"]:
        """`single`: one class applies. `multi`: any number does."""
        return self._given["kind"]

    @property
    def top(self) -> str:
        """The most confident class, whatever the threshold."""
        return self._given["top"]

    @property
    def confidence(self) -> float:
        """The confidence of `top`."""
        return self._given["confidence"]

    @property
    def labels(self) -> Mapping[str, float]:
        """Label to confidence, best first; of the classes that were asked for (`top_k`, `scores`, `threshold`)."""
        return MappingProxyType({p["class"]: p["confidence"] for p in self._given["predictions"]})

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The same with class numbers, best first."""
        return tuple(Prediction(p["class"], p["class_id"], p["confidence"]) for p in self._given["predictions"])

    @property
    def predicted_classes(self) -> tuple[str, ...]:
        """The classes that apply: those at or above the model's threshold, or `top` alone for a `single` model."""
        answer = self._given
        return (answer["top"],) if answer["kind"] == "single" else tuple(answer.get("predicted_classes", ()))

    @property
    def truncated(self) -> bool:
        """Whether classes were left out of `predictions`."""
        return self._given["truncated"]

    def raise_for_error(self) -> None:
        """Do nothing if the model answered.

        Raises:
            ImageError: With the code, if it did not.
        """
        _ = self._given

    @property
    def _given(self) -> ModelAnswer:
        if "error" in self._answer:
            raise image_error(self._answer["error"], self.model)
        return self._answer

    def __repr__(self) -> str:
        return f"<Answer {self}>"

    def __str__(self) -> str:
        """`imagenet@1: tabby 0.913`, or the classes that apply, or why there are none."""
        if "error" in self._answer:
            return f"{self.model}: {self._answer['error']['code']}"
        labels = {**self.labels, self.top: self.confidence}
        names = self.predicted_classes
        shown = [f"{name} {labels[name]:.3f}" if name in labels else name for name in names[:_REPR_LABELS]]
        return f"{self.model}: {', '.join(shown) or 'none'}{', …' if len(names) > _REPR_LABELS else ''}"


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """One image's final answer. Made by `from_record`.

    `result["nsfw"]` is one model's `Answer`. When there is exactly one model, its `top`, `confidence`, `labels`
    and `predictions` are also the result's own.
    """

    _record: Record

    @classmethod
    def from_record(cls, record: Record | dict[str, Any] | bytes | str) -> Self:
        """Make a result of a Record v1, given as JSON or as a dict (which is copied).

        Raises:
            InvalidRequest: It is not a record, or one of a version that this classifleet does not know.
        """
        try:
            decoded = json.loads(record) if isinstance(record, bytes | str) else copy.deepcopy(record)
        except ValueError as error:
            raise InvalidRequest(f"not a record: {error}") from None
        return cls(_checked(decoded))

    @property
    def id(self) -> str:
        """The caller's id of the image."""
        return self._record["id"]

    @property
    def ref(self) -> str:
        """Where the image was, redacted: no query string, and for `data:` its sha256."""
        return self._record["ref"]

    @property
    def meta(self) -> Mapping[str, str]:
        """The caller's own map; empty if none was given."""
        return MappingProxyType(self._record.get("meta", {}))

    @property
    def ok(self) -> bool:
        """Whether every model answered."""
        return self._record["status"] == "ok"

    @property
    def error(self) -> Failure | None:
        """Why the image, or else the first model that failed, has no answer; None if `ok`."""
        return _failure(first_error(self._record))

    @property
    def image(self) -> Image | None:
        """The decoded image; None if it never was decoded."""
        return Image(**self._record["image"]) if "image" in self._record else None

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds per stage: `queue fetch decode batch_wait forward total`, those that the image went through."""
        timings = cast("dict[str, float]", self._record["timings_ms"])
        return MappingProxyType({stage: milliseconds / 1000 for stage, milliseconds in timings.items()})

    @property
    def models(self) -> Mapping[str, Answer]:
        """Every model's answer, by name and version; empty if the image failed before any model saw it."""
        return MappingProxyType({key: Answer(key, answer) for key, answer in self._record["models"].items()})

    @property
    def top(self) -> str:
        """The only model's most confident class."""
        return self._only().top

    @property
    def confidence(self) -> float:
        """The confidence of `top`."""
        return self._only().confidence

    @property
    def labels(self) -> Mapping[str, float]:
        """The only model's labels with their confidences, best first."""
        return self._only().labels

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """The only model's predictions, best first."""
        return self._only().predictions

    def __getitem__(self, model: str) -> Answer:
        """One model's answer; the version may be left out if there is one only.

        Raises:
            ImageError: The image failed, so that there are no answers.
            InvalidRequest: No such model, or the name fits several.
        """
        self._raise_if_empty()
        key = find_model(self._record, model)
        return Answer(key, self._record["models"][key])

    def __contains__(self, model: object) -> bool:
        return any(model in (key, key.partition("@")[0]) for key in self._record["models"])

    def raise_for_error(self) -> None:
        """Do nothing if every model answered.

        Raises:
            ImageError: With the code of `error`, if not.
        """
        error = first_error(self._record)
        if error is not None:
            raise image_error(error, self.id)

    def to_dict(self, format: str = "native", *, model: str | None = None) -> Any:  # noqa: A002 - reads best
        """The result in another system's words, as plain JSON (a list for `mlkit`, else a dict).

        Args:
            format: A key of `classifleet.producer.formats.FORMATS`.
            model: Which model's answer, for a format of one model; needed if there are several.

        Raises:
            InvalidRequest: No such format, no such model, or a choice of model is needed or not possible.
            FormatError: The record lacks something; for classes, submit with `scores="all"`.
            ImageError: There is no answer, and the format has no place for an error.
        """
        return format_record(self._record, format, model=model)

    def _only(self) -> Answer:
        self._raise_if_empty()
        keys = list(self._record["models"])
        if len(keys) > 1:
            choice = " or ".join(f'result["{key}"]' for key in keys)
            raise InvalidRequest(f"the result is of several models: ask {choice}")
        return Answer(keys[0], self._record["models"][keys[0]])

    def _raise_if_empty(self) -> None:
        if not self._record["models"]:
            self.raise_for_error()

    def __hash__(self) -> int:
        return hash((self._record["job"], self.id))

    def __repr__(self) -> str:
        answers = "; ".join(map(str, self.models.values()))
        return f"<Result {self.id!r} {answers or self.error}>"


def _failure(error: ErrorInfo | None) -> Failure | None:
    return Failure(ErrorCode(error["code"]), error["message"], error["retryable"]) if error else None


def _checked(record: Any) -> Record:
    """The record, if it keeps what the views rely on."""
    version = record.get("v") if isinstance(record, dict) else None
    if version != RECORD_VERSION:
        raise InvalidRequest(f"not a record of version {RECORD_VERSION}, which this classifleet reads: {version!r}")
    _need(_RECORD_FIELDS, record, "the record")
    for key, answer in record["models"].items():
        _need({"error"} if answer.get("status") == "error" else _ANSWER_FIELDS, answer, f"the answer of {key}")
    checked = cast("Record", record)
    error = first_error(checked)
    if (error is None) != (record["status"] == "ok"):
        raise InvalidRequest(f"not a record: its status is {record['status']!r} and its error is {error}")
    return checked


def _need(fields: Set[str], part: Mapping[str, Any], what: str) -> None:
    if missing := sorted(fields - part.keys()):
        raise InvalidRequest(f"not a record: {what} has no {', '.join(missing)}")
