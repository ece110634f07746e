"""Gain maps: a second picture in a JPEG by which a display of high dynamic range brightens the first (Ultra HDR).

Chromium also applies one on an ordinary display where it says that the first picture is the brighter one; Firefox
never does. Then people see another picture than a decoder.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from itertools import islice
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError

SEVERAL_PICTURES: Final = b"MPF\0"
"""What begins the segment without which Chromium looks for no second picture."""
MAX_DESCRIPTIONS: Final = 100
"""In a file. Each may be as long as a segment."""
_ISO_BYTES: Final = 32
_ISO: Final = re.compile(rb"urn:iso:std:iso:ts:21496:-1\0")
_ISO_HEAD: Final = ">4xB"  # behind two versions
_ISO_BACKWARD, _ISO_ONE_DENOMINATOR = 0x04, 0x08
_XMP: Final = re.compile(rb"http://ns\.adobe\.com/xap/1\.0/\0")
_HEAD_BYTES, _LENGTH_BYTES = 4, 2  # of a segment
_XMP_HIDES: Final = re.compile(rb"\0|&#|<!(?!--)")  # other encodings, letters by number, entities
_BASE_IS_HDR: Final = re.compile(rb"BaseRenditionIsHDR")
_BASE_IS_SDR: Final = re.compile(rb"""BaseRenditionIsHDR\s*(=\s*["']False["']|>\s*False\s*<)""")
_FROM: Final = re.compile(rb"HDRCapacityMin")
_FROM_SDR: Final = re.compile(rb"""HDRCapacityMin\s*(=\s*["']|>\s*)\+?[0-9.]+\s*["'<]""")


def refuse_applied(data: bytes, own: Collection[int]) -> None:
    """Refuse a JPEG whose gain map could be applied on an ordinary display.

    Args:
        data: The file, whose first picture names others (`SEVERAL_PICTURES`).
        own: Where the segments of the first picture begin. Another may lie anywhere, also within one of them.

    Raises:
        ImageError: `unsupported_format`.
    """
    descriptions, maps = (list(islice(kind.finditer(data), MAX_DESCRIPTIONS + 1)) for kind in (_XMP, _ISO))
    ordinary = (
        max(len(descriptions), len(maps)) <= MAX_DESCRIPTIONS
        and all(_is_for_hdr(_segment(data, each), is_own=each.start() - _HEAD_BYTES in own) for each in descriptions)
        and all(
            _is_iso_for_hdr(data[each.end() : each.end() + _ISO_BYTES])
            for each in maps
            if each.start() - _HEAD_BYTES not in own  # there, it gives versions alone
        )
    )
    if not ordinary:
        raise ImageError(
            ErrorCode.UNSUPPORTED_FORMAT, "JPEG with a gain map that browsers apply on ordinary displays, or might"
        )


def _segment(data: bytes, found: re.Match[bytes]) -> bytes:
    """The rest of a segment that begins so."""
    length = int.from_bytes(data[max(found.start() - _LENGTH_BYTES, 0) : found.start()])
    return data[found.end() : found.start() + length]


def _is_for_hdr(xmp: bytes, *, is_own: bool) -> bool:
    """Whether a description has no gain map, or one that brightens an ordinary picture."""
    if not is_own and _XMP_HIDES.search(xmp):
        return False
    return all(
        len(name.findall(xmp)) == len(harmless.findall(xmp))
        for name, harmless in ((_BASE_IS_HDR, _BASE_IS_SDR), (_FROM, _FROM_SDR))
    )


def _is_iso_for_hdr(metadata: bytes) -> bool:
    """The same of ISO 21496-1: nothing is applied below the first headroom, and all of it from the second on."""
    try:
        (flags,) = struct.unpack_from(_ISO_HEAD, metadata)
        numbers = ">4xII" if flags & _ISO_ONE_DENOMINATOR else ">I4xI4x"
        base, alternate = struct.unpack_from(numbers, metadata, struct.calcsize(_ISO_HEAD))
    except struct.error:
        return False
    return not flags & _ISO_BACKWARD and not base and bool(alternate)
