"""Which way up an Exif block says that a picture is, and how long its sides are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats.parts import MAX_PARTS

_TIFF_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}  # Pillow takes others, too; browsers do not
_TIFF_HEADER_BYTES: Final = 8
_TIFF_ENTRY: Final = "HHI4x"
_TIFF_VALUE_AT: Final = 8
_TIFF_SHORT, _TIFF_LONG, _TIFF_RATIONAL = 3, 4, 5
_ORIENTATION: Final = 0x112
_SUB_DIRECTORY: Final = 0x8769
_RESOLUTIONS: Final = (0x11A, 0x11B)
_UNIT, _INCH = 0x128, 2
_SIDES: Final = (0xA002, 0xA003)
_SCREEN: Final = 72
"""Pixels an inch: of those that browsers take for a picture's own, they make so many."""


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    value_at: int


def orientation(block: bytes) -> int:
    """The first orientation in an Exif block that is one, 1 to 8; 1 if there is none.

    Raises:
        ImageError: `undecodable`: it has too many entries (directories may hold each other), or ends in that one.
    """
    order = _order(block)
    for entry in _entries(block):
        if entry[:3] == (_ORIENTATION, _TIFF_SHORT, 1):
            (value,) = struct.unpack_from(order + "H", block, entry.value_at)
            if value in range(1, 9):
                return int(value)
    return 1


def refuse_stretched(block: bytes, size: tuple[int, int]) -> None:
    """Refuse a picture that browsers show with other sides: pixels may be longer than wide, if the sides fit.

    Args:
        block: The Exif block.
        size: Width and height of the picture as it is stored.

    Raises:
        ImageError: `undecodable`.
    """
    found: dict[int, float] = {}
    for entry in _entries(block):
        found.setdefault(entry.tag, _number(block, entry))
    resolutions = [found.get(tag, 0.0) for tag in _RESOLUTIONS]
    if not all(resolutions) or resolutions[0] == resolutions[1] or found.get(_UNIT, _INCH) != _INCH:
        return
    stated = [found.get(tag, 0.0) for tag in _SIDES]
    shown = [side * _SCREEN / resolution for side, resolution in zip(size, resolutions, strict=True)]
    if all(abs(one - other) <= 1 for one, other in zip(stated, shown, strict=True)):
        raise ImageError(ErrorCode.UNDECODABLE, "pixels that are longer than wide, which not all programs stretch")


def _order(block: bytes) -> str:
    return _TIFF_ORDERS.get(block[:4], "")


def _number(block: bytes, entry: _Entry) -> float:
    """The value of an entry of one number; 0 for others."""
    order = _order(block)
    if entry.values != 1:
        return 0.0
    if entry.kind in (_TIFF_SHORT, _TIFF_LONG):
        return float(struct.unpack_from(order + ("H" if entry.kind == _TIFF_SHORT else "I"), block, entry.value_at)[0])
    if entry.kind != _TIFF_RATIONAL:
        return 0.0
    (at,) = struct.unpack_from(order + "I", block, entry.value_at)
    if at + 8 > len(block):
        return 0.0
    above, below = struct.unpack_from(order + "II", block, at)
    return above / below if below else 0.0


def _entries(block: bytes) -> Iterator[_Entry]:
    """Those of the first directory and, behind its pointer, of that of the camera's data.

    Raises:
        ImageError: `undecodable`: there are too many, or the last one is cut.
    """
    order = _order(block)
    if not order or len(block) < _TIFF_HEADER_BYTES:
        return
    (at,) = struct.unpack_from(order + "I", block, 4)
    for number, entry in enumerate(_directory(block, order, at, is_root=True)):
        if number == MAX_PARTS:
            raise ImageError(ErrorCode.UNDECODABLE, f"Exif block of more than {MAX_PARTS} entries")
        yield entry


def _directory(block: bytes, order: str, at: int, *, is_root: bool) -> Iterator[_Entry]:
    if at + 2 > len(block):
        return
    entry = struct.Struct(order + _TIFF_ENTRY)
    (entries,) = struct.unpack_from(order + "H", block, at)
    whole = at + 2 + entry.size * min(entries, (len(block) - at - 2) // entry.size)
    for place in range(at + 2, whole, entry.size):
        tag, kind, values = entry.unpack_from(block, place)
        found = _Entry(tag, kind, values, place + _TIFF_VALUE_AT)
        yield found
        if is_root and found[:3] == (_SUB_DIRECTORY, _TIFF_LONG, 1):
            (sub,) = struct.unpack_from(order + "I", block, found.value_at)
            yield from _directory(block, order, sub, is_root=False)
    cut = struct.unpack_from(order + "H", block.ljust(whole + 2, b"\0"), whole)
    if whole < at + 2 + entry.size * entries and cut == (_ORIENTATION,):  # Firefox reads it, Chromium does not
        raise ImageError(ErrorCode.UNDECODABLE, "Exif block that ends in its orientation")
