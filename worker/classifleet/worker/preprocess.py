"""One picture to the exact pixels that a model takes: resize, crop or pad. No arithmetic on values.

Normalisation happens on the device, in the batch (`models.backend`), so that what travels there is one byte a channel.
Resize and centre crop are one Pillow call: `resize(box=...)` computes the cropped pixels alone, which also keeps a
picture of 60,000 x 1 from growing to gigabytes before it is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifleet.worker.models.description import Preprocess

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels from the upper left corner."""
BICUBIC_REACH: Final = 2.0
"""Pixels of the output's size that a bicubic kernel reaches to either side."""
MAX_STRIP_PIXELS: Final = 32_000_000
_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB image, and where in it the picture lies, to fractions of a pixel; default: all of it.

    A JPEG that was scaled while it was decoded ends within a pixel. Ignoring that moves edges by up to 70 levels.
    """

    image: Image.Image
    box: Box | None = None


def preprocess(picture: Picture, spec: Preprocess) -> NDArray[np.uint8]:
    """Resize, crop or pad a picture as a model's description says.

    Args:
        picture: RGB, any size.
        spec: The description's `preprocess`.

    Returns:
        uint8 [h, w, 3], RGB, read-only; (h, w) is `spec.output_size`.
    """
    image = picture.image
    x, y, right, bottom = picture.box or (0, 0, *image.size)
    width, height = scaled_size((right - x, bottom - y), spec)
    if spec.resize == "letterbox":
        return np.asarray(_letterbox(_resize(image, (width, height), (x, y, right, bottom), spec), spec))
    rows, columns = spec.output_size
    # torchvision's CenterCrop: round half to even, so that parity is exact to the pixel
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    across, down = (right - x) / width, (bottom - y) / height
    crop = (x + left * across, y + top * down, x + (left + columns) * across, y + (top + rows) * down)
    return np.asarray(_resize(image, (columns, rows), crop, spec))


def scaled_size(size: tuple[float, float], spec: Preprocess) -> tuple[int, int]:
    """The whole picture's width and height after scaling, before crop or padding.

    Args:
        size: Width and height of the picture, in pixels.
        spec: The description's `preprocess`.
    """
    width, height = size
    rows, columns = spec.resize_hw
    match spec.resize:
        case "stretch":
            return columns, rows
        case "letterbox":
            ratio = min(columns / width, rows / height)
            return max(1, round(width * ratio)), max(1, round(height * ratio))
        case "shortest_edge_crop":  # torchvision's Resize(int): the longer edge is rounded down
            edge = rows
            return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def _resize(image: Image.Image, size: tuple[int, int], box: Box, spec: Preprocess) -> Image.Image:
    resample = _FILTERS[spec.interpolation]
    if spec.antialias:
        # float error may put the far edge a hair outside, which Pillow refuses
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
        if resample is Image.Resampling.BICUBIC:
            return _horizontal_first(image, size, inside)
        return image.resize(size, resample, box=inside)
    # Pillow's resize always antialiases; its transform samples, as torch does with antialias=False
    return image.transform(size, Image.Transform.EXTENT, box, resample)


def _horizontal_first(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Bicubic as torchvision does it: rows, then columns.

    Bicubic overshoots and is cut off to 0..255 between the two, so that their order shows: by 11 levels on photos.
    Pillow takes the cheaper one first.
    """
    x, y, right, bottom = box
    reach = BICUBIC_REACH * max(1.0, (bottom - y) / size[1]) + 1
    first, last = max(0, math.floor(y - reach)), min(image.height, math.ceil(bottom + reach))
    if size[0] * (last - first) > MAX_STRIP_PIXELS:
        return image.resize(size, Image.Resampling.BICUBIC, box=box)
    needed = image.crop((0, first, image.width, last)) if (first, last) != (0, image.height) else image
    strip = needed.resize((size[0], last - first), Image.Resampling.BICUBIC, box=(x, 0, right, last - first))
    return strip.resize(size, Image.Resampling.BICUBIC, box=(0, y - first, size[0], bottom - first))


def _letterbox(image: Image.Image, spec: Preprocess) -> Image.Image:
    rows, columns = spec.resize_hw
    canvas = Image.new("RGB", (columns, rows), spec.pad_color)
    canvas.paste(image, ((columns - image.width) // 2, (rows - image.height) // 2))
    return canvas
