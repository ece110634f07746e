"""Antialiased resizing of a part of a picture: bilinear or bicubic, as torchvision does it, to the level.

Arrays are resized by cykooz_resizer, Pillow's images by Pillow, and so are arrays where there is no cykooz_resizer: it
has no wheels for Linux on ARM. Its own way into Pillow's images is not used, for that reads Pillow's private memory.

Torchvision resizes along rows, then along columns. Bicubic overshoots and is cut off to 0..255 between the two, so
that the order shows: by 11 levels on photos. Pillow and cykooz_resizer choose theirs, so each is asked for one
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:
    fast = None

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels from the upper left corner."""
Source = NDArray[np.uint8] | Image.Image
Interpolation = Literal["bilinear", "bicubic"]
Step = tuple[tuple[int, int], Box]
MAX_STRIP_PIXELS: Final = 32_000_000
STRIP_BYTES: Final = 1 << 20
_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REACHES: Final = {"bilinear": 1.0, "bicubic": 2.0}  # pixels of the output's size that a kernel reaches to either side
_FAST_FILTERS: Final = {"bilinear": "bilinear", "bicubic": "catmull_rom"}


def size_of(source: Source) -> tuple[int, int]:
    """Width and height."""
    return source.size if isinstance(source, Image.Image) else (source.shape[1], source.shape[0])


def resample(
    source: Source, size: tuple[int, int], box: Box, interpolation: Interpolation, *, columns_first: bool = False
) -> NDArray[np.uint8]:
    """Resize what lies in a box. Pixels beside the box count where the kernel reaches them. Releases the GIL.

    Args:
        source: uint8 [h, w, 3] or Pillow's RGB.
        size: Width and height of the result.
        box: May reach out of the picture by a rounding error.
        interpolation: The kernel.
        columns_first: The other order, for a picture that is to be turned by a quarter.

    Returns:
        uint8 [height, width, 3], read-only.
    """
    columns, rows = size_of(source)
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], columns), min(box[3], rows))
    needed = _needed(inside, size, (columns, rows), _REACHES[interpolation])
    strip = size[1] * (needed[2] - needed[0]) if columns_first else size[0] * (needed[3] - needed[1])
    if strip <= MAX_STRIP_PIXELS and isinstance(source, np.ndarray) and fast is not None:
        steps = _steps(size, inside, needed, columns_first=columns_first)
        return _fast_steps(source, needed, steps, interpolation, columns_first=columns_first)
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    if interpolation == "bilinear" or strip > MAX_STRIP_PIXELS:
        return np.asarray(image.resize(size, _FILTERS[interpolation], box=inside))
    image = image.crop(needed) if needed != (0, 0, columns, rows) else image
    for to, part in _steps(size, inside, needed, columns_first=columns_first):
        image = image.resize(to, _FILTERS[interpolation], box=part)
    return np.asarray(image)


def _needed(box: Box, size: tuple[int, int], full: tuple[int, int], reach: float) -> tuple[int, int, int, int]:
    """The pixels that have a say."""
    x, y = (reach * max(1.0, (box[axis + 2] - box[axis]) / size[axis]) + 1 for axis in (0, 1))
    left, top = max(0, math.floor(box[0] - x)), max(0, math.floor(box[1] - y))
    return left, top, min(full[0], math.ceil(box[2] + x)), min(full[1], math.ceil(box[3] + y))


def _steps(
    size: tuple[int, int], box: Box, needed: tuple[int, int, int, int], *, columns_first: bool
) -> Iterator[Step]:
    """First along one side, then along the other, within what is needed."""
    columns, rows = needed[2] - needed[0], needed[3] - needed[1]
    x, y, right, bottom = box[0] - needed[0], box[1] - needed[1], box[2] - needed[0], box[3] - needed[1]
    if columns_first:
        yield (columns, size[1]), (0, y, columns, bottom)
        yield size, (x, 0, right, size[1])
    else:
        yield (size[0], rows), (x, 0, right, rows)
        yield size, (0, y, size[0], bottom)


def _fast_steps(
    source: NDArray[np.uint8],
    needed: tuple[int, int, int, int],
    steps: Iterator[Step],
    interpolation: Interpolation,
    *,
    columns_first: bool,
) -> NDArray[np.uint8]:
    """The first step, which sees all pixels, in strips that stay in the processor's cache while they are copied."""
    left, top, right, bottom = needed
    part = source[top:bottom, left:right]
    (to, (x, y, end, below)), (size, box) = steps
    first = np.empty((to[1], to[0], 3), np.uint8)
    step = max(1, STRIP_BYTES // (3 * (bottom - top if columns_first else right - left)))
    for at in range(0, to[0] if columns_first else to[1], step):
        if columns_first:
            strip = part[:, at : at + step]
            columns = strip.shape[1]
            first[:, at : at + step] = _fast(strip, (columns, to[1]), (0, y, columns, below), interpolation)
        else:
            strip = part[at : at + step]
            first[at : at + step] = _fast(strip, (to[0], len(strip)), (x, 0, end, len(strip)), interpolation)
    return _fast(first, size, box, interpolation)


def _fast(array: NDArray[np.uint8], to: tuple[int, int], box: Box, interpolation: Interpolation) -> NDArray[np.uint8]:
    x, y, right, bottom = box
    image = fast.ImageData(array.shape[1], array.shape[0], fast.PixelType.U8x3, array.tobytes())
    target = fast.ImageData(*to, fast.PixelType.U8x3)
    kernel = fast.ResizeAlg.convolution(fast.FilterType[_FAST_FILTERS[interpolation]])
    crop = fast.CropBox(x, y, right - x, bottom - y)
    # a resizer costs a microsecond; one that is kept keeps the memory of its largest picture
    fast.Resizer().resize(image, target, fast.ResizeOptions(kernel, use_alpha=False, crop_box=crop))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(to[1], to[0], 3)
