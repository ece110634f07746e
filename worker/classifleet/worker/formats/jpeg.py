"""JPEG: segments and scans, as browsers read them.

- Pillow joins Exif segments, in quadratic time; browsers read each by itself. It remembers all frame headers, in 30
  times their bytes; libjpeg refuses the second.
- Of a picture in one scan everybody shows what libjpeg makes of damage. One in several scans (all progressive ones)
  browsers show scan by scan, up to the first damage, and not before each colour has come; Pillow shows grey.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats import gainmap
from classifleet.worker.formats.parts import MAX_PARTS, Span, counted, too_many, without

MAX_SCANS: Final = 100
"""Progressive or not; encoders write about 10. Each costs a pass over the whole picture, and 10 bytes."""
MAX_SCANNED_PIXELS: Final = 1_000_000_000
"""Of all scans together: 20 at 50 megapixels. 99 empty ones at 49 megapixels took 2.3 s; some are decoded twice."""
_START_BYTES, _LENGTH_BYTES = 2, 2
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # what stands alone is left out
_ALONE: Final = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # Pillow reads no length there
_SCAN, _END = 0xDA, 0xD9
_SCANS: Final = re.compile(bytes((0xFF, _SCAN)))  # three times as fast as `bytes.count`
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE}) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS: Final = 0xC3
_HEADS_END: Final = frozenset({*range(0xC0, 0xD0), _END, _SCAN}) - {0xC4, 0xC8, 0xCC}
_FRAME_COLORS_AT, _FRAME_COLOR_BYTES = 9, 3  # in a segment with its marker and length: how many, then each
_SCAN_COLORS_AT, _SCAN_COLOR_BYTES = 4, 2
_NOTES: Final = frozenset({*range(0xE0, 0xF0), 0xFE})
_APP1: Final = b"\xff\xe1"
_APP2: Final = b"\xff\xe2"
_EXIF_PREFIX: Final = b"Exif\0"
_EXIF_PREFIX_BYTES: Final = 6
_EXIF_END_AT: Final = 9  # in a segment: of any value in Chromium, zero in Firefox
_ICC_PREFIX: Final = b"ICC_PROFILE\0"
_ICC_NUMBER_AT: Final = 16  # then how many there are
_ICC_AT: Final = 18


def as_browsers_read(data: bytes) -> bytes:
    """The file without Exif segments behind the first, and those of a profile that are too short for Pillow.

    Raises:
        ImageError: `undecodable`: it has too many segments, two frames, or progressive scans that leave a colour out.
            `unsupported_format`: its gain map makes another picture in some browsers.
    """
    parts = counted(_segments(data), "JPEG")
    frames = [(start, end) for start, end in parts if _code(data, start) in _FRAMES]
    if len(frames) > 1:
        raise ImageError(ErrorCode.UNDECODABLE, "JPEG with more than one frame header")
    if frames and data[frames[0][0] + 1] in _PROGRESSIVE and not _all_colors_come(data, *frames[0]):
        raise ImageError(ErrorCode.UNDECODABLE, "progressive JPEG without a scan for each colour")
    exif = [(start, end) for start, end in parts if _is_exif(data, start, end)]
    if exif and data[exif[0][0] + _EXIF_END_AT]:
        raise ImageError(ErrorCode.UNDECODABLE, "JPEG whose Exif block begins in a way that not all programs read")
    if any(
        data.startswith(_APP2 + data[start + 2 : start + 4] + gainmap.SEVERAL_PICTURES, start) for start, _ in parts
    ):
        gainmap.refuse_applied(data, {start for start, _ in parts})
    short = [(start, end) for start, end in parts if _is_profile(data, start) and end - start < _ICC_AT]
    return without(data, sorted(exif[1:] + short))


def in_several_scans(data: bytes) -> bool:
    """Whether the first scan does not bring all there is."""
    parts = list(_segments(data))
    frame, scan = next((start for start, _ in parts if _code(data, start) in _FRAMES), None), parts[-1][1]
    if frame is None:
        return False
    colors = data[frame + _FRAME_COLORS_AT :][:1], data[scan + _SCAN_COLORS_AT :][:1]
    return _code(data, frame) in _PROGRESSIVE or colors[0] > colors[1]


def without_notes(data: bytes) -> bytes:
    """The file without metadata: segments for applications, and comments."""
    return without(data, ((start, end) for start, end in _segments(data) if _code(data, start) in _NOTES))


def exif(data: bytes) -> bytes:
    """The first Exif block, the one that counts, without its prefix; empty if there is none."""
    spans = ((start, end) for start, end in _segments(data) if _is_exif(data, start, end))
    return next((data[start + 4 + _EXIF_PREFIX_BYTES : end] for start, end in spans), b"")


def profile(data: bytes) -> bytes:
    """The colour profile, be it behind the frame header, where Pillow does not look; empty if it is not whole.

    As browsers join it: of segments until each number that there is has come once.
    """
    found: dict[int, bytes] = {}
    counts = set()
    for start, end in _segments(data):
        if not _is_profile(data, start) or end - start <= _ICC_AT:
            continue
        number, count = data[start + _ICC_NUMBER_AT : start + _ICC_AT]
        counts.add(count)
        if number in found or not 1 <= number <= count or len(counts) > 1:
            return b""
        found[number] = data[start + _ICC_AT : end]
        if len(found) == count:
            return b"".join(body for _, body in sorted(found.items()))
    return b""


def is_lossless(data: bytes) -> bool:
    """Whether libjpeg will take it for a lossless one: its first frame says so.

    Raises:
        ImageError: `undecodable`: too many markers stand before it.
    """
    return next((code for code, _ in _markers(data) if code in _HEADS_END), None) == _LOSSLESS


def refuse_many_scans(data: bytes, pixels: int) -> None:
    """Refuse one that costs too much to decode.

    Args:
        data: The file.
        pixels: Of the whole picture.

    Raises:
        ImageError: `undecodable`.
    """
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)
    if _scans(data, most) > most:
        raise ImageError(ErrorCode.UNDECODABLE, f"JPEG with more than {most} scans")


def _scans(data: bytes, most: int) -> int:
    """Scans of the first picture. Walks it only where a count is too high: a video may follow the picture."""
    scans = sum(1 for _ in islice(_SCANS.finditer(data), most + 1))
    if scans <= most:
        return scans
    return sum(1 for _ in islice(_scans_at(data), most + 1))


def _scans_at(data: bytes) -> Iterator[int]:
    """Where the scans of the first picture begin."""
    for code, at in _markers(data):
        if code == _END:
            return
        if code == _SCAN:
            yield at


def _all_colors_come(data: bytes, frame: int, end: int) -> bool:
    """Whether each colour of a progressive frame gets its mean values, which its first coefficients are."""
    left = set(data[frame + _FRAME_COLORS_AT + 1 : end : _FRAME_COLOR_BYTES])
    for at in _scans_at(data):
        (count,) = data[at + _SCAN_COLORS_AT : at + _SCAN_COLORS_AT + 1] or b"\0"
        begin = at + _SCAN_COLORS_AT + 1
        first = begin + count * _SCAN_COLOR_BYTES
        if data[first : first + 1] == b"\0":
            left -= set(data[begin:first:_SCAN_COLOR_BYTES])
        if not left:
            return True
    return False


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """The codes of markers and where they stand, as libjpeg finds them; without those that stand alone.

    Raises:
        ImageError: `undecodable`: there are too many.
    """
    at = _START_BYTES
    for _ in range(MAX_PARTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return
        yield marker[0][1], marker.start()
        length = int.from_bytes(data[marker.end() : marker.end() + _LENGTH_BYTES])
        at = marker.end() + max(_LENGTH_BYTES, length)
    raise too_many("JPEG")


def _segments(data: bytes) -> Iterator[Span]:
    """What stands before the first scan: segments, and single bytes of padding or junk."""
    at = 0
    while at + 1 < len(data) and data[at : at + 2] != bytes((0xFF, _SCAN)):
        code = data[at + 1]
        if data[at] != 0xFF or code in (0x00, 0xFF):
            end = at + 1
        elif code in _ALONE:
            end = at + 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield at, end
        at = end


def _code(data: bytes, start: int) -> int:
    """The code of the marker that a part begins with; 0 for junk."""
    return data[start + 1] if data[start] == 0xFF else 0


def _is_exif(data: bytes, start: int, end: int) -> bool:
    return (
        data.startswith(_APP1, start)
        and data.startswith(_EXIF_PREFIX, start + 4)
        and end - start > 4 + _EXIF_PREFIX_BYTES  # browsers pass over an empty one
    )


def _is_profile(data: bytes, start: int) -> bool:
    return data.startswith(_APP2, start) and data.startswith(_ICC_PREFIX, start + 4)
