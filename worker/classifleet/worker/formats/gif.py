"""GIF: blocks before the first frame, as browsers read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats.parts import Span, counted, without

_SECOND_VERSION: Final = b"GIF89a"
_HEADER_BYTES: Final = 13
_FRAME_BYTES: Final = 10
_FLAGS_AT: Final = 10
_HAS_PALETTE: Final = 0x80
_CODE_BITS: Final = frozenset({b"", *(bytes((bits,)) for bits in range(2, 9))})  # or the file ends
_CONTROL: Final = b"!\xf9"
_HEAD_BYTES: Final = 2  # of an extension


def as_browsers_read(data: bytes) -> bytes:
    """The file without graphic controls before the last: Pillow believes what only an earlier one says.

    Raises:
        ImageError: `undecodable`: too many parts, or what Pillow shows and browsers do not: what stands behind a
            stray byte, grey for want of a palette, and codes of a length that no palette needs.
    """
    parts = counted(_blocks(data), "GIF")
    if any(end - start == 1 for start, end in parts):
        raise ImageError(ErrorCode.UNDECODABLE, "GIF with stray bytes between its blocks")
    frame_end = parts[-1][1]
    if frame_end > len(data):
        return data  # truncated: there is no frame
    if not _is_in_place(data):
        raise ImageError(ErrorCode.UNDECODABLE, "GIF whose first frame is not where its canvas is")
    flags = data[frame_end - 1]
    if not (data[_FLAGS_AT] | flags) & _HAS_PALETTE:
        raise ImageError(ErrorCode.UNDECODABLE, "GIF without a palette")
    if data[frame_end + _palette_bytes(flags) :][:1] not in _CODE_BITS:
        raise ImageError(ErrorCode.UNDECODABLE, "GIF whose codes are not of 2 to 8 bits at first")
    heads = (start for start, end in parts if end - start == _HEAD_BYTES)
    controls = [start for start in heads if data.startswith(_CONTROL, start)]
    return without(data, ((start, _extension_end(data, start)) for start in controls[:-1]))


def canvas_size(data: bytes) -> tuple[int, int]:
    """Width and height, enlarged by what a first frame needs; Pillow may fill as much while it opens the file."""
    width, height, left, top, columns, rows = _places(data)
    return max(width, left + columns, 1), max(height, top + rows, 1)


def palette_colors(data: bytes) -> int:
    """How many colours the palette of the first frame has."""
    *_, (_, end) = _blocks(data)
    flags = data[end - 1] if data[end - 1] & _HAS_PALETTE else data[_FLAGS_AT]
    return _palette_bytes(flags) // 3


def _is_in_place(data: bytes) -> bool:
    """Whether all programs see the same canvas.

    Chromium enlarges one that a frame leaves, Firefox moves the frame to the corner or cuts it, and always takes the
    frame's size in the first version.
    """
    width, height, left, top, columns, rows = _places(data)
    if (left, top) == (0, 0) and columns >= width and rows >= height:
        return True
    return data.startswith(_SECOND_VERSION) and left + columns <= width and top + rows <= height


def _places(data: bytes) -> list[int]:
    """Width and height of the canvas; left, top, width and height of the first frame."""
    *_, (frame, _) = _blocks(data)
    at = (6, 8, frame + 1, frame + 3, frame + 5, frame + 7)
    return [int.from_bytes(data[n : n + 2], "little") for n in at]


def _blocks(data: bytes) -> Iterator[Span]:
    """The beginnings and blocks of extensions, and stray bytes; then the head of the first frame."""
    flags = data[_FLAGS_AT] if len(data) > _HEADER_BYTES else 0
    at = _HEADER_BYTES + _palette_bytes(flags)
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
    yield at, at + _FRAME_BYTES


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_PALETTE else 0


def _extension_end(data: bytes, start: int) -> int:
    at = start + _HEAD_BYTES
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
