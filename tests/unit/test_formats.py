"""Result formats: every field of each, as its documentation has it."""

import copy
import json
import re
from pathlib import Path

import pytest

from classifleet.config import CODES, FormatError, ImageError, InvalidRequest
from classifleet.producer import formats
from classifleet.producer.formats import FORMATS, format_record
from classifleet.producer.result import Result
from tests.unit.test_result import failed_model, failed_record, multi, prediction, record, single

DOCS = Path(__file__).parents[2] / "docs" / "result-formats.md"
ONE_MODEL = ("label_map", "roboflow", "mlkit")
ALL_MODELS = ("native", "yandex")
EVERY_CLASS = ("label_map", "yandex")

PROPERTIES = [
    {"name": "ant", "probability": 0.05},
    {"name": "cat", "probability": 0.75},
    {"name": "dog", "probability": 0.0},
    {"name": "lynx", "probability": 0.2},
]
STATUS_NOT_FOUND = {
    "code": 5,
    "message": "Nothing there.",
    "details": [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "NOT_FOUND",
            "domain": "classifleet",
            "metadata": {"retryable": "false"},
        }
    ],
}


def truncated():
    return single(predictions=[prediction("cat", 1, 0.75)], truncated=True)


def test_the_registry_says_what_each_format_is():
    assert tuple(FORMATS) == ("native", "label_map", "roboflow", "yandex", "mlkit")
    assert tuple(name for name, f in FORMATS.items() if f.one_model) == ONE_MODEL
    assert tuple(name for name, f in FORMATS.items() if f.every_class) == EVERY_CLASS
    assert all(f.summary for f in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_pure_and_share_nothing(name):
    given = record(scene_1=multi())
    before = copy.deepcopy(given)
    first = format_record(given, name)
    assert json.loads(json.dumps(first)) == first
    first.clear()
    assert given == before
    assert format_record(given, name) != first
    assert Result.from_record(given).to_dict(name) == format_record(given, name)


def test_native_is_a_deep_copy():
    given = record()
    formatted = formats.native(given)
    assert formatted == given
    formatted["models"]["pets@1"]["predictions"][0]["class"] = "changed"
    assert given == record()


@pytest.mark.parametrize(
    "given",
    [failed_record(), record(pets_1=single(), scene_1=failed_model()), record(pets_1=truncated())],
    ids=["failed", "partial", "truncated"],
)
def test_native_takes_every_record(given):
    assert format_record(given) == given


def test_label_map_single():
    labels = formats.label_map(record())
    assert list(labels.items()) == [("ant", 0.05), ("cat", 0.75), ("dog", 0.0), ("lynx", 0.2)]


def test_label_map_multi():
    labels = formats.label_map(record(scene_1=multi()))
    assert list(labels.items()) == [("beach", 0.6), ("sea", 0.9), ("city", 0.0)]


def test_roboflow_single():
    assert formats.roboflow(record()) == {
        "time": 0.047,  # fetch + decode + batch_wait + forward, in seconds
        "image": {"width": 640, "height": 480},
        "predictions": [
            {"class": "cat", "class_id": 1, "confidence": 0.75},
            {"class": "lynx", "class_id": 3, "confidence": 0.2},
            {"class": "ant", "class_id": 0, "confidence": 0.05},
            {"class": "dog", "class_id": 2, "confidence": 0.0},
        ],
        "top": "cat",
        "confidence": 0.75,
        "image_path": "https://example.org/cat.jpg?redacted",
        "prediction_type": "ClassificationModel",
    }


def test_roboflow_multi():
    formatted = formats.roboflow(record(scene_1=multi()))
    assert formatted == {
        "time": 0.047,
        "image": {"width": 640, "height": 480},
        "predictions": {
            "beach": {"confidence": 0.6, "class_id": 0},
            "sea": {"confidence": 0.9, "class_id": 1},
            "city": {"confidence": 0.0, "class_id": 2},
        },
        "predicted_classes": ["sea", "beach"],
        "image_path": "https://example.org/cat.jpg?redacted",
        "prediction_type": "ClassificationModel",
    }
    assert list(formatted["predictions"]) == ["beach", "sea", "city"]


def test_roboflow_multi_when_nothing_applies():
    assert formats.roboflow(record(scene_1=multi(predicted_classes=[])))["predicted_classes"] == []


def test_roboflow_takes_a_truncated_record():
    formatted = formats.roboflow(record(pets_1=truncated()))
    assert formatted["predictions"] == [{"class": "cat", "class_id": 1, "confidence": 0.75}]


def test_roboflow_times_the_stages_there_are():
    assert formats.roboflow({**record(), "timings_ms": {"queue": 5.0, "forward": 12.0}})["time"] == 0.012
    assert formats.roboflow({**record(), "timings_ms": {}})["time"] == 0


def test_roboflow_needs_the_size_of_the_image():
    given = record()
    del given["image"]
    with pytest.raises(FormatError, match="width and height"):
        formats.roboflow(given)


def test_yandex_single():
    assert formats.yandex(record()) == {"results": [{"results": [{"classification": {"properties": PROPERTIES}}]}]}


def test_yandex_has_a_feature_result_per_model_in_the_records_order():
    scene = [
        {"name": "beach", "probability": 0.6},
        {"name": "sea", "probability": 0.9},
        {"name": "city", "probability": 0.0},
    ]
    assert formats.yandex(record(scene_1=multi(), pets_1=single())) == {
        "results": [
            {"results": [{"classification": {"properties": scene}}, {"classification": {"properties": PROPERTIES}}]}
        ]
    }


def test_yandex_has_the_error_of_a_model_in_its_place():
    status = {
        "code": 13,
        "message": "It gave NaN.",
        "details": [{**STATUS_NOT_FOUND["details"][0], "reason": "MODEL_FAILED"}],
    }
    assert formats.yandex(record(scene_1=failed_model(), pets_1=single())) == {
        "results": [{"results": [{"error": status}, {"classification": {"properties": PROPERTIES}}]}]
    }


def test_yandex_has_the_error_of_an_image():
    assert formats.yandex(failed_record()) == {"results": [{"error": STATUS_NOT_FOUND}]}


def test_yandex_has_the_errors_of_the_image_and_its_models():
    (analyzed,) = formats.yandex({**record(pets_1=failed_model()), "error": failed_record()["error"]})["results"]
    assert analyzed["error"] == STATUS_NOT_FOUND
    assert [list(feature) for feature in analyzed["results"]] == [["error"]]


@pytest.mark.parametrize(
    ("code", "rpc_code"),
    {
        "invalid_reference": 3,  # INVALID_ARGUMENT
        "forbidden_address": 7,  # PERMISSION_DENIED
        "forbidden_source": 7,
        "not_found": 5,  # NOT_FOUND
        "access_denied": 7,
        "too_large": 3,
        "fetch_timeout": 4,  # DEADLINE_EXCEEDED
        "fetch_failed": 14,  # UNAVAILABLE
        "unsupported_format": 3,
        "too_many_pixels": 3,
        "undecodable": 3,
        "model_not_found": 5,
        "model_failed": 13,  # INTERNAL
        "deadline_exceeded": 4,
        "cancelled": 1,  # CANCELLED
        "poison": 3,
        "internal": 13,
    }.items(),
)
def test_yandex_status_of_every_code(code, rpc_code):
    given = failed_record(error={"code": code, "message": "why", "retryable": True})
    status = formats.yandex(given)["results"][0]["error"]
    assert (status["code"], status["message"]) == (rpc_code, "why")
    assert status["details"][0]["reason"] == code.upper()
    assert status["details"][0]["metadata"] == {"retryable": "true"}
    assert {spec.http_status for spec in CODES.values()} == set(formats._RPC_CODE)


def test_mlkit_single():
    assert formats.mlkit(record()) == [
        {"text": "cat", "index": 1, "confidence": 0.75},
        {"text": "lynx", "index": 3, "confidence": 0.2},
        {"text": "ant", "index": 0, "confidence": 0.05},
        {"text": "dog", "index": 2, "confidence": 0.0},
    ]


def test_mlkit_multi_and_truncated():
    assert [label["text"] for label in formats.mlkit(record(scene_1=multi()))] == ["sea", "beach", "city"]
    assert formats.mlkit(record(pets_1=truncated())) == [{"text": "cat", "index": 1, "confidence": 0.75}]


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_a_truncated_record_is_refused_where_every_class_is_needed(name):
    with pytest.raises(FormatError, match=rf'{name} needs every class.* holds 1 of pets@1.*scores="all"'):
        format_record(record(pets_1=truncated()), name)


def test_yandex_refuses_if_any_model_is_truncated_and_label_map_only_its_own():
    given = record(scene_1=multi(), pets_1=truncated())
    with pytest.raises(FormatError, match="pets@1"):
        format_record(given, "yandex")
    assert len(format_record(given, "label_map", model="scene")) == 3


@pytest.mark.parametrize("name", ONE_MODEL)
def test_formats_of_one_model_choose_it_by_name(name):
    given = record(pets_1=single(), scene_1=multi(), scene_2=multi(top="beach"))
    alone = format_record(record(pets_1=single()), name)
    assert format_record(given, name, model="pets") == alone
    assert format_record(given, name, model="pets@1") == alone
    assert format_record(record(), name, model="pets") == alone
    with pytest.raises(InvalidRequest, match="several models: name one of pets@1, scene@1, scene@2"):
        format_record(given, name)
    with pytest.raises(InvalidRequest, match="'scene' is ambiguous: name one of scene@1, scene@2"):
        format_record(given, name, model="scene")
    with pytest.raises(InvalidRequest, match="no answer of 'nsfw'"):
        format_record(given, name, model="nsfw")


@pytest.mark.parametrize("name", ONE_MODEL)
def test_formats_of_one_model_raise_the_error_there_is(name):
    with pytest.raises(ImageError, match=r"cat\.jpg: Nothing there\.") as caught:
        format_record(failed_record(), name)
    assert caught.value.code == "not_found"
    given = record(pets_1=single(), scene_1=failed_model())
    with pytest.raises(ImageError, match=r"cat\.jpg, scene@1: It gave NaN\.") as caught:
        format_record(given, name, model="scene")
    assert caught.value.code == "model_failed"
    assert format_record(given, name, model="pets") == format_record(record(), name)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_formats_of_all_models_take_no_model(name):
    with pytest.raises(InvalidRequest, match=f"{name} is of all models"):
        format_record(record(), name, model="pets")


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(InvalidRequest, match="'coco' is not a result format; there are native, label_map"):
        Result.from_record(record()).to_dict("coco")


def test_the_examples_in_the_documentation_are_true():
    text = DOCS.read_text(encoding="utf-8")
    native, label_map, single_label, multi_label, yandex, status, mlkit = map(
        json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    )
    result = Result.from_record(native)
    assert result.to_dict() == native
    assert result.to_dict("label_map", model="pets") == label_map
    assert result.to_dict("roboflow", model="pets") == single_label
    assert result.to_dict("roboflow", model="scene") == multi_label
    assert result.to_dict("yandex") == yandex
    assert result.to_dict("mlkit", model="pets") == mlkit
    error = {"code": "not_found", "message": CODES["not_found"].meaning, "retryable": False}
    assert formats.yandex(failed_record(error=error)) == {"results": [{"error": status}]}


def test_the_documentation_has_a_row_for_every_format():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [
        (name, "one model" if f.one_model else "all models", "yes" if f.every_class else "no")
        for name, f in FORMATS.items()
    ]
    assert rows == expected
