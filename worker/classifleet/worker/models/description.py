"""`model.json`: everything a worker must know to feed a model and to read its answer.

The file stands beside `model.pt`. Unknown fields are refused, because a misspelt `"mean"` would not fail: it would
quietly answer wrong. From picture to scores::

    RGB picture ──resize, crop, pad──► uint8 [h, w, 3] ──► (pixel * scale - mean) / std ──► module ──► activation
                └─ `Preprocess.digest` ─┘                  └───────── on the device, in the batch ─────────┘
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from classifleet.config.errors import ModelError

SCHEMA_VERSION: Final = 1
ERRORS_SHOWN: Final = 5
DIGEST_LENGTH: Final = 16

Pixels = Annotated[int, Field(ge=1, le=16_384)]
Size = tuple[Pixels, Pixels]
"""Height and width, in pixels."""
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
"""Red, green, blue."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


class _Part(BaseModel):
    """A part of the description: immutable, strictly typed, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Input(_Part):
    """What the module takes: `size` is [height, width]; `uint8` means that it normalises by itself."""

    size: Size
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR"] = "RGB"
    dtype: Literal["float32", "float16", "uint8"] = "float32"


class Preprocess(_Part):
    """From a picture of any size to the module's input.

    `shortest_edge_crop` scales the shorter edge to `resize_size` (a number) and cuts `crop_size` from the centre, as
    torchvision and timm do. `stretch` scales to `resize_size` whatever the proportions, and may cut as well.
    `letterbox` keeps the proportions inside `resize_size` and fills the rest with `pad_color`.

    Normalisation is `x = (pixel * scale - mean) / std` with pixel in 0..255; `mean` and `std` have the order of
    `input.color`. A transparent picture is laid on `background`; `background` and `pad_color` are red, green, blue.
    """

    resize: Literal["shortest_edge_crop", "stretch", "letterbox"]
    resize_size: Pixels | Size
    crop_size: Size | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"]
    antialias: bool = True
    scale: Positive
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    pad_color: Color = (0, 0, 0)
    background: Color = (255, 255, 255)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.resize == "shortest_edge_crop" and not isinstance(self.resize_size, int):
            raise ValueError("resize_size must be one number (the shorter edge) with shortest_edge_crop")
        if self.resize == "shortest_edge_crop" and self.crop_size is None:
            raise ValueError("crop_size is missing; shortest_edge_crop needs it, as [height, width]")
        if self.resize == "letterbox" and self.crop_size is not None:
            raise ValueError("crop_size has no meaning with letterbox; remove it")
        if self.interpolation == "bicubic" and not self.antialias:
            raise ValueError("bicubic without antialias is not torch's bicubic here; set antialias, or bilinear")
        if any(crop > full for crop, full in zip(self.output_size, self.resize_hw, strict=True)):
            raise ValueError(f"crop_size {list(self.output_size)} does not fit into resize_size {self.resize_size}")
        return self

    @property
    def resize_hw(self) -> Size:
        """`resize_size` as (height, width)."""
        return (self.resize_size, self.resize_size) if isinstance(self.resize_size, int) else self.resize_size

    @property
    def output_size(self) -> Size:
        """Height and width of the array that preprocessing yields."""
        return self.crop_size or self.resize_hw

    @cached_property
    def digest(self) -> str:
        """Equal for models that can share one array of pixels; normalisation is not part of it (16 hex digits)."""
        fields = self.model_dump(exclude={"scale", "mean", "std", "resize_size", "crop_size"})
        fields |= {"resize_hw": self.resize_hw, "output_size": self.output_size}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]


class Output(_Part):
    """How to read the module's raw output [N, num_classes].

    `activation` is what the worker applies to it, in float32; `none` if the module applies its own. `kind` is
    `single` (one label is right) or `multi` (each stands alone; those at or above `threshold` are predicted).
    """

    activation: Literal["softmax", "sigmoid", "none"]
    kind: Literal["single", "multi"] = "single"
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)]
    threshold: Finite = 0.5

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "multi" and self.activation == "softmax":
            raise ValueError("activation softmax makes labels compete; kind multi needs sigmoid (or none)")
        return self


def _powers_of_two(fields: dict[str, Any]) -> tuple[int, ...]:
    largest: int = fields["max"]
    return (*(2**n for n in range(math.ceil(math.log2(largest)))), largest)


class Batch(_Part):
    """The largest batch, and the sizes that batches are padded to (default: powers of two, then `max`)."""

    max: Annotated[int, Field(ge=1, le=4096)] = 32
    buckets: tuple[Annotated[int, Field(ge=1)], ...] = Field(default_factory=_powers_of_two)

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        rising = all(small < large for small, large in pairwise(self.buckets))
        if not rising or self.buckets[-1:] != (self.max,):
            raise ValueError(f"buckets {list(self.buckets)} must rise, and end with max ({self.max})")
        return self


class Golden(_Part):
    """A picture in the model's folder, and the answer that the model gave to it when it was added."""

    image: Annotated[str, Field(pattern=r"^golden/[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    sha256: Sha256
    top: Text
    confidence: Finite
    tolerance: Positive = 0.05


class ModelDescription(_Part):
    """One version of one model, as written in `model.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    version: Version
    format: Literal["torchscript"] = "torchscript"
    sha256: Sha256
    summary: str = ""
    input: Input
    preprocess: Preprocess
    output: Output
    labels: Annotated[tuple[Text, ...], Field(min_length=1)]
    batch: Batch = Batch()
    golden: tuple[Golden, ...] = ()
    license: Text
    source: Text

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if len(self.labels) != self.output.num_classes:
            raise ValueError(f"labels has {len(self.labels)} entries, output.num_classes is {self.output.num_classes}")
        if repeated := repeated_labels(self.labels):
            raise ValueError(f"labels must be unique; rename the second of each: {', '.join(repeated[:5])}")
        if self.preprocess.output_size != self.input.size:
            sizes = f"{list(self.preprocess.output_size)}, input.size is {list(self.input.size)}"
            raise ValueError(f"preprocess yields {sizes}; make crop_size (or resize_size) equal to input.size")
        if self.input.dtype == "uint8" and not self._raw_pixels():
            raise ValueError("input.dtype uint8 takes raw pixels: set scale 1, mean [0, 0, 0] and std [1, 1, 1]")
        if unknown := [golden.top for golden in self.golden if golden.top not in self.labels]:
            raise ValueError(f"golden.top {unknown[0]!r} is not one of the labels")
        return self

    def _raw_pixels(self) -> bool:
        spec = self.preprocess
        return (spec.scale, *spec.mean, *spec.std) == (1, 0, 0, 0, 1, 1, 1)

    @property
    def key(self) -> str:
        """The full name in records and on the command line: `imagenet@1`."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> str:
        """The text of `model.json`; equal descriptions give equal text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "model.json") -> Self:
        """Parse and check the text of a `model.json`.

        Args:
            text: JSON, UTF-8.
            where: The file's name, for the error message.

        Raises:
            ModelError: Names the file, the field, what is wrong and what to do.
        """
        try:
            _check_schema_version(json.loads(text), where)
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(_explain(error, where)) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{where}: not valid JSON: {error}; export the model again") from None

    @classmethod
    def from_fields(cls, fields: dict[str, Any], *, where: str) -> Self:
        """The same from a dictionary of plain JSON values; `where` names its origin in errors."""
        return cls.from_json(json.dumps(fields), where=where)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The same from a file.

        Raises:
            ModelError: The file cannot be read, or is not a valid description.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        return cls.from_json(text, where=str(path))


def repeated_labels(labels: Sequence[str]) -> list[str]:
    """The labels that occur more than once, each once."""
    return [label for label, count in Counter(labels).items() if count > 1]


def _check_schema_version(fields: object, where: str) -> None:
    """A newer file fails on its version alone, not on every field that this release does not know."""
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelError(
            f"{where}: schema_version: is {version}, this classifleet reads up to {SCHEMA_VERSION}; upgrade the worker"
        )


def _explain(error: ValidationError, where: str) -> str:
    """One line for a person: file, field, what is wrong, what to do."""
    details = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    lines = list(dict.fromkeys(_explain_one(item) for item in details))
    more = f"; and {len(lines) - ERRORS_SHOWN} more" if len(lines) > ERRORS_SHOWN else ""
    return f"{where}: {'; '.join(lines[:ERRORS_SHOWN])}{more}"


def _explain_one(item: ErrorDetails) -> str:
    # pydantic adds the tried alternatives of a union, such as "constrained-int", to the place: they are no fields
    place = [str(part) for part in item["loc"] if not str(part).startswith(("constrained-", "tuple["))]
    field = ".".join(place) or "description"
    match item["type"]:
        case "missing":
            return f"{field}: is missing; add it"
        case "extra_forbidden":
            return f"{field}: unknown field; remove it or correct its spelling"
        case "value_error":
            return f"{field}: {item['msg'].removeprefix('Value error, ')}"
    return f"{field}: {item['msg'].replace('Input should', 'should')}, not {_short(item['input'])}; correct it"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
