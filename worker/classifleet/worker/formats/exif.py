"""Which way up an Exif block says that a picture is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats.parts import MAX_PARTS

_TIFF_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}  # Pillow takes others, too; browsers do not
_TIFF_HEADER_BYTES: Final = 8
_TIFF_ENTRY: Final = "HHIHH"
_TIFF_SHORT, _TIFF_LONG = 3, 4
_ORIENTATION: Final = 0x112
_SUB_DIRECTORY: Final = 0x8769


def orientation(block: bytes) -> int:
    """The first orientation in an Exif block that is one, 1 to 8; 1 if there is none.

    Raises:
        ImageError: `undecodable`: it has too many entries (directories may hold each other), or ends in that one.
    """
    order = _TIFF_ORDERS.get(block[:4])
    if order is None or len(block) < _TIFF_HEADER_BYTES:
        return 1
    (at,) = struct.unpack_from(order + "I", block, 4)
    for number, (tag, kind, count, value) in enumerate(_entries(block, order, at, is_root=True)):
        if number == MAX_PARTS:
            raise ImageError(ErrorCode.UNDECODABLE, f"Exif block of more than {MAX_PARTS} entries")
        if (tag, kind, count) == (_ORIENTATION, _TIFF_SHORT, 1) and value in range(1, 9):
            return value
    return 1


def _entries(block: bytes, order: str, at: int, *, is_root: bool) -> Iterator[tuple[int, int, int, int]]:
    """Tags, types, counts and first two bytes; behind its pointer, those of the directory of the camera's data."""
    if at + 2 > len(block):
        return
    entry = struct.Struct(order + _TIFF_ENTRY)
    (entries,) = struct.unpack_from(order + "H", block, at)
    whole = at + 2 + entry.size * min(entries, (len(block) - at - 2) // entry.size)
    for place in range(at + 2, whole, entry.size):
        tag, kind, count, value, _ = entry.unpack_from(block, place)
        yield tag, kind, count, value
        if is_root and (tag, kind, count) == (_SUB_DIRECTORY, _TIFF_LONG, 1):
            (sub,) = struct.unpack_from(order + "I", block, place + _TIFF_HEADER_BYTES)
            yield from _entries(block, order, sub, is_root=False)
    cut = struct.unpack_from(order + "H", block.ljust(whole + 2, b"\0"), whole)
    if whole < at + 2 + entry.size * entries and cut == (_ORIENTATION,):  # Firefox reads it, Chromium does not
        raise ImageError(ErrorCode.UNDECODABLE, "Exif block that ends in its orientation")
