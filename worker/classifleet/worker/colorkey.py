"""The one colour that a PNG declares transparent, which Pillow may compare with pixels of another depth.

Pillow scales grey of 2 and 4 bits to 8 but not its key, and of 16-bit colours it compares one half with the key's
other: a picture could vanish, or one that nobody sees appear. libpng, and so browsers, compare first.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageFile

from classifleet.config.errors import ErrorCode, ImageError

_GREY_LEVELS: Final = {"L;2": 3, "L;4": 15}
_HIGH_BYTES, _LOW_BYTES = "RGB;16B", "RGB;16L"  # Pillow keeps one byte of two: the first, or the second


def load_keyed(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Load a picture, and make its key fit its pixels.

    Args:
        image: Opened.
        data: Its file.

    Returns:
        The same image, or an RGBA one in its place.

    Raises:
        ImageError: `unsupported_format`: of an animation, Pillow keeps too little to tell.
    """
    raw = image.tile[0].args if image.format == "PNG" and "transparency" in image.info and image.tile else None
    if raw == _HIGH_BYTES:
        return _keyed_in_full(image, data)
    if isinstance(raw, str) and (most := _GREY_LEVELS.get(raw)):
        image.info["transparency"] = image.info["transparency"] * 255 // most
    image.load()
    return image


def _keyed_in_full(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    if image.tell():
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "animated PNG of 16 bits a channel with a transparent colour")
    low = Image.open(io.BytesIO(data), formats=("PNG",))
    low.tile = [tile._replace(args=_LOW_BYTES) for tile in image.tile]
    key = image.info["transparency"]
    image.load()
    low.load()
    halves = np.asarray(image), np.asarray(low)
    clear = np.ones(halves[0].shape[:2], np.bool_)
    for band, value in enumerate(key):
        clear &= (halves[0][..., band] == value >> 8) & (halves[1][..., band] == value & 0xFF)
    shown = Image.fromarray(halves[0])
    shown.putalpha(Image.fromarray(np.where(clear, np.uint8(0), np.uint8(255))))
    return shown
