"""Untrusted bytes to pixels: a pure function, no file, no network, no state.

    bytes ──sniff──► one Pillow plugin ──► header: size limits ──► (JPEG: DCT scaling) ──► load
          ──► EXIF orientation ──► RGB, laid on each background that a model asks for

Whatever Pillow raises becomes one `ImageError` with one permanent `ErrorCode`. Facts about Pillow that shape this:

- Its bomb check warns at 89 megapixels and raises at 179; ours stands between reading the header and `load`.
- It warns through `warnings`, whose `catch_warnings` swaps a list that all threads share. Our filter is installed
  once, and again when someone (pytest does) has put an older list back.
- `LOAD_TRUNCATED_IMAGES` is process-wide. Instead, an end marker is appended to a cut JPEG: libjpeg then fills what
  is missing with grey.
- Colour profiles are not applied, as in the training pipelines of every model known to us.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import (
    ExifTags,
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - registers WEBP; otherwise Image.open imports every plugin there is
)

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.record import ImageInfo
from classifleet.worker.models.description import Color, Preprocess
from classifleet.worker.preprocess import Box, Picture, scaled_size

DRAFT_MARGIN: Final = 2
"""A JPEG is decoded at no less than this many times the size it will be resized to."""
WHITE: Final[Color] = (255, 255, 255)
_JPEG_END: Final = b"\xff\xd9"
_MAGIC: Final = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
)
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is decoded. Above 178 megapixels Pillow refuses whatever `max_pixels` allows.

    `lenient` completes a JPEG whose end is missing with grey, and says so in `Decoded.truncated`; other formats that
    are cut stay errors.
    """

    max_pixels: int = 50_000_000
    max_side: int = 65_500
    truncated: Literal["strict", "lenient"] = "strict"


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the record says of a decoded image, and its picture once for each background.

    An opaque picture is the same object for all backgrounds. It can be smaller than `info` says, where a JPEG was
    scaled while it was decoded.
    """

    info: ImageInfo
    pictures: Mapping[Color, Picture]
    truncated: bool = False

    def picture(self, spec: Preprocess) -> Picture:
        """The picture for one of the targets that `decode` was given."""
        return self.pictures[spec.background]


def decode(data: bytes, *, targets: Sequence[Preprocess] = (), limits: DecodeLimits = DecodeLimits()) -> Decoded:
    """Decode an image for all models that will see it. Thread-safe; Pillow releases the GIL for most of it.

    Args:
        data: The image as fetched: JPEG (MPO counts as one), PNG, WEBP, GIF or BMP; of an animation, the first frame.
        targets: The models' preprocessing. They allow a JPEG to be decoded at a smaller scale (never below twice
            the size it is resized to), and name the backgrounds under transparent pixels. Without any: full size,
            white.
        limits: What is refused.

    Raises:
        ImageError: `unsupported_format`, `too_many_pixels` or `undecodable`: permanent, the same bytes fail again.
    """
    kind = _sniff(data)
    _quiet_pillow()
    try:
        return _decode(data, kind, targets, limits)
    except (ImageError, MemoryError):  # no memory is our trouble, not the picture's
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{kind}: {error}") from error
    except UnidentifiedImageError as error:  # its text holds a memory address
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: its header cannot be read") from error
    except Exception as error:  # on hostile bytes Pillow raises whatever its plugins run into
        reason = str(error) or type(error).__name__
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: {reason}") from error


def _sniff(data: bytes) -> str:
    for kind, magic in _MAGIC:
        if magic.match(data):
            return kind
    names = ", ".join(kind for kind, _ in _MAGIC)
    raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"not one of {names}: {len(data)} bytes, first {data[:8]!r}")


def _decode(data: bytes, kind: str, targets: Sequence[Preprocess], limits: DecodeLimits) -> Decoded:
    image = _open(data, kind, limits)
    stored_size = image.size
    drafted = _draft(image, targets)
    truncated = False
    try:
        image.load()
    except OSError:
        if kind != "JPEG" or limits.truncated == "strict":
            raise
        image, truncated = _open(data + _JPEG_END, kind, limits), True
        _draft(image, targets)
        image.load()
    orientation = _orientation(image)
    width, height = stored_size[::-1] if orientation in _SIDEWAYS else stored_size
    info = ImageInfo(width=width, height=height, format=kind, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    box = _oriented_box(image.size, drafted, orientation)
    flat = _flattened(_turned(_eight_bits(image), orientation), {target.background for target in targets} or {WHITE})
    return Decoded(info, {background: Picture(rgb, box) for background, rgb in flat.items()}, truncated)


def _open(data: bytes, kind: str, limits: DecodeLimits) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(kind,))
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        allowed = f"{limits.max_pixels} pixels, {limits.max_side} a side"
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} pixels; allowed are {allowed}")
    if min(width, height) < 1:
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: {width} x {height} pixels")
    return image


def _draft(image: Image.Image, targets: Sequence[Preprocess]) -> tuple[float, float]:
    """Let libjpeg scale by 1/2, 1/4 or 1/8 while it decodes. Only resizing that averages hides the difference.

    Returns:
        Width and height of the picture, which may end within the last pixel.
    """
    averaging = all(target.antialias and target.interpolation != "nearest" for target in targets)
    if image.format not in ("JPEG", "MPO") or not targets or not averaging:
        return image.size
    sideways = _orientation(image) in _SIDEWAYS
    sizes = [scaled_size(image.size[::-1] if sideways else image.size, target) for target in targets]
    width, height = (DRAFT_MARGIN * max(sides) for sides in zip(*sizes, strict=True))
    drafted = image.draft(None, (height, width) if sideways else (width, height))
    return image.size if drafted is None else drafted[1][2:]


def _oriented_box(size: tuple[int, int], drafted: tuple[float, float], orientation: int) -> Box:
    """Where the picture lies once it is turned: its frayed edges, right and below, may come to lie left or above."""
    if orientation in _SIDEWAYS:
        size, drafted = size[::-1], drafted[::-1]
    left = size[0] - drafted[0] if orientation in (2, 3, 6, 7) else 0
    top = size[1] - drafted[1] if orientation in (3, 4, 7, 8) else 0
    return (left, top, left + drafted[0], top + drafted[1])


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none.

    Not `ImageOps.exif_transpose`: that writes the EXIF block anew, and a picture with a broken block would fail.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - metadata is as hostile as pixels, and none of it is worth the picture
        return 1
    return value if isinstance(value, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _flattened(image: Image.Image, backgrounds: set[Color]) -> dict[Color, Image.Image]:
    if not image.has_transparency_data:
        return dict.fromkeys(backgrounds, image if image.mode == "RGB" else image.convert("RGB"))
    return {background: _flatten(image.convert("RGBA"), background) for background in backgrounds}


def _flatten(image: Image.Image, background: Color) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by scale, where Pillow's own conversion clips everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


_PILLOW_MODULES: Final = r"PIL\."
_QUIET: Final = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)
_quiet_lock = threading.Lock()


def _quiet_pillow() -> None:
    """Ignore what Pillow's own modules warn of, such as odd EXIF blocks; see the module's facts."""
    if _QUIET in warnings.filters:
        return
    with _quiet_lock:  # filterwarnings takes an equal entry out before it puts it in front
        if _QUIET not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
