"""From bytes to an opened picture whose header is known to be harmless: nothing of its size is allocated before.

Whatever a format lets a header hide is looked for here. Facts:

- Pillow's own bomb check warns at 89 megapixels and raises at 179.
- Opening a WEBP allocates its canvas twice. A GIF's first frame enlarges its canvas, which opening may allocate.
- Pillow expands run-length coded BMPs in Python, and paints what they leave out: browsers leave it clear.
- Pillow warns through `warnings`, whose `catch_warnings` swaps a list that all threads share. Our filter is installed
  once, and again when someone (pytest does) has put an older list back.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from PIL import (
    Image,
    ImageFile,
    PngImagePlugin,
    WebPImagePlugin,  # noqa: F401 - registers WEBP; otherwise Image.open imports every plugin there is
)

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.parts import JPEG_END, JPEG_SCAN, MAX_PARTS, gif_blocks, jpeg_markers
from classifleet.worker.pixel_room import Take

MAX_SCANS: Final = 100
"""Of a JPEG, progressive or not; encoders write about 10. Each costs a pass over the whole picture, and 10 bytes."""
MAX_SCANNED_PIXELS: Final = 1_500_000_000
"""Of all scans of a JPEG together: 30 at 50 megapixels. 99 empty ones at 49 megapixels took 2.3 s."""
_MAGIC: Final = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
)
_RUN_LENGTH_CODED: Final = (1, 2)
_TIFF_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}  # Pillow takes others, too; browsers do not
_TIFF_HEADER_BYTES: Final = 8
_TIFF_ENTRY: Final = "HHIHH"
_TIFF_SHORT, _TIFF_LONG = 3, 4
_EXIF_ORIENTATION: Final = 0x112
_EXIF_SUB_DIRECTORY: Final = 0x8769
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


def open_image(data: bytes, kind: str, limits: DecodeLimits, take: Take = lambda pixels: None) -> ImageFile.ImageFile:
    """Read the header alone; of an animation, that of the first frame.

    Args:
        data: The file, as `as_browsers_read` gives it.
        kind: What `sniff` found.
        limits: What is refused.
        take: Told the pixels of what is allocated while it is opened.

    Raises:
        ImageError: `too_many_pixels`, `undecodable`.
        Exception: Whatever Pillow raises on hostile bytes.
    """
    if kind in _ALLOCATED:
        size = _ALLOCATED[kind](data)
        _check_size(size, kind, limits)
        take(size[0] * size[1])
    image = Image.open(io.BytesIO(data), formats=(kind,))
    _check_size(image.size, kind, limits)
    if kind == "BMP" and image.info.get("compression") in _RUN_LENGTH_CODED:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP with run-length coding")
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height or 1))
    if kind == "JPEG" and _scans(data, most) > most:
        raise ImageError(ErrorCode.UNDECODABLE, f"{kind} with more than {most} scans")
    if isinstance(image, PngImagePlugin.PngImageFile) and image.default_image:
        take(image.width * image.height)
        _seek_after_default_image(image)
    return image


def _seek_after_default_image(image: PngImagePlugin.PngImageFile) -> None:
    """To the first frame of an animated PNG whose `IDAT` is only for programs that cannot animate: browsers can."""
    image.dispose_op = PngImagePlugin.Disposal.OP_BACKGROUND  # or the frame is laid over what nobody sees
    image.dispose_extent = (0, 0, *image.size)
    try:
        image.seek(1)
    except (SyntaxError, EOFError) as error:  # then browsers show nothing, not the default image
        raise ImageError(ErrorCode.UNDECODABLE, "animated PNG without a first frame") from error


def _check_size(size: tuple[int, int], kind: str, limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        allowed = f"{limits.max_pixels} pixels, {limits.max_side} a side"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} pixels; allowed are {allowed}")
    if min(width, height) < 1:
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: {width} x {height} pixels")


def _gif_size(data: bytes) -> tuple[int, int]:
    """Of the canvas, enlarged by what a first frame needs; Pillow may fill as much while it opens the file."""
    *_, (frame, _) = gif_blocks(data)
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


_ALLOCATED: Final = {"GIF": _gif_size, "WEBP": _webp_size}
"""The formats that take memory for their pixels when they are opened, and how large those say they are."""


_SCAN: Final = re.compile(bytes((0xFF, JPEG_SCAN)))  # three times as fast as `bytes.count`


def _scans(data: bytes, most: int) -> int:
    """Scans of a JPEG's first picture. Walks it only where a count is too high: a video may follow the picture."""
    scans = sum(1 for _ in islice(_SCAN.finditer(data), most + 1))
    if scans <= most:
        return scans
    scans = 0
    for code in jpeg_markers(data):
        scans += code == JPEG_SCAN
        if code == JPEG_END or scans > most:
            break
    return scans


def exif_orientation(block: bytes) -> int:
    """The first orientation in an Exif block that is one, 1 to 8; 1 if there is none.

    Raises:
        ImageError: `undecodable`: it has too many entries; directories may hold each other.
    """
    order = _TIFF_ORDERS.get(block[:4])
    if order is None or len(block) < _TIFF_HEADER_BYTES:
        return 1
    (at,) = struct.unpack_from(order + "I", block, 4)
    for number, (tag, kind, count, value) in enumerate(_exif_entries(block, order, at, is_root=True)):
        if number == MAX_PARTS:
            raise ImageError(ErrorCode.UNDECODABLE, f"Exif block of more than {MAX_PARTS} entries")
        if (tag, kind, count) == (_EXIF_ORIENTATION, _TIFF_SHORT, 1) and value in range(1, 9):
            return value
    return 1


def _exif_entries(block: bytes, order: str, at: int, *, is_root: bool) -> Iterator[tuple[int, int, int, int]]:
    """Tags, types, counts and first two bytes; behind its pointer, those of the directory of the camera's data."""
    if at + 2 > len(block):
        return
    entry = struct.Struct(order + _TIFF_ENTRY)
    (entries,) = struct.unpack_from(order + "H", block, at)
    for place in range(at + 2, min(at + 2 + entries * entry.size, len(block) - entry.size + 1), entry.size):
        tag, kind, count, value, _ = entry.unpack_from(block, place)
        yield tag, kind, count, value
        if is_root and (tag, kind, count) == (_EXIF_SUB_DIRECTORY, _TIFF_LONG, 1):
            (sub,) = struct.unpack_from(order + "I", block, place + _TIFF_HEADER_BYTES)
            yield from _exif_entries(block, order, sub, is_root=False)


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
