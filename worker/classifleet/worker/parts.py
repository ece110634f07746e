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
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from PIL import PngImagePlugin

from classifleet.config.errors import ErrorCode, ImageError

MAX_PARTS: Final = 20_000
"""Segments, chunks or blocks that Pillow would walk through. A 20 MiB PNG in chunks of 4 KiB has 5,000."""
Span = tuple[int, int]
"""Where a part begins and ends; the last may end behind the file."""
JPEG_SCAN: Final = 0xDA
JPEG_END: Final = 0xD9
_EXIF_PREFIX: Final = b"Exif\0"
_EXIF_PREFIX_BYTES: Final = 6  # the last has any value
_JPEG_START_BYTES, _JPEG_LENGTH_BYTES = 2, 2
_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xDE}) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE: Final = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # Pillow reads no length there
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # what stands alone is left out
_APP1: Final = b"\xff\xe1"
_APP2: Final = b"\xff\xe2"
_ICC_PREFIX: Final = b"ICC_PROFILE\0"
_ICC_NUMBER_AT: Final = 16  # in a segment with its marker and length; then how many there are
_ICC_AT: Final = 18
_PNG_SIGNATURE_BYTES: Final = 8
_PNG_HEAD_BYTES: Final = 8  # length and type
_PNG_CHUNK_BYTES: Final = 12  # and checksum
_PNG_SIZE_AT: Final = 16
_PNG_DEPTH_AT: Final = 24
_PNG_COLOR_TYPE_AT: Final = 25
_PNG_FRAME_AT: Final = 12  # in a fcTL: width, height, left, top
_PNG_PALETTE: Final = 3
_PNG_COLORS: Final = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
"""They stand before the palette."""
_PNG_ONCE: Final[Mapping[bytes, Sequence[int] | None]] = {
    b"cICP": (4,), b"iCCP": None, b"sRGB": (1,), b"gAMA": (4,), b"cHRM": (32,), b"eXIf": None, b"acTL": (8,),
}  # fmt: skip
"""With the lengths that they may have."""
_PNG_FIRST_ALONE: Final = frozenset({b"iCCP"})
"""Nothing takes the place of a bad one; and each is inflated."""
_PNG_INTENTS: Final = range(4)
_PNG_NAME_BYTES: Final = range(1, 80)
_PNG_TRANSPARENT: Final[Mapping[int, int]] = {0: 2, 2: 6}
"""The length of tRNS by the type of colours; behind a palette, at most its own."""
_PNG_FRAME_WAYS: Final = frozenset(itertools.product(range(3), range(2)))  # how to dispose of it, and to blend it
_PNG_FRAMES: Final = frozenset({b"fcTL", b"fdAT"})
_BMP_MASKS_AT: Final = 54
_BMP_BY_MASKS: Final = 3
_BMP_HEAD_BYTES, _BMP_INFO_BYTES = 14, 40
_BMP_ALPHA_BYTES, _BMP_V4_BYTES = 56, 108
_WEBP_HEAD_BYTES: Final = 20
_WEBP_HINT_AT: Final = 24
_WEBP_ALPHA: Final = 0x10  # in the flags of a head, and in the last byte of a lossless picture's
_GIF_HEADER_BYTES: Final = 13
_GIF_FRAME_BYTES: Final = 10
_GIF_FLAGS_AT: Final = 10
_GIF_HAS_PALETTE: Final = 0x80
_GIF_CONTROL: Final = b"!\xf9"
_GIF_HEAD_BYTES: Final = 2  # of an extension


def as_browsers_read(data: bytes, kind: str) -> bytes:
    """The file without what Pillow would believe and browsers do not read. Most come back as they are.

    Raises:
        ImageError: `undecodable`: it has too many parts, or two frames where there can be one.
    """
    if kind in _REWRITES:
        return _REWRITES[kind](data)
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
    """Exif segments behind the first, and those of a colour profile that are too short for Pillow."""
    frames = 0
    exif: list[Span] = []
    short: list[Span] = []
    for start, end in parts:
        frames += data[start] == 0xFF and data[start + 1] in _JPEG_FRAMES
        if frames > 1:
            raise ImageError(ErrorCode.UNDECODABLE, "JPEG with more than one frame header")
        if _is_exif(data, start, end):
            exif.append((start, end))
        elif _is_profile(data, start) and end - start < _ICC_AT:
            short.append((start, end))
    return sorted(exif[1:] + short)


def _is_exif(data: bytes, start: int, end: int) -> bool:
    return (
        data.startswith(_APP1, start)
        and data.startswith(_EXIF_PREFIX, start + 4)
        and end - start > 4 + _EXIF_PREFIX_BYTES  # browsers pass over an empty one
    )


def jpeg_exif(data: bytes) -> bytes:
    """The first Exif block of a JPEG, the one that counts, without its prefix; empty if there is none."""
    spans = ((start, end) for start, end in _jpeg_segments(data) if _is_exif(data, start, end))
    return next((data[start + 4 + _EXIF_PREFIX_BYTES : end] for start, end in spans), b"")


def jpeg_profile(data: bytes) -> bytes:
    """A JPEG's colour profile, be it behind the frame header, where Pillow does not look; empty if it is not whole.

    As browsers join it: of segments until each number that there is has come once.
    """
    found: dict[int, bytes] = {}
    counts = set()
    for start, end in _jpeg_segments(data):
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


def _is_profile(data: bytes, start: int) -> bool:
    return data.startswith(_APP2, start) and data.startswith(_ICC_PREFIX, start + 4)


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


def _check_png_data(data: bytes, parts: Iterable[Span]) -> None:
    """Refuse what browsers show in part or not at all, and Pillow in full, or in another way."""
    previous, begun = b"", False
    for start, end in parts:
        kind = data[start + 4 : start + _PNG_HEAD_BYTES]
        if kind == b"IHDR" and previous:  # Pillow believes it
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with more than one header")
        if kind == b"IDAT" != previous and begun:
            raise ImageError(ErrorCode.UNDECODABLE, "PNG with something between its pixels (IDAT)")
        if kind in (b"IDAT", b"fcTL") and end <= len(data):
            if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise ImageError(ErrorCode.UNDECODABLE, f"PNG with a wrong checksum of {kind.decode()}")
            if kind == b"fcTL" and tuple(data[end - 6 : end - 4]) not in _PNG_FRAME_WAYS:
                raise ImageError(ErrorCode.UNDECODABLE, "PNG with an unknown way to lay its frames")
        previous, begun = kind, begun or kind == b"IDAT"


def _png_strays(data: bytes, parts: Sequence[Span]) -> list[Span]:
    """Texts and all else that does not shape the picture; twins; what stands behind the pixels, or is not of its size.

    Raises:
        ImageError: `undecodable`: browsers disagree about it.
    """
    _check_png_data(data, parts)
    kept: dict[bytes, Span] = {}
    over: set[bytes] = set()
    strays = []
    for start, end in parts:
        kind, length = data[start + 4 : start + _PNG_HEAD_BYTES], end - start - _PNG_CHUNK_BYTES
        if kind in _PNG_ONCE:
            if kind in over or not _counts(kind, data[start + _PNG_HEAD_BYTES : end - 4]):
                strays.append((start, end))
                over |= {kind} & _PNG_FIRST_ALONE
                continue
            if b"PLTE" in over and kind in _PNG_COLORS:
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
            over.add(kind)
            kept[kind] = start, end
        elif kind == b"IDAT":
            over |= {kind, b"tRNS", *_PNG_ONCE}
        elif kind == b"fcTL" and b"IDAT" not in over:
            if b"acTL" not in kept or not _is_whole_frame(data, start):  # no animation, then, but one picture
                strays += [(start, end), *filter(None, [kept.pop(b"acTL", None)])]
        elif kind.isalpha() and kind[:1].islower() and kind not in _PNG_FRAMES:
            strays.append((start, end))
    return sorted(strays)


def _counts(kind: bytes, body: bytes) -> bool:
    """Whether browsers read a chunk that stands where it may."""
    if kind == b"sRGB":
        return len(body) == 1 and body[0] in _PNG_INTENTS
    if kind == b"iCCP":
        name, _, profile = body.partition(b"\0")
        return len(name) in _PNG_NAME_BYTES and _is_inflatable(profile[1:])
    lengths = _PNG_ONCE[kind]
    return lengths is None or (len(body) in lengths and (kind != b"acTL" or any(body[:4])))  # no frames, no animation


def _is_inflatable(packed: bytes) -> bool:
    """Whether it ends where it should; Pillow takes what there is. One too long is left for it to refuse."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return stream.eof or bool(stream.unconsumed_tail)


def _is_key(data: bytes, start: int, length: int, palette: Span | None) -> bool:
    """Whether a tRNS counts. One that is too long, or too large, does in one browser and does not in the next."""
    depth, color_type = data[_PNG_DEPTH_AT], data[_PNG_COLOR_TYPE_AT]
    if color_type == _PNG_PALETTE:
        most = (palette[1] - palette[0] - _PNG_CHUNK_BYTES) // 3 if palette else 0
    else:
        most = _PNG_TRANSPARENT.get(color_type, 0)
    if length > most > 0:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG with more transparency (tRNS) than colours")
    if (
        color_type == 0
        and depth < 8
        and data[start + _PNG_HEAD_BYTES : start + _PNG_HEAD_BYTES + 2] >= (1 << depth).to_bytes(2)
    ):
        raise ImageError(ErrorCode.UNDECODABLE, "PNG with a transparent grey (tRNS) that it cannot have")
    return 0 < length <= most if color_type == _PNG_PALETTE else length == most > 0


def _is_whole_frame(data: bytes, start: int) -> bool:
    """Whether a fcTL says that its frame, the first, is all of the picture, as it must be."""
    return data[start + _PNG_FRAME_AT : start + _PNG_FRAME_AT + 16] == data[_PNG_SIZE_AT : _PNG_SIZE_AT + 8] + bytes(8)


def gif_blocks(data: bytes) -> Iterator[Span]:
    """The beginnings and blocks of extensions, and stray bytes; then the head of the first frame."""
    flags = data[_GIF_FLAGS_AT] if len(data) > _GIF_HEADER_BYTES else 0
    at = _GIF_HEADER_BYTES + (3 << (flags & 7) + 1 if flags & _GIF_HAS_PALETTE else 0)
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


def _gif_strays(data: bytes, parts: Sequence[Span]) -> list[Span]:
    """Graphic controls before the last: Pillow believes what only an earlier one says.

    Refused is what Pillow shows and browsers do not: what stands behind a stray byte, and grey for want of a palette.
    """
    if any(end - start == 1 for start, end in parts):
        raise ImageError(ErrorCode.UNDECODABLE, "GIF with stray bytes between its blocks")
    frame_end = parts[-1][1]
    if not (data[_GIF_FLAGS_AT] | data[frame_end - 1 : frame_end].ljust(1, b"\0")[0]) & _GIF_HAS_PALETTE:
        raise ImageError(ErrorCode.UNDECODABLE, "GIF without a palette")
    controls = [
        start for start, end in parts if end - start == _GIF_HEAD_BYTES and data.startswith(_GIF_CONTROL, start)
    ]
    return [(start, _gif_extension_end(data, start)) for start in controls[:-1]]


def _gif_extension_end(data: bytes, start: int) -> int:
    at = start + _GIF_HEAD_BYTES
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def _bmp_with_alpha(data: bytes) -> bytes:
    """Say that a BMP has bit masks where it names one for alpha: Pillow does not look for it elsewhere.

    Raises:
        ImageError: `unsupported_format`: of 16 bits, Pillow knows no alpha. `undecodable`: colours or pixels would be
            read from elsewhere than in browsers.
    """
    if len(data) < _BMP_MASKS_AT + 16:
        return data
    begin, size, _, _, _, bits, coding = struct.unpack_from("<IIiiHHI", data, 10)
    (colors,) = struct.unpack_from("<I", data, 46)
    palette = 4 * (colors or 1 << bits) if bits <= 8 else 0
    if size >= _BMP_INFO_BYTES and (begin < _BMP_HEAD_BYTES + size + palette or palette > 4 << bits):
        raise ImageError(ErrorCode.UNDECODABLE, "BMP whose pixels or palette are out of place")
    *_, alpha = struct.unpack_from("<4I", data, _BMP_MASKS_AT)
    if size < _BMP_ALPHA_BYTES or not alpha:
        return data
    if bits == 16:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP of 16 bits a pixel with transparency")
    if size < _BMP_V4_BYTES or bits != 32 or coding:
        return data
    masks = struct.pack("<I", _BMP_BY_MASKS) + data[34:_BMP_MASKS_AT] + struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    return data[:30] + masks + data[_BMP_MASKS_AT + 12 :]


def _webp_with_alpha(data: bytes) -> bytes:
    """Say that a lossless WEBP may be transparent, and an animated one whose first frame leaves a part out.

    Pillow shows colours that are clear where it is not said, and black.
    """
    flags_at, frame = _WEBP_HEAD_BYTES, data.find(b"ANMF", _WEBP_HEAD_BYTES)
    if data.startswith(b"VP8L", 12) and len(data) > _WEBP_HINT_AT:
        length = int.from_bytes(data[16:_WEBP_HEAD_BYTES], "little")
        if data.startswith(b"ALPH", _WEBP_HEAD_BYTES + length + length % 2):
            raise ImageError(ErrorCode.UNDECODABLE, "WEBP with its transparency twice")
        hint = bytes((data[_WEBP_HINT_AT] | _WEBP_ALPHA,))  # browsers obey transparency without it
        return data[:_WEBP_HINT_AT] + hint + data[_WEBP_HINT_AT + 1 :]
    if not data.startswith(b"VP8X", 12) or frame < 0 or data[flags_at] & _WEBP_ALPHA:
        return data
    size = data[flags_at + 4 : flags_at + 10]
    if data[frame + 8 : frame + 20] == bytes(6) + size:
        return data
    return data[:flags_at] + bytes((data[flags_at] | _WEBP_ALPHA,)) + data[flags_at + 1 :]


_REWRITES: Final[Mapping[str, Callable[[bytes], bytes]]] = {"BMP": _bmp_with_alpha, "WEBP": _webp_with_alpha}
_WALKS: Final[Mapping[str, Callable[[bytes], Iterator[Span]]]] = {
    "JPEG": _jpeg_segments,
    "PNG": _png_spans,
    "GIF": gif_blocks,
}
_STRAYS: Final[Mapping[str, Callable[[bytes, Sequence[Span]], Iterable[Span]]]] = {
    "JPEG": _jpeg_strays,
    "PNG": _png_strays,
    "GIF": _gif_strays,
}
