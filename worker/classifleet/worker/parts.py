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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_APP2: Final = b"\xff\xe2"
_ICC_PREFIX: Final = b"ICC_PROFILE\0"
_ICC_NUMBER_AT: Final = 16  # in a segment with its marker and length; then how many there are
_ICC_MOST: Final = 255
_PNG_SIGNATURE_BYTES: Final = 8
_PNG_HEAD_BYTES: Final = 8  # length and type
_PNG_CHUNK_BYTES: Final = 12  # and checksum
_PNG_SIZE_AT: Final = 16
_PNG_COLOR_TYPE_AT: Final = 25
_PNG_FRAME_AT: Final = 12  # in a fcTL: width, height, left, top
_PNG_PALETTE: Final = b"\x03"
_PNG_COLORS: Final[Mapping[bytes, Sequence[int] | None]] = {
    b"cICP": (4,), b"iCCP": None, b"sRGB": (1,), b"gAMA": (4,), b"cHRM": (32,),
}  # fmt: skip
"""With the lengths that they may have. They count before the palette alone."""
_PNG_ONCE: Final[Mapping[bytes, Sequence[int] | None]] = {**_PNG_COLORS, b"eXIf": None, b"acTL": (8,)}
_PNG_TRANSPARENT: Final[Mapping[bytes, Sequence[int]]] = {b"\x00": (2,), b"\x02": (6,)}
"""The length of tRNS by the type of colours; behind a palette, at most its own."""
_PNG_FRAMES: Final = frozenset({b"fcTL", b"fdAT"})
_GIF_HEADER_BYTES: Final = 13
_GIF_FRAME_BYTES: Final = 10
_GIF_CONTROL: Final = b"!\xf9"
_GIF_HEAD_BYTES: Final = 2  # of an extension


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


def _jpeg_strays(data: bytes, parts: Iterable[Span]) -> list[Span]:
    """Exif segments behind the first, and those of a colour profile that is not whole."""
    frames = 0
    exif: list[Span] = []
    profile: list[Span] = []
    short: list[Span] = []  # none for libjpeg, and one too many for Pillow
    for start, end in parts:
        frames += data[start] == 0xFF and data[start + 1] in _JPEG_FRAMES
        if frames > 1:
            raise ImageError(ErrorCode.UNDECODABLE, "JPEG with more than one frame header")
        if data.startswith(_APP1, start) and data.startswith(EXIF_PREFIX, start + 4):
            exif.append((start, end))
        elif data.startswith(_APP2, start) and data.startswith(_ICC_PREFIX, start + 4):
            (profile if end - start >= _ICC_NUMBER_AT + 2 else short).append((start, end))
    return sorted(exif[1:] + short + ([] if _is_whole([data[start:end] for start, end in profile]) else profile))


def _is_whole(segments: Sequence[bytes]) -> bool:
    """Whether each says how many there are, and they are numbered from 1, as libjpeg has it."""
    count = len(segments)
    numbers = sorted(segment[_ICC_NUMBER_AT : _ICC_NUMBER_AT + 2] for segment in segments)
    return count <= _ICC_MOST and numbers == [bytes((number, count)) for number in range(1, count + 1)]


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


def _png_strays(data: bytes, parts: Iterable[Span]) -> list[Span]:
    """Texts and all else that does not shape the picture; twins; what is out of place, or not of its size."""
    color_type = data[_PNG_COLOR_TYPE_AT : _PNG_COLOR_TYPE_AT + 1]
    lengths: dict[bytes, Sequence[int] | None] = {**_PNG_ONCE, b"tRNS": _PNG_TRANSPARENT.get(color_type, ())}
    kept: dict[bytes, Span] = {}
    over: set[bytes] = set()
    strays = []
    for start, end in parts:
        kind, length = data[start + 4 : start + _PNG_HEAD_BYTES], end - start - _PNG_CHUNK_BYTES
        if kind in lengths:
            fitting = lengths[kind]
            if kind in over or (fitting is not None and length not in fitting):
                strays.append((start, end))
            else:
                over.add(kind)
                kept[kind] = start, end
        elif kind == b"PLTE" and b"IDAT" not in over:
            if kind in over:
                raise ImageError(ErrorCode.UNDECODABLE, "PNG with more than one palette")
            over |= {kind, *_PNG_COLORS}
            if color_type == _PNG_PALETTE:
                lengths[b"tRNS"] = range(1, length // 3 + 1)
        elif kind == b"IDAT":
            over |= {kind, *lengths}
        elif kind == b"fcTL" and b"IDAT" not in over:
            if b"acTL" not in kept or not _is_whole_frame(data, start):  # no animation, then, but one picture
                strays += [(start, end), *filter(None, [kept.pop(b"acTL", None)])]
        elif kind.isalpha() and kind[:1].islower() and kind not in _PNG_FRAMES:
            strays.append((start, end))
    return sorted(strays)


def _is_whole_frame(data: bytes, start: int) -> bool:
    """Whether a fcTL says that its frame, the first, is all of the picture, as it must be."""
    return data[start + _PNG_FRAME_AT : start + _PNG_FRAME_AT + 16] == data[_PNG_SIZE_AT : _PNG_SIZE_AT + 8] + bytes(8)


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


def _gif_strays(data: bytes, parts: Iterable[Span]) -> list[Span]:
    """Graphic controls before the last: Pillow believes what only an earlier one says."""
    controls = [
        start for start, end in parts if end - start == _GIF_HEAD_BYTES and data.startswith(_GIF_CONTROL, start)
    ]
    return [(start, _gif_extension_end(data, start)) for start in controls[:-1]]


def _gif_extension_end(data: bytes, start: int) -> int:
    at = start + _GIF_HEAD_BYTES
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


_WALKS: Final[Mapping[str, Callable[[bytes], Iterator[Span]]]] = {
    "JPEG": _jpeg_segments,
    "PNG": _png_spans,
    "GIF": gif_blocks,
}
_STRAYS: Final[Mapping[str, Callable[[bytes, Iterable[Span]], Iterable[Span]]]] = {
    "JPEG": _jpeg_strays,
    "PNG": _png_strays,
    "GIF": _gif_strays,
}
