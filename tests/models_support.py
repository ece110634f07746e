"""Helpers for tests of models and pictures: photos, encoders, descriptions."""

from __future__ import annotations

import copy
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifleet.worker.models import Preprocess

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
NASTY = ROOT.parent / "shared" / "data" / "nasty"

NEUTRAL = {"interpolation": "bilinear", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}


def skimage_photo(name: str) -> Path:
    """A photo that the wheel of scikit-image carries."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-image is not installed")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def spec(**fields: Any) -> Preprocess:
    """A `Preprocess` from JSON values, without normalisation."""
    return Preprocess.model_validate(NEUTRAL | fields, strict=False)


def description_fields(**changes: Any) -> dict[str, Any]:
    """A valid model.json of two classes; changes are by path, `preprocess__mean=[...]`."""
    fields: dict[str, Any] = {
        "schema_version": 1,
        "name": "pets",
        "version": "1",
        "format": "torchscript",
        "sha256": "0" * 64,
        "input": {"size": [8, 8]},
        "preprocess": {"resize": "stretch", "resize_size": [8, 8], **NEUTRAL},
        "output": {"activation": "softmax", "num_classes": 2},
        "labels": ["cat", "dog"],
        "license": "MIT",
        "source": "a test",
    }
    for path, value in changes.items():
        assign(fields, path.split("__"), value)
    return fields


def assign(fields: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested field; the value `...` deletes it."""
    for part in path[:-1]:
        fields = fields.setdefault(part, {})
    if value is ...:
        del fields[path[-1]]
    else:
        fields[path[-1]] = copy.deepcopy(value)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    """A smooth coloured picture without any symmetry, the same each time."""
    small = np.random.default_rng(7).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
