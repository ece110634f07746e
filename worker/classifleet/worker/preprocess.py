"""One picture to the exact pixels that a model takes: resize, crop or pad. No arithmetic on values.

Normalisation happens on the device, in the batch (`models.backend`), so that what travels there is one byte a channel.
Resize and centre crop are one call: only the pixels that stay are computed, which also keeps a picture of 60,000 x 1
from growing to gigabytes before it is cut. A picture that EXIF turns is turned last, when it is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifleet.worker.models.description import Preprocess
from classifleet.worker.resample import Box, Source, resample, size_of

SIDEWAYS: Final = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height. Then, for each side, those that mirror it."""
_MIRRORED: Final = (frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8}))
_SAMPLED: Final = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
"""Without antialias; Pillow's bicubic is another than torch's there, and no description may ask for it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB image as its file stores it, where in it the picture lies, and how EXIF says that it is to be turned.

    `source` is uint8 [h, w, 3] or Pillow's. `box` counts in fractions of its pixels; default: all of it. A JPEG that
    was scaled while it was decoded ends within a pixel; ignoring that moves edges by up to 70 levels.
    """

    source: Source
    box: Box | None = None
    orientation: int = 1

    @property
    def image(self) -> Image.Image:
        """The whole image, upright."""
        if self.orientation == 1 and isinstance(self.source, Image.Image):
            return self.source
        return Image.fromarray(_turned(np.asarray(self.source), self.orientation))


def preprocess(picture: Picture, spec: Preprocess) -> NDArray[np.uint8]:
    """Resize, crop or pad a picture as a model's description says.

    Args:
        picture: Any size.
        spec: The description's `preprocess`.

    Returns:
        uint8 [h, w, 3], RGB, not to be written to; (h, w) is `spec.output_size`.
    """
    x, y, right, bottom = picture.box or (0, 0, *size_of(picture.source))
    sides = right - x, bottom - y
    whole = sides[::-1] if picture.orientation in SIDEWAYS else sides
    width, height = scaled_size(whole, spec)
    if spec.resize == "letterbox":
        return _letterbox(_resize(picture, (width, height), (0, 0, *whole), spec), spec)
    rows, columns = spec.output_size
    # torchvision's CenterCrop: round half to even, so that parity is exact to the pixel
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    across, down = whole[0] / width, whole[1] / height
    crop = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    return _resize(picture, (columns, rows), crop, spec)


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


def averages(spec: Preprocess) -> bool:
    """Whether each pixel of the result comes from all that it covers, and not from a sample."""
    return spec.antialias and spec.interpolation != "nearest"


def _resize(picture: Picture, size: tuple[int, int], crop: Box, spec: Preprocess) -> NDArray[np.uint8]:
    """What lies in `crop`, which counts from the upright picture's corner, at the upright `size`."""
    x, y, right, bottom = picture.box or (0, 0, *size_of(picture.source))
    sideways = picture.orientation in SIDEWAYS
    if spec.interpolation == "nearest" or not spec.antialias:
        shown = _mirrored(_swapped((x, y, right, bottom), sideways), picture.image.size, picture.orientation)
        return np.asarray(_sample(picture.image, size, _moved(crop, shown[:2]), spec))
    upright = (bottom - y, right - x) if sideways else (right - x, bottom - y)
    box = _moved(_swapped(_mirrored(crop, upright, picture.orientation), sideways), (x, y))
    to = size[::-1] if sideways else size
    return _turned(resample(picture.source, to, box, spec.interpolation, columns_first=sideways), picture.orientation)


def _sample(image: Image.Image, size: tuple[int, int], box: Box, spec: Preprocess) -> Image.Image:
    if spec.antialias:
        # float error may put the far edge a hair outside, which Pillow refuses
        inside = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
        return image.resize(size, Image.Resampling.NEAREST, box=inside)
    # Pillow's resize always antialiases; its transform samples, as torch does with antialias=False
    return image.transform(size, Image.Transform.EXTENT, box, _SAMPLED[spec.interpolation])


def _mirrored(box: Box, size: tuple[float, float], orientation: int) -> Box:
    """The box as seen in a mirror, where EXIF asks for one; `size` is the upright picture's."""
    left, top, right, bottom = box
    if orientation in _MIRRORED[0]:
        left, right = size[0] - right, size[0] - left
    if orientation in _MIRRORED[1]:
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _swapped(box: Box, sideways: bool) -> Box:
    return (box[1], box[0], box[3], box[2]) if sideways else box


def _moved(box: Box, by: tuple[float, float]) -> Box:
    return box[0] + by[0], box[1] + by[1], box[2] + by[0], box[3] + by[1]


def _turned(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """[h, w, 3] as its file stores it to upright."""
    if orientation == 1:
        return stored
    upright = stored.swapaxes(0, 1) if orientation in SIDEWAYS else stored
    across = slice(None, None, -1 if orientation in _MIRRORED[0] else 1)
    down = slice(None, None, -1 if orientation in _MIRRORED[1] else 1)
    return np.ascontiguousarray(upright[down, across])


def _letterbox(inner: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.uint8]:
    (rows, columns), (height, width) = spec.resize_hw, inner.shape[:2]
    left, top = (columns - width) // 2, (rows - height) // 2
    canvas = np.full((rows, columns, 3), spec.pad_color, np.uint8)
    canvas[top : top + height, left : left + width] = inner
    return canvas
