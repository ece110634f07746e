"""What a file is made of. Its parts are counted, and Pillow is shown none that browsers do not read.

- Pillow walks the parts in Python, holding the GIL: 20 MiB of empty ones take it 5 to 30 seconds.
- It keeps a PNG's texts where it keeps real metadata: one named `exif` turns the picture, `interlace` or `bbox` ruins
  it. It inflates each of them, and each colour profile; of twins it believes the last, and of some those behind the
  picture. libpng, and so browsers, take the first, where the standard wants it.
- It joins a JPEG's Exif segments, in quadratic time; browsers read each by itself. It remembers all frame headers, in
  30 times their bytes; libjpeg refuses the second.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError

MAX_PARTS: Final = 20_000
"""Segments, chunks or blocks that Pillow would walk through. A 20 MiB PNG in chunks of 4 KiB has 5,000."""
Span = tuple[int, int]
"""Where a part begins and ends; the last may end behind the file."""
JPEG_SCAN: Final = 0xDA
JPEG_END: Final = 0xD9
EXIF_PREFIX: Final = b"Exif\0\0"
_JPEG_START_BYTES: Final = 2
_JPEG_LENGTH_BYTES: Final = 2
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE}) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE: Final = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # Pillow reads no length there
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # what stands alone is left out
_APP1: Final = b"\xff\xe1"
_PNG_SIGNATURE_BYTES: Final = 8
_PNG_HEAD_BYTES: Final = 8  # length and type
_PNG_CHUNK_BYTES: Final = 12  # and checksum
_PNG_COLOR_TYPE_AT: Final = 25
_PNG_PALETTE: Final = b"\x03"
_PNG_COLORS: Final[Mapping[bytes, int | None]] = {b"cICP": 4, b"iCCP": None, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
"""With the length they must have. They count before the palette alone."""
_PNG_ONCE: Final[Mapping[bytes, int | None]] = {**_PNG_COLORS, b"tRNS": None, b"eXIf": None, b"acTL": 8}
_PNG_FRAMES: Final = frozenset({b"fcTL", b"fdAT"})
_GIF_HEADER_BYTES: Final = 13
_GIF_FRAME_BYTES: Final = 10


def as_browsers_read(data: bytes, kind: str) -> bytes:
    """The file without what Pillow would believe and browsers do not read. Most come back as they are.

    Raises:
        ImageError: `undecodable`: it has too many parts, or two frames where there can be one.
    """
    if kind not in _WALKS:
        return data
    parts = list(itertools.islice(_WALKS[kind](data), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise _too_many(kind)
    kept, at = [], 0
    for start, end in _STRAYS[kind](data, parts) if kind in _STRAYS else ():
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]]) if kept else data


def _too_many(kind: str) -> ImageError:
    return ImageError(ErrorCode.UNDECODABLE, f"{kind} of more than {MAX_PARTS} parts")


def jpeg_markers(data: bytes) -> Iterator[int]:
    """The codes of a JPEG's markers, as libjpeg finds them; without those that stand alone.

    Raises:
        ImageError: `undecodable`: there are too many.
    """
    at = _JPEG_START_BYTES
    for _ in range(MAX_PARTS):
        marker = _JPEG_MARKER.search(data, at)
        if marker is None:
            return
        yield marker[0][1]
        length = int.from_bytes(data[marker.end() : marker.end() + _JPEG_LENGTH_BYTES])
        at = marker.end() + max(_JPEG_LENGTH_BYTES, length)
    raise _too_many("JPEG")


def _jpeg_segments(data: bytes) -> Iterator[Span]:
    """What stands before the first scan: segments, and single bytes of padding or junk."""
    at = 0
    while at + 1 < len(data) and data[at : at + 2] != bytes((0xFF, JPEG_SCAN)):
        code = data[at + 1]
        if data[at] != 0xFF or code in (0x00, 0xFF):
            end = at + 1
        elif code in _JPEG_ALONE:
            end = at + 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield at, end
        at = end


def _jpeg_strays(data: bytes, parts: Iterable[Span]) -> Iterator[Span]:
    """Exif segments behind the first."""
    frames = exif = 0
    for start, end in parts:
        frames += data[start] == 0xFF and data[start + 1] in _JPEG_FRAMES
        if frames > 1:
            raise ImageError(ErrorCode.UNDECODABLE, "JPEG with more than one frame header")
        if data.startswith(_APP1, start) and data.startswith(EXIF_PREFIX, start + 4):
            exif += 1
            if exif > 1:
                yield start, end


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Types and contents of a PNG's chunks."""
    for start, end in _png_spans(data):
        yield data[start + 4 : start + _PNG_HEAD_BYTES], data[start + _PNG_HEAD_BYTES : end - 4]


def _png_spans(data: bytes) -> Iterator[Span]:
    at = _PNG_SIGNATURE_BYTES
    while at < len(data):
        end = at + int.from_bytes(data[at : at + 4]) + _PNG_CHUNK_BYTES
        yield at, end
        at = end


def _png_strays(data: bytes, parts: Iterable[Span]) -> Iterator[Span]:
    """Texts and all else that does not shape the picture; twins; what is out of place, or not of its size."""
    palette = data[_PNG_COLOR_TYPE_AT : _PNG_COLOR_TYPE_AT + 1] == _PNG_PALETTE
    over = {b"tRNS"} if palette else set()  # it counts behind the palette
    for start, end in parts:
        kind = data[start + 4 : start + _PNG_HEAD_BYTES]
        if kind in _PNG_ONCE:
            if kind in over or _PNG_ONCE[kind] not in (None, end - start - _PNG_CHUNK_BYTES):
                yield start, end
            else:
                over.add(kind)
        elif kind == b"PLTE":
            over = over - {b"tRNS"} | _PNG_COLORS.keys()
        elif kind == b"IDAT":
            over |= _PNG_ONCE.keys()
        elif kind.isalpha() and kind[:1].islower() and kind not in _PNG_FRAMES:
            yield start, end


def gif_blocks(data: bytes) -> Iterator[Span]:
    """The beginnings and blocks of extensions, and stray bytes; then the head of the first frame."""
    flags = data[10] if len(data) > _GIF_HEADER_BYTES else 0
    at = _GIF_HEADER_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data) and data[at : at + 1] != b",":
        if data[at : at + 1] != b"!":
            yield at, at + 1
            at += 1
            continue
        yield at, at + 2
        at += 2
        while at < len(data) and (length := data[at]):
            yield at, at + length + 1
            at += length + 1
        at += 1
    yield at, at + _GIF_FRAME_BYTES


_WALKS: Final[Mapping[str, Callable[[bytes], Iterator[Span]]]] = {
    "JPEG": _jpeg_segments,
    "PNG": _png_spans,
    "GIF": gif_blocks,
}
_STRAYS: Final[Mapping[str, Callable[[bytes, Iterable[Span]], Iterator[Span]]]] = {
    "JPEG": _jpeg_strays,
    "PNG": _png_strays,
}
