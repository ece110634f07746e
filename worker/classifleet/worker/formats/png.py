"""PNG: chunks that shape the picture, as browsers read them.

Pillow keeps texts where it keeps real metadata: one named `exif` turns the picture, `interlace` or `bbox` ruins it. It
inflates each of them, and each colour profile; of twins it believes the last, and of some those behind the picture.
libpng, and so browsers, take the first, where the standard wants it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from PIL import PngImagePlugin

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats.parts import Span, counted, without

_SIGNATURE_BYTES: Final = 8
_HEAD_BYTES: Final = 8  # length and type
_HEADER_BYTES: Final = 13
_CHUNK_BYTES: Final = 12  # and checksum
_SIZE_AT: Final = 16
_DEPTH_AT: Final = 24
_COLOR_TYPE_AT: Final = 25
_CODINGS_AT, _INTERLACED_AT = 26, 28
_CODINGS: Final = (bytes(3), b"\0\0\1")  # of pixels: compression, filter, interlacing
_FRAME_AT: Final = 12  # in a fcTL: width, height, left, top
_PALETTE: Final = 3
_COLOR_BYTES: Final = 3
_COLORS: Final = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
"""They stand before the palette."""
_ONCE: Final[Mapping[bytes, Sequence[int] | None]] = {
    b"cICP": (4,), b"iCCP": None, b"sRGB": (1,), b"gAMA": (4,), b"cHRM": (32,), b"eXIf": None, b"acTL": (8,),
}  # fmt: skip
"""With the lengths that they may have."""
_FIRST_ALONE: Final = frozenset({b"iCCP"})
"""Nothing takes the place of a bad one; and each is inflated."""
_WRONG_SUM: Final = "incorrect data check"
_INTENTS: Final = range(4)
_NAME_BYTES: Final = range(1, 80)
_TRANSPARENT: Final[Mapping[int, int]] = {0: 2, 2: 6}
"""The length of tRNS by the type of colours; behind a palette, at most its own."""
_FRAME_WAYS: Final = frozenset(itertools.product(range(3), range(2)))  # how to dispose of it, and to blend it
_FRAMES: Final = frozenset({b"fcTL", b"fdAT"})
_CHANNELS: Final[Mapping[int, int]] = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_STEP: Final = 1 << 20


def as_browsers_read(data: bytes) -> bytes:
    """The file without texts and all else that does not shape the picture, twins, and what counts for nobody.

    That is what stands behind the pixels, or is not of its size.

    Raises:
        ImageError: `undecodable`: it has too many chunks, or browsers disagree about it.
    """
    parts = counted(_spans(data), "PNG")
    _check_pixels(data, parts)
    return without(data, _strays(data, parts))


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Types and contents of all chunks."""
    for start, end in _spans(data):
        yield data[start + 4 : start + _HEAD_BYTES], data[start + _HEAD_BYTES : end - 4]


def _spans(data: bytes) -> Iterator[Span]:
    at = _SIGNATURE_BYTES
    while at < len(data):
        end = at + int.from_bytes(data[at : at + 4]) + _CHUNK_BYTES
        yield at, end
        at = end


def _strays(data: bytes, parts: Sequence[Span]) -> list[Span]:
    kept: dict[bytes, Span] = {}
    over: set[bytes] = set()
    strays = []
    for start, end in parts:
        kind, length = data[start + 4 : start + _HEAD_BYTES], end - start - _CHUNK_BYTES
        if kind in _ONCE:
            if kind in over or not _counts(kind, data[start + _HEAD_BYTES : end - 4]):
                strays.append((start, end))
                over |= {kind} & _FIRST_ALONE
                continue
            if b"PLTE" in over and kind in _COLORS and not (kind == b"sRGB" and b"gAMA" not in over):  # says nothing
                raise ImageError(ErrorCode.UNDECODABLE, f"PNG with {kind.decode()} behind its palette")
            over.add(kind)
            kept[kind] = start, end
        elif kind == b"tRNS":
            if kind in over or not _is_key(data, start, length, kept.get(b"PLTE")):
                strays.append((start, end))
            else:
                over.add(kind)
        elif kind == b"PLTE" and b"IDAT" not in over:
            if kind in over:
                raise ImageError(ErrorCode.UNDECODABLE, "PNG with more than one palette")
            if length % _COLOR_BYTES:
                raise ImageError(ErrorCode.UNDECODABLE, "PNG with a part of a colour in its palette")
            over.add(kind)
            kept[kind] = start, end
        elif kind == b"IDAT":
            over |= {kind, b"tRNS", *_ONCE}
        elif kind == b"fcTL" and b"IDAT" not in over:
            if b"acTL" not in kept or not _is_whole_frame(data, start):  # no animation, then, but one picture
                strays += [(start, end), *filter(None, [kept.pop(b"acTL", None)])]
        elif kind.isalpha() and kind[:1].islower() and kind not in _FRAMES:
            strays.append((start, end))
    return sorted(strays)


def _check_pixels(data: bytes, parts: Iterable[Span]) -> None:
    """Refuse what browsers show in part or not at all, and Pillow in full, or in another way."""
    previous, begun = b"", False
    for start, end in parts:
        kind = data[start + 4 : start + _HEAD_BYTES]
        if kind == b"IHDR" and previous:  # Pillow believes it
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with more than one header")
        if kind == b"IHDR" and end - start != _CHUNK_BYTES + _HEADER_BYTES:
            raise ImageError(ErrorCode.UNDECODABLE, "PNG whose header is longer or shorter than it must be")
        if kind == b"IHDR" and end <= len(data) and data[_CODINGS_AT : _INTERLACED_AT + 1] not in _CODINGS:
            raise ImageError(ErrorCode.UNDECODABLE, "PNG of an unknown compression, filter or order")
        if kind == b"IDAT" != previous and begun:
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with something between its pixels (IDAT)")
        if kind == b"fdAT" and previous not in (b"fcTL", b"fdAT"):
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with something between the parts of a frame (fdAT)")
        if kind == b"acTL" and any(data[at] & 0x80 for at in (start + _HEAD_BYTES, end - 8) if at < len(data)):
            raise ImageError(ErrorCode.UNDECODABLE, "PNG of more frames than there can be (acTL)")
        if kind in (b"IDAT", b"fcTL") and end <= len(data):
            if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise ImageError(ErrorCode.UNDECODABLE, f"PNG with a wrong checksum of {kind.decode()}")
            if kind == b"fcTL" and tuple(data[end - 6 : end - 4]) not in _FRAME_WAYS:
                raise ImageError(ErrorCode.UNDECODABLE, "PNG with an unknown way to lay its frames")
        if kind == b"IEND":
            return
        previous, begun = kind, begun or kind == b"IDAT"
    raise ImageError(ErrorCode.UNDECODABLE, "PNG without its end (IEND): truncated")


def _counts(kind: bytes, body: bytes) -> bool:
    """Whether browsers read a chunk that stands where it may."""
    if kind == b"sRGB":
        return len(body) == 1 and body[0] in _INTENTS
    if kind == b"iCCP":
        name, _, profile = body.partition(b"\0")
        return len(name) in _NAME_BYTES and _is_inflatable(profile[1:])
    lengths = _ONCE[kind]
    return lengths is None or (len(body) in lengths and (kind != b"acTL" or any(body[:4])))  # no frames, no animation


def _is_inflatable(packed: bytes) -> bool:
    """Whether it ends where it should; Pillow takes what there is. One too long is left for it to refuse.

    Raises:
        ImageError: `undecodable`: it does, but its checksum is wrong, which Firefox does not look at.
    """
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error as error:
        if _WRONG_SUM in str(error):
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with a wrong checksum in its profile") from error
        return False
    return stream.eof or bool(stream.unconsumed_tail)


def _is_key(data: bytes, start: int, length: int, palette: Span | None) -> bool:
    """Whether a tRNS counts. One that is too long, or too large, does in one browser and does not in the next."""
    depth, color_type = data[_DEPTH_AT], data[_COLOR_TYPE_AT]
    if color_type == _PALETTE:
        most = (palette[1] - palette[0] - _CHUNK_BYTES) // _COLOR_BYTES if palette else 0
    else:
        most = _TRANSPARENT.get(color_type, 0)
    if length > most > 0:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG with more transparency (tRNS) than colours")
    if (
        color_type == 0
        and depth < 8
        and data[start + _HEAD_BYTES : start + _HEAD_BYTES + 2] >= (1 << depth).to_bytes(2)
    ):
        raise ImageError(ErrorCode.UNDECODABLE, "PNG with a transparent grey (tRNS) that it cannot have")
    return 0 < length <= most if color_type == _PALETTE else length == most > 0


def _is_whole_frame(data: bytes, start: int) -> bool:
    """Whether a fcTL says that its frame, the first, is all of the picture, as it must be."""
    return data[start + _FRAME_AT : start + _FRAME_AT + 16] == data[_SIZE_AT : _SIZE_AT + 8] + bytes(8)


def code_points(data: bytes) -> bytes:
    """The four bytes of the chunk cICP: primaries, transfer, matrix, full range. Empty if there is none."""
    head = itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", chunks(data))
    return next((body for kind, body in head if kind == b"cICP"), b"")


def is_interlaced(data: bytes) -> bool:
    """Whether its pixels come in passes."""
    return bool(data[_INTERLACED_AT])


def is_animated(data: bytes) -> bool:
    """Whether browsers will animate it; of a file that `as_browsers_read` gave."""
    return any(kind == b"acTL" for kind, _ in chunks(data))


def palette_colors(data: bytes) -> int:
    """How many colours the palette of a picture of indices has."""
    return next((len(body) // _COLOR_BYTES for kind, body in chunks(data) if kind == b"PLTE"), 0)


def refuse_short(data: bytes, size: tuple[int, int]) -> None:
    """Refuse a PNG whose pixels end before its last row; Pillow takes it, and shows the rest in black.

    Raises:
        ImageError: `undecodable`.
    """
    bits, color_type, _, _, interlaced = data[_DEPTH_AT : _DEPTH_AT + 5]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        width, height = (
            max(0, -(-(side - at) // step)) for side, at, step in zip(size, (left, top), (right, down), strict=True)
        )
        wanted += height * (1 + -(-width * bits * _CHANNELS[color_type] // 8)) if width else 0
    stream, found = zlib.decompressobj(), 0
    for kind, body in chunks(data):
        while kind == b"IDAT" and body and found < wanted:
            found += len(stream.decompress(body, _STEP))
            body = stream.unconsumed_tail
    if found < wanted:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG whose pixels end before its last row")
