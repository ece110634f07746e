"""BMP: its header, masks and palette, as browsers read them."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from classifleet.config.errors import ErrorCode, ImageError

_BEGIN_AT: Final = 10
_HEADER_AT: Final = 14
_SIZE_AT: Final = 18
_COLORS_AT: Final = 46
_MASKS_AT: Final = 54
_SPACE_AT, _GAMMA_AT, _PROFILE_AT = 70, 110, 126
_OLDEST_BYTES, _INFO_BYTES, _ALPHA_BYTES, _OS2_BYTES, _V4_BYTES, _V5_BYTES = 12, 40, 56, 64, 108, 124
_BY_MASKS: Final = 3
_PLAIN: Final = (0, _BY_MASKS)
_PALETTE_BITS: Final = 8
_CALIBRATED: Final = bytes(4)
_D65: Final = (0.3127, 0.329)
_EMBEDDED: Final = b"DEBM"
_PLAIN_GREYS: Final = {1: 2, 8: 256}
"""Bits a pixel, and colours, of palettes of greys that Pillow may leave out."""
_NO_GREY: Final = b"\1\0\0\0"  # blue, green, red


class _Header(NamedTuple):
    begin: int
    size: int
    width: int
    height: int
    bits: int
    coding: int
    colors: int


def as_browsers_read(data: bytes) -> bytes:
    """The file with a palette that Pillow does not take for one of greys.

    Raises:
        ImageError: `unsupported_format`: of 16 bits, Pillow knows no alpha; of OS/2, no compression; alpha that is not
            declared in full some browsers obey. `undecodable`: colours or pixels would be read from elsewhere than in
            browsers, or end early.
    """
    if len(data) < _MASKS_AT + 16:
        return data
    header = _header(data)
    row = -(-header.width * header.bits // 32) * 4
    if header.coding in _PLAIN and header.begin + row * abs(header.height) > len(data):
        raise ImageError(ErrorCode.UNDECODABLE, "BMP whose pixels end before its last row: truncated")
    if header.bits <= _PALETTE_BITS:
        return _with_palette(data, header)
    if header.begin < _HEADER_AT + header.size:
        raise _out_of_place()
    if header.size == _OS2_BYTES and header.coding:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP of OS/2 that is compressed")
    *colors, alpha = struct.unpack_from("<4I", data, _MASKS_AT)
    if header.coding == _BY_MASKS and not all(colors):
        raise ImageError(ErrorCode.UNDECODABLE, "BMP without a mask for each colour")
    if header.size < _ALPHA_BYTES or not alpha:
        return data
    if header.bits == 16:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP of 16 bits a pixel with transparency")
    if header.bits == 32 and not header.coding and data[header.begin + 3 :: 4].strip(b"\xff"):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP with transparency, but without masks")
    return data


def _header(data: bytes) -> _Header:
    begin, size = struct.unpack_from("<II", data, _BEGIN_AT)
    if size == _OLDEST_BYTES:
        width, height, _, bits = struct.unpack_from("<4H", data, _SIZE_AT)
        return _Header(begin, size, width, height, bits, 0, 0)
    width, height, _, bits, coding = struct.unpack_from("<iiHHI", data, _SIZE_AT)
    return _Header(begin, size, width, height, bits, coding, *struct.unpack_from("<I", data, _COLORS_AT))


def profile(data: bytes) -> bytes:
    """The colour profile that one of version 5 embeds, which Pillow passes over; empty if there is none."""
    size, space = int.from_bytes(data[_HEADER_AT:][:4], "little"), data[_SPACE_AT:][:4]
    if size < _V5_BYTES or space != _EMBEDDED:
        return b""
    at, length = struct.unpack_from("<II", data, _PROFILE_AT)
    return data[_HEADER_AT + at :][:length]


def calibration(data: bytes) -> tuple[float, list[float]] | None:
    """The gamma of one in calibrated colours, and x and y of its white, red, green and blue; None if it has none.

    Firefox obeys it, and takes the mean of the three gammas.
    """
    if len(data) < _GAMMA_AT + 12 or int.from_bytes(data[_HEADER_AT:][:4], "little") < _V4_BYTES:
        return None
    if data[_SPACE_AT:][:4] != _CALIBRATED:
        return None
    points = struct.unpack_from("<9i", data, _SPACE_AT + 4)
    gamma = sum(struct.unpack_from("<3I", data, _GAMMA_AT)) / 3 / 65_536
    sums = [sum(points[at : at + 3]) for at in (0, 3, 6)]
    if not all(sums) or not gamma:
        return None
    xy = [points[at + axis] / total for at, total in zip((0, 3, 6), sums, strict=True) for axis in (0, 1)]
    return gamma, [*_D65, *xy]


def palette_colors(data: bytes) -> int:
    """How many colours the palette of a picture of indices has."""
    header = _header(data)
    return header.colors or 1 << header.bits


def _with_palette(data: bytes, header: _Header) -> bytes:
    """Keep Pillow from a palette of greys, for which it takes the indices themselves, in one bit or eight.

    A colour more, which no pixel should name, and which is black as in browsers, makes it read what there is.
    """
    entry = 3 if header.size == _OLDEST_BYTES else 4
    colors = header.colors or 1 << header.bits
    begin = _HEADER_AT + header.size
    end = begin + entry * colors
    if header.begin < end or colors > 1 << header.bits:
        raise _out_of_place()
    levels = (0, 255) if colors == 2 else range(colors)
    entries = range(begin, end, entry)
    is_grey = all(data[at : at + 3] == bytes((level,) * 3) for at, level in zip(entries, levels, strict=True))
    if _PLAIN_GREYS.get(header.bits) == colors or not is_grey:
        return data
    if header.size < _INFO_BYTES:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP of an old version in almost black greys")
    head = data[:_BEGIN_AT] + (header.begin + entry).to_bytes(4, "little") + data[_HEADER_AT:_COLORS_AT]
    count = (colors + 1).to_bytes(4, "little")
    return head + count + data[_COLORS_AT + 4 : end] + _NO_GREY + data[end:]


def _out_of_place() -> ImageError:
    return ImageError(ErrorCode.UNDECODABLE, "BMP whose pixels or palette are out of place")
