"""Result formats: a record as other systems write it. Pure functions of the record, and nothing else.

===========  ==========================================================  ==========  =============  ==============
format       as written by                                               of          every class?   a failed image
===========  ==========================================================  ==========  =============  ==============
native       classifleet (Record v1)                                     all models  no             stands in it
label_map    React Native ExecuTorch, ``useClassification().forward()``  one model   yes            ImageError
roboflow     Roboflow Inference and its hosted API                       one model   no             ImageError
yandex       Yandex Cloud Vision, ``batchAnalyze``                       all models  yes            stands in it
mlkit        Google ML Kit, a list of ``ImageLabel``                     one model   no             ImageError
===========  ==========================================================  ==========  =============  ==============

A format with no place for an error raises `ImageError`, as its original rejects the call instead of answering.
A confidence is copied as the record has it: in 0..1, or raw for a model without an activation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast

from classifleet.config import ErrorCode, ErrorInfo, FormatError, ImageError, InvalidRequest
from classifleet.config.record import ModelAnswer, Prediction, Record

ROBOFLOW_PREDICTION_TYPE: Final = "ClassificationModel"
_ROBOFLOW_TIMED_STAGES: Final = ("fetch", "decode", "batch_wait", "forward")  # its clock starts after the queue

# google.rpc.Code by the HTTP status of our codes (googleapis, google/rpc/code.proto). 409 is `cancelled` alone.
_RPC_CODE: Final = MappingProxyType(
    {400: 3, 403: 7, 404: 5, 409: 1, 413: 3, 415: 3, 422: 3, 500: 13, 502: 14, 504: 4},
)


@dataclass(frozen=True, slots=True)
class Format:
    """One row of `FORMATS`.

    Attributes:
        render: From a record to plain JSON. A format of one model also takes `model=`.
        summary: What it is, in one line of help.
        one_model: It describes one model's answer, and not all of them.
        every_class: It needs records that were made with `scores="all"`.
    """

    render: Callable[..., Any]
    summary: str
    one_model: bool = True
    every_class: bool = False


def format_record(record: Record, name: str = "native", *, model: str | None = None) -> Any:
    """Write a record in the format of this name; the result is plain JSON and shares nothing with the record.

    Args:
        record: Record v1.
        name: A key of `FORMATS`.
        model: Which model's answer, for formats of one model; needed when the record has several.

    Raises:
        InvalidRequest: No such format, no such model, several models and none named, or a model named for a
            format that is of all models.
        FormatError: The record lacks classes, or the image's size, that the format needs.
        ImageError: There is no answer, and the format has no place to say so.
    """
    chosen = FORMATS.get(name)
    if chosen is None:
        raise InvalidRequest(f"{name!r} is not a result format; there are {', '.join(FORMATS)}")
    if chosen.one_model:
        return chosen.render(record, model=model)
    if model is not None:
        raise InvalidRequest(f"the format {name} is of all models and takes no model=")
    return chosen.render(record)


def native(record: Record) -> dict[str, Any]:
    """Record v1 itself, as a copy that the caller may change."""
    return dict(copy.deepcopy(record))


def label_map(record: Record, *, model: str | None = None) -> dict[str, float]:
    """`{label: probability}` for every class, in the model's order.

    Source: docs.swmansion.com/react-native-executorch, `useClassification`: "an object mapping label keys to
    their probabilities".

    Raises:
        FormatError: The record is truncated.
        ImageError: There is no answer; the original's promise is rejected.
        InvalidRequest: See `format_record`.
    """
    answer = _answer(record, model, every_class="label_map")
    return {prediction["class"]: prediction["confidence"] for prediction in _in_class_order(answer)}


def roboflow(record: Record, *, model: str | None = None) -> dict[str, Any]:
    """Roboflow's classification response: single-label or multi-label, by the model's kind.

    Both: `time` (seconds from the fetch to the answer, without the queue), `image` (`width` and `height` in
    pixels), `image_path` (the redacted reference), `prediction_type`.
    Single: `predictions` (list of `class`, `class_id`, `confidence`, best first), `top`, `confidence`.
    Multi: `predictions` (class to `confidence` and `class_id`, in class order), `predicted_classes`.

    Source: docs.roboflow.com, "Hosted API, Classification, Response Object Formats", and in roboflow/inference
    `ClassificationInferenceResponse` and `MultiLabelClassificationInferenceResponse`.

    Raises:
        FormatError: The record has no image size.
        ImageError: There is no answer; the original answers with an HTTP error (`error.code.spec.http_status`).
        InvalidRequest: See `format_record`.
    """
    answer = _answer(record, model)
    if "image" not in record:
        raise FormatError("roboflow needs the image's width and height, which this record lacks")
    timings = cast("Mapping[str, float]", record["timings_ms"])
    milliseconds = sum(timings.get(stage, 0.0) for stage in _ROBOFLOW_TIMED_STAGES)
    return {
        "time": round(milliseconds / 1000, 6),
        "image": {"width": record["image"]["width"], "height": record["image"]["height"]},
        **(_roboflow_multi(answer) if answer["kind"] == "multi" else _roboflow_single(answer)),
        "image_path": record["ref"],
        "prediction_type": ROBOFLOW_PREDICTION_TYPE,
    }


def _roboflow_single(answer: ModelAnswer) -> dict[str, Any]:
    return {
        "predictions": [dict(prediction) for prediction in answer["predictions"]],
        "top": answer["top"],
        "confidence": answer["confidence"],
    }


def _roboflow_multi(answer: ModelAnswer) -> dict[str, Any]:
    return {
        "predictions": {
            prediction["class"]: {"confidence": prediction["confidence"], "class_id": prediction["class_id"]}
            for prediction in _in_class_order(answer)
        },
        "predicted_classes": list(answer.get("predicted_classes", ())),
    }


def yandex(record: Record) -> dict[str, Any]:
    """Yandex Cloud Vision's `batchAnalyze` response for one image, one feature result per model of the record.

    `{"results": [{"results": [{"classification": {"properties": [{"name", "probability"}]}}]}]}` with every
    property in the model's order, zeros included. A model that failed has `{"error": status}` in its place; an
    image that failed has `"error": status` beside its results (or instead of them). A status is a
    `google.rpc.Status` with our code as the reason of a `google.rpc.ErrorInfo`.

    Source: yandex-cloud/cloudapi, `yandex/cloud/ai/vision/v1/{vision_service,classification}.proto`;
    yandex.cloud/en/docs/vision/concepts/classification ("all properties, even if the probability is zero").

    Raises:
        FormatError: The record is truncated.
    """
    analyzed: dict[str, Any] = {}
    if "error" in record:
        analyzed["error"] = _status(record["error"])
    if record["models"]:
        analyzed["results"] = [_feature(key, answer) for key, answer in record["models"].items()]
    return {"results": [analyzed]}


def _feature(key: str, answer: ModelAnswer) -> dict[str, Any]:
    if "error" in answer:
        return {"error": _status(answer["error"])}
    _refuse_truncated(key, answer, "yandex")
    properties = [{"name": p["class"], "probability": p["confidence"]} for p in _in_class_order(answer)]
    return {"classification": {"properties": properties}}


def _status(error: ErrorInfo) -> dict[str, Any]:
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error["code"].upper(),
        "domain": "classifleet",
        "metadata": {"retryable": str(error["retryable"]).lower()},
    }
    code = _RPC_CODE[ErrorCode(error["code"]).spec.http_status]
    return {"code": code, "message": error["message"], "details": [detail]}


def mlkit(record: Record, *, model: str | None = None) -> list[dict[str, Any]]:
    """`[{"text", "index", "confidence"}]`, best first.

    Source: developers.google.com/ml-kit, `ImageLabel`: the label's text, its index among the classifier's
    labels, its confidence.

    Raises:
        ImageError: There is no answer; the original's task fails.
        InvalidRequest: See `format_record`.
    """
    answer = _answer(record, model)
    return [
        {"text": prediction["class"], "index": prediction["class_id"], "confidence": prediction["confidence"]}
        for prediction in answer["predictions"]
    ]


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "native": Format(native, "the record itself", one_model=False),
        "label_map": Format(label_map, "React Native ExecuTorch: label to probability, every class", every_class=True),
        "roboflow": Format(roboflow, "Roboflow: classification response, single- or multi-label"),
        "yandex": Format(yandex, "Yandex Cloud Vision: every class of all models", one_model=False, every_class=True),
        "mlkit": Format(mlkit, "ML Kit: list of image labels"),
    }
)


def find_model(record: Record, name: str | None) -> str:
    """The record's key (`name@version`) for a model that may be named without its version.

    Args:
        record: Record v1.
        name: `imagenet@1` or `imagenet`; None is the only model there is.

    Raises:
        InvalidRequest: No model of that name, or several that fit.
    """
    keys = list(record["models"])
    if name in keys:
        return name
    fits = [key for key in keys if name is None or key.partition("@")[0] == name]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        raise InvalidRequest(f"no answer of {name!r}: this record has {', '.join(keys) or 'no answers'}")
    what = "the record has several models" if name is None else f"{name!r} is ambiguous"
    raise InvalidRequest(f"{what}: name one of {', '.join(fits)}")


def first_error(record: Record) -> ErrorInfo | None:
    """Why the image, or else the first model that failed, has no answer; None if all have one."""
    if "error" in record:
        return record["error"]
    return next((answer["error"] for answer in record["models"].values() if "error" in answer), None)


def _answer(record: Record, model: str | None, *, every_class: str = "") -> ModelAnswer:
    """One model's answer; `every_class` names the format that takes no truncated one."""
    if not record["models"] and "error" in record:
        raise image_error(record["error"], record["id"])
    key = find_model(record, model)
    answer = record["models"][key]
    if "error" in answer:
        raise image_error(answer["error"], f"{record['id']}, {key}")
    if every_class:
        _refuse_truncated(key, answer, every_class)
    return answer


def image_error(error: ErrorInfo, subject: str) -> ImageError:
    """The error of a record as the exception that `Result.raise_for_error` raises."""
    return ImageError(ErrorCode(error["code"]), f"{subject}: {error['message']}")


def _refuse_truncated(key: str, answer: ModelAnswer, name: str) -> None:
    if answer["truncated"]:
        raise FormatError(
            f"{name} needs every class, and the record holds {len(answer['predictions'])} of {key}: "
            'submit with scores="all" and no threshold'
        )


def _in_class_order(answer: ModelAnswer) -> list[Prediction]:
    return sorted(answer["predictions"], key=lambda prediction: prediction["class_id"])
