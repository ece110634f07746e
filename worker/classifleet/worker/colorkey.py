"""What is left to do once the pixels are there: a PNG's transparent colour, and pixels or colours that are missing.

The one colour that a PNG declares transparent Pillow may compare with pixels of another depth.

Pillow scales grey of 2 and 4 bits to 8 but not its key, and of 16-bit colours it compares one half with the key's
other: a picture could vanish, or one that nobody sees appear. libpng, and so browsers, compare first.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFile

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.parts import png_chunks

_PNG_DEPTH_AT: Final = 24
_PNG_CHANNELS: Final[Mapping[int, int]] = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG_STEP: Final = 1 << 20
_BMP_HEADER_AT, _BMP_INFO_BYTES, _BMP_LEAST_BYTES = 14, 40, 54
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


def refuse_missing_bmp_colors(data: bytes, indices: tuple[Any, ...]) -> None:
    """Refuse a BMP whose pixels name colours that its palette lacks: each program fills in its own.

    Args:
        data: The file.
        indices: The least and the greatest of its pixels.
    """
    if len(data) < _BMP_LEAST_BYTES:
        return
    size, colors = struct.unpack_from("<I28xI", data, _BMP_HEADER_AT)
    if size >= _BMP_INFO_BYTES and 0 < colors <= indices[1]:
        raise ImageError(ErrorCode.UNDECODABLE, "BMP with pixels that its palette lacks")


def refuse_short_png(data: bytes, size: tuple[int, int]) -> None:
    """Refuse a PNG whose pixels end before its last row; Pillow takes it, and shows the rest in black.

    Raises:
        ImageError: `undecodable`.
    """
    bits, color_type, _, _, interlaced = data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 5]
    passes = _PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        width, height = (
            max(0, -(-(side - at) // step)) for side, at, step in zip(size, (left, top), (right, down), strict=True)
        )
        wanted += height * (1 + -(-width * bits * _PNG_CHANNELS[color_type] // 8)) if width else 0
    stream, found = zlib.decompressobj(), 0
    for kind, body in png_chunks(data):
        while kind == b"IDAT" and body and found < wanted:
            found += len(stream.decompress(body, _PNG_STEP))
            body = stream.unconsumed_tail
    if found < wanted:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG whose pixels end before its last row")


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
