import json
import pickle

import pytest

from classifleet.config.errors import ModelError
from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields, spec

GOLDEN = {"image": "golden/x.png", "sha256": "0" * 64, "top": "cat", "confidence": 1}


def parse(**changes: object) -> ModelDescription:
    return ModelDescription.from_fields(description_fields(**changes), where="pets/1/model.json")


def test_defaults_and_round_trip():
    found = parse()
    assert found.key == "pets@1"
    assert (found.input.layout, found.input.color, found.input.dtype) == ("NCHW", "RGB", "float32")
    assert (found.output.kind, found.output.threshold) == ("single", 0.5)
    assert found.batch.buckets == (1, 2, 4, 8, 16, 32)
    again = ModelDescription.from_json(found.to_json())
    assert again == found
    assert again.to_json() == found.to_json()
    assert pickle.loads(pickle.dumps(found)) == found


def test_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        parse().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("largest", "buckets"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12)), (3, (1, 2, 3))]
)
def test_buckets_default_to_powers_of_two(largest, buckets):
    assert parse(batch={"max": largest}).batch.buckets == buckets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # unknown, missing, misspelt
        ({"colour": "RGB"}, "colour: unknown field; remove it or correct its spelling"),
        ({"preprocess__maen": [0, 0, 0]}, "preprocess.maen: unknown field"),
        ({"preprocess__mean": ...}, "preprocess.mean: is missing; add it"),
        ({"labels": ...}, "labels: is missing"),
        ({"license": ""}, "license: String should have at least 1 character"),
        # wrong values
        ({"input__layout": "NHCW"}, "input.layout: should be 'NCHW' or 'NHWC', not \"NHCW\""),
        ({"input__size": 8}, "input.size: "),
        ({"input__size": [8]}, "input.size.1: is missing"),
        ({"preprocess__resize": "crop"}, "preprocess.resize: should be 'shortest_edge_crop', 'stretch'"),
        ({"preprocess__std": [1, 0, 1]}, "preprocess.std.1: should be greater than 0, not 0"),
        ({"preprocess__scale": "1/255"}, "preprocess.scale: should be a valid number, not \"1/255\""),
        ({"preprocess__pad_color": [0, 0, 256]}, "preprocess.pad_color.2: should be less than or equal to 255"),
        ({"preprocess__resize_size": "8"}, "preprocess.resize_size: "),
        ({"output__num_classes": True}, "output.num_classes: should be a valid integer, not true"),
        ({"schema_version": 2}, "schema_version: is 2, this classifleet reads up to 1; upgrade the worker"),
        ({"schema_version": "1"}, "schema_version: should be 1"),
        ({"format": "onnx"}, "format: should be 'torchscript'"),
        ({"name": "Pets"}, "name: String should match pattern"),
        ({"name": "../pets"}, "name: "),
        ({"name": ".pets"}, "name: "),
        ({"version": "01"}, "version: "),
        ({"version": 1}, "version: should be a valid string, not 1"),
        ({"sha256": "abc"}, "sha256: "),
        # parts that contradict each other
        ({"labels": ["cat", "cat"]}, "labels must be unique; rename the second of each: cat"),
        ({"labels": ["cat"]}, "labels has 1 entries, output.num_classes is 2"),
        ({"output__num_classes": 3}, "labels has 2 entries, output.num_classes is 3"),
        ({"output__kind": "multi"}, "output: activation softmax makes labels compete; kind multi needs sigmoid"),
        ({"input__size": [8, 9]}, "preprocess yields [8, 8], input.size is [8, 9]"),
        ({"input__dtype": "uint8", "preprocess__scale": 0.5}, "input.dtype uint8 takes raw pixels"),
        ({"preprocess__resize": "shortest_edge_crop"}, "resize_size must be one number"),
        ({"preprocess__resize": "shortest_edge_crop", "preprocess__resize_size": 9}, "crop_size is missing"),
        ({"preprocess__resize": "letterbox", "preprocess__crop_size": [8, 8]}, "crop_size has no meaning"),
        ({"preprocess__interpolation": "bicubic", "preprocess__antialias": False}, "bicubic without antialias"),
        ({"preprocess__crop_size": [9, 8]}, "crop_size [9, 8] does not fit into resize_size"),
        ({"batch": {"max": 8, "buckets": [1, 4]}}, "buckets [1, 4] must rise, and end with max (8)"),
        ({"batch": {"max": 8, "buckets": [4, 1, 8]}}, "must rise"),
        ({"batch": {"max": 0}}, "batch.max: should be greater than or equal to 1"),
        ({"golden": [GOLDEN | {"image": "golden/../../x"}]}, "golden.0.image: String should match pattern"),
        ({"golden": [GOLDEN | {"image": "model.pt"}]}, "golden.0.image: String should match pattern"),
        ({"golden": [GOLDEN | {"top": "cow"}]}, "golden.top 'cow' is not one of the labels"),
    ],
)  # fmt: skip
def test_an_error_names_file_field_and_remedy_in_one_line(changes, message):
    with pytest.raises(ModelError) as caught:
        parse(**changes)
    text = str(caught.value)
    assert text.startswith("pets/1/model.json: ")
    assert message in text
    assert "\n" not in text
    assert "pydantic" not in text
    assert caught.value.__cause__ is None


def test_many_errors_are_counted():
    with pytest.raises(ModelError, match=r"; and 4 more$"):
        ModelDescription.from_fields({}, where="model.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', b"\xff\xfe"])
def test_not_even_an_object(text):
    with pytest.raises(ModelError, match=r"^model\.json: "):
        ModelDescription.from_json(text)


def test_not_a_number_is_refused():
    text = json.dumps(description_fields()).replace('"scale": 1.0', '"scale": NaN')
    with pytest.raises(ModelError, match=r"preprocess\.scale"):
        ModelDescription.from_json(text)


def test_unreadable_file(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        ModelDescription.read(tmp_path / "model.json")


def test_digest_is_equal_where_pixels_are_equal():
    base = spec(resize="stretch", resize_size=8)
    assert base.digest == spec(resize="stretch", resize_size=[8, 8]).digest
    assert base.digest == spec(resize="stretch", resize_size=8, mean=[1, 2, 3], std=[2, 2, 2], scale=0.5).digest
    others = [
        spec(resize="letterbox", resize_size=8),
        spec(resize="stretch", resize_size=9),
        spec(resize="stretch", resize_size=8, crop_size=[7, 8]),
        spec(resize="stretch", resize_size=8, interpolation="bicubic"),
        spec(resize="stretch", resize_size=8, antialias=False),
        spec(resize="stretch", resize_size=8, background=[0, 0, 0]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_digest_does_not_change_between_releases():
    assert spec(resize="stretch", resize_size=8).digest == "3901cb812017e6b0"
