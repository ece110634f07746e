"""From bytes to an opened picture whose header is known to be harmless: nothing of its size is allocated before.

Whatever a format lets a header hide is looked for here. Facts:

- Pillow's own bomb check warns at 89 megapixels and raises at 179.
- Opening a WEBP allocates its canvas twice. A GIF's first frame enlarges its canvas, which opening may allocate.
- Pillow walks the parts of a file in Python, holding the GIL: 20 MiB of empty ones take it 5 to 30 seconds.
- It also expands run-length coded BMPs in Python, and paints what they leave out: browsers leave it clear.
- Pillow warns through `warnings`, whose `catch_warnings` swaps a list that all threads share. Our filter is installed
  once, and again when someone (pytest does) has put an older list back.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import (
    Image,
    ImageFile,
    PngImagePlugin,
    WebPImagePlugin,  # noqa: F401 - registers WEBP; otherwise Image.open imports every plugin there is
)

from classifleet.config.errors import ErrorCode, ImageError

MAX_SCANS: Final = 100
"""Of a JPEG, progressive or not; encoders write about 10. Each costs a pass over the whole picture, and 10 bytes."""
MAX_SCANNED_PIXELS: Final = 1_500_000_000
"""Of all scans of a JPEG together: 30 at 50 megapixels. 99 empty ones at 49 megapixels took 2.3 s."""
MAX_PARTS: Final = 20_000
"""Segments, chunks or blocks that Pillow would walk through. A 20 MiB PNG in chunks of 4 KiB has 5,000."""
JPEG_END: Final = b"\xff\xd9"
_JPEG_START: Final = b"\xff\xd8"
_SCAN: Final = b"\xff\xda"
_ALONE: Final = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # Pillow reads no length after these
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # what stands alone is left out
_MAGIC: Final = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
)
_RUN_LENGTH_CODED: Final = (1, 2)
_PNG_SIGNATURE_BYTES: Final = 8
_PNG_CHUNK_BYTES: Final = 12  # length, type and checksum
_GIF_HEADER_BYTES: Final = 13
FORMATS: Final = tuple(kind for kind, _ in _MAGIC)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is decoded. Above 178 megapixels Pillow refuses whatever `max_pixels` allows.

    `lenient` completes a JPEG whose end is missing with grey, and says so in `info`; other formats that are cut stay
    errors. `exact` decodes every JPEG in full.
    """

    max_pixels: int = 50_000_000
    max_side: int = 65_500
    truncated: Literal["strict", "lenient"] = "strict"
    exact: bool = False


def sniff(data: bytes) -> str:
    """The format, by the first bytes.

    Raises:
        ImageError: `unsupported_format`.
    """
    for kind, magic in _MAGIC:
        if magic.match(data):
            return kind
    raise ImageError(
        ErrorCode.UNSUPPORTED_FORMAT, f"not one of {', '.join(FORMATS)}: {len(data)} bytes, first {data[:8]!r}"
    )


def open_image(data: bytes, kind: str, limits: DecodeLimits) -> ImageFile.ImageFile:
    """Read the header alone; of an animation, that of the first frame.

    Args:
        data: The file.
        kind: What `sniff` found.
        limits: What is refused.

    Raises:
        ImageError: `too_many_pixels`, `undecodable`.
        Exception: Whatever Pillow raises on hostile bytes.
    """
    if kind == "WEBP":
        _check_size(_webp_size(data), kind, limits)
    if _parts(data, kind) > MAX_PARTS:
        raise ImageError(ErrorCode.UNDECODABLE, f"{kind} of more than {MAX_PARTS} parts")
    if kind == "GIF":
        _check_size(_gif_size(data), kind, limits)
    image = Image.open(io.BytesIO(data), formats=(kind,))
    _check_size(image.size, kind, limits)
    if kind == "BMP" and image.info.get("compression") in _RUN_LENGTH_CODED:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP with run-length coding")
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height or 1))
    if kind == "JPEG" and _scans(data, most) > most:
        raise ImageError(ErrorCode.UNDECODABLE, f"{kind} with more than {most} scans")
    if isinstance(image, PngImagePlugin.PngImageFile) and image.default_image:
        return _after_default_image(image) or Image.open(io.BytesIO(data), formats=(kind,))
    return image


def _after_default_image(image: PngImagePlugin.PngImageFile) -> PngImagePlugin.PngImageFile | None:
    """The first frame of an animated PNG whose `IDAT` is only for programs that cannot animate: browsers can.

    None if there is no such frame: then browsers, too, fall back on the default image.
    """
    image.dispose_op = PngImagePlugin.Disposal.OP_BACKGROUND  # or the frame is laid over what nobody sees
    image.dispose_extent = (0, 0, *image.size)
    try:
        image.seek(1)
    except (SyntaxError, EOFError):
        return None
    return image


def _check_size(size: tuple[int, int], kind: str, limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        allowed = f"{limits.max_pixels} pixels, {limits.max_side} a side"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} pixels; allowed are {allowed}")
    if min(width, height) < 1:
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: {width} x {height} pixels")


def _parts(data: bytes, kind: str) -> int:
    """How many parts Pillow will walk through, or a number above the limit."""
    walk = {"JPEG": _jpeg_segments, "PNG": _png_chunks, "GIF": _gif_blocks}.get(kind)
    return 0 if walk is None else sum(1 for _ in itertools.islice(walk(data), MAX_PARTS + 1))


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Offsets of what stands before the first scan: segments, and single bytes of padding or junk."""
    at = 0
    while at + 1 < len(data) and data[at : at + 2] != _SCAN:
        yield at
        code = data[at + 1]
        if data[at] != _SCAN[0] or code in (0x00, 0xFF):
            at += 1
        elif code in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def _png_chunks(data: bytes) -> Iterator[int]:
    at = _PNG_SIGNATURE_BYTES
    while at < len(data):
        yield at
        at += int.from_bytes(data[at : at + 4]) + _PNG_CHUNK_BYTES


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Offsets of the first frame, and of what stands before it: the blocks of extensions, and stray bytes."""
    flags = data[10] if len(data) > _GIF_HEADER_BYTES else 0
    at = _GIF_HEADER_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data) and data[at : at + 1] != b",":
        yield at
        if data[at : at + 1] != b"!":
            at += 1
            continue
        at += 2
        while at < len(data) and (length := data[at]):
            yield at
            at += length + 1
        at += 1
    yield at


def _gif_size(data: bytes) -> tuple[int, int]:
    """Of the canvas, enlarged by what a first frame needs; Pillow may fill as much while it opens the file."""
    *_, frame = _gif_blocks(data)
    at = (6, 8, frame + 1, frame + 3, frame + 5, frame + 7)
    width, height, left, top, columns, rows = (int.from_bytes(data[n : n + 2], "little") for n in at)
    return max(width, left + columns, 1), max(height, top + rows, 1)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk; 1 x 1 for what is no WEBP, which libwebp then refuses."""
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return max(width, 1), max(height, 1)
    return 1, 1


def _scans(data: bytes, most: int) -> int:
    """Scans of a JPEG's first picture. Walks it only where a count is too high: a video may follow the picture."""
    octets = np.frombuffer(data, np.uint8)  # a count of two bytes takes five times as long
    scans = int(np.count_nonzero((octets[:-1] == _SCAN[0]) & (octets[1:] == _SCAN[1])))
    if scans <= most:
        return scans
    scans, at = 0, len(_JPEG_START)
    while marker := _MARKER.search(data, at):
        code = marker[0][-1:]
        if code == JPEG_END[1:]:
            break
        scans += code == _SCAN[1:]
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


_PILLOW_MODULES: Final = r"PIL\."
_QUIET: Final = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)
_quiet_lock = threading.Lock()


def quiet_pillow() -> None:
    """Ignore what Pillow's own modules warn of, such as odd EXIF blocks; see the module's facts."""
    if _QUIET in warnings.filters:
        return
    with _quiet_lock:  # filterwarnings takes an equal entry out before it puts it in front
        if _QUIET not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
