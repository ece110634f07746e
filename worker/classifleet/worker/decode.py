"""Untrusted bytes to pixels: a pure function, no file, no network; large pictures wait for each other.

    bytes ──sniff──► parts ──► Pillow plugin ──► header: limits ──► (JPEG: DCT scaling) ──► load ──► 8 bits
          │                                                           └─ ordinary: simplejpeg ────────────────┐
          └─► colours as shown ──► RGB, laid on each background that a model asks for ──► with EXIF's turning ┘

The picture is the one that a browser shows a person; where the two could differ, the line that sees to it says so.

Whatever Pillow raises becomes one `ImageError` with one permanent `ErrorCode`. Facts about Pillow that shape this:

- `LOAD_TRUNCATED_IMAGES` is process-wide. Instead, an end marker is appended to a cut JPEG: libjpeg then fills what
  is missing with grey.
- Where a GIF's first frame covers less than its canvas, Pillow fills in the palette's first colour.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.record import ImageInfo
from classifleet.worker.color import correction
from classifleet.worker.colorkey import load_keyed
from classifleet.worker.formats import as_browsers_read, bmp, exif, gif, jpeg, png, sniff, webp
from classifleet.worker.headers import DecodeLimits, open_image, quiet_pillow
from classifleet.worker.icc import Correction
from classifleet.worker.models.description import Color, Preprocess
from classifleet.worker.pixel_room import PixelRoom, Take
from classifleet.worker.preprocess import SIDEWAYS, Picture, averages, preprocess, scaled_size
from classifleet.worker.turbo import refuse_damaged, turbo_pixels

__all__ = ["DecodeLimits", "Decoded", "decode", "prepare", "wait_at_most"]
DRAFT_MARGIN: Final = 3.5
"""A JPEG is decoded at no less than this many times the size it will be resized to.

What scaling blurs shows by the square of it: in the mean of a sharp photo 1 level at 2, 0.5 at 3, 0.15 at 6.
"""
END_MARKER: Final = b"\xff\xd9"
PILLOWS_EXIF_PREFIX: Final = b"Exif\0\0"
LARGEST_AT_ONE_TIME: Final = 2
"""As many pictures of `max_pixels`, or more that are smaller, are decoded at one time."""
JPEG_SHARE: Final = 4
"""Of the bytes that other pictures take: an ordinary JPEG is decoded once, to where it is resized from. A progressive
one is also held in full, whatever its scale, in as many."""
WHITE: Final[Color] = (255, 255, 255)
_DEFAULT_LIMITS: Final = DecodeLimits()
_room: Final = PixelRoom()
_PALETTE_COLORS: Final[Mapping[tuple[str | None, str], Callable[[bytes], int]]] = {
    ("BMP", "P"): bmp.palette_colors,
    ("PNG", "P"): png.palette_colors,
    ("GIF", "P"): gif.palette_colors,
    ("GIF", "L"): gif.palette_colors,  # of greys, where Pillow takes the indices themselves
}
_SIXTEEN_TO_EIGHT: Final = ((np.arange(65_536) * 255 + 32_767) // 65_535).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the record says of a decoded image, and its picture once for each background.

    An opaque picture is the same object for all backgrounds. It can be smaller than `info` says, where a JPEG was
    scaled while it was decoded.
    """

    info: ImageInfo
    pictures: Mapping[Color, Picture]

    def picture(self, spec: Preprocess) -> Picture:
        """The picture for one of the targets that `decode` was given."""
        return self.pictures[spec.background]


def wait_at_most(seconds: float) -> None:
    """How long a large picture waits for others in this process; default: `pixel_room.PATIENCE_SECONDS`."""
    _room.patience_seconds = seconds


def decode(
    data: bytes, *, targets: Sequence[Preprocess] = (), limits: DecodeLimits = _DEFAULT_LIMITS, sha256: str = ""
) -> Decoded:
    """Decode an image for all models that will see it. Thread-safe; Pillow releases the GIL for most of it.

    Args:
        data: The image as fetched: JPEG (MPO counts as one), PNG, WEBP, GIF or BMP; of an animation, the first frame.
        targets: The models' preprocessing. They allow a JPEG to be decoded at a smaller scale (never below
            `DRAFT_MARGIN` times the size it is resized to), and name the backgrounds under transparent pixels.
            Without any: full size, white.
        limits: What is refused.
        sha256: Of the data, if it is known; it is computed otherwise.

    Raises:
        ImageError: `unsupported_format`, `too_many_pixels` or `undecodable`: permanent, the same bytes fail again.
    """
    with _room.turn(LARGEST_AT_ONE_TIME * limits.max_pixels) as take:
        return _decoded(data, targets, limits, sha256, take)


def prepare(
    data: bytes, specs: Mapping[str, Preprocess], limits: DecodeLimits, *, sha256: str = ""
) -> tuple[ImageInfo, dict[str, NDArray[np.uint8]]]:
    """Decode once, then preprocess once for each distinct preprocessing, by its digest.

    Raises:
        ImageError: The bytes are not an image that may be decoded.
    """
    with _room.turn(LARGEST_AT_ONE_TIME * limits.max_pixels) as take:
        decoded = _decoded(data, list(specs.values()), limits, sha256, take)
        return decoded.info, {digest: preprocess(decoded.picture(spec), spec) for digest, spec in specs.items()}


def _decoded(data: bytes, targets: Sequence[Preprocess], limits: DecodeLimits, sha256: str, take: Take) -> Decoded:
    """Decode, and bring whatever Pillow raises into one shape."""
    kind = sniff(data)
    quiet_pillow()
    try:
        return _decode(data, kind, targets, limits, sha256, take)
    except (ImageError, MemoryError):  # no memory is our trouble, not the picture's
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_MANY_PIXELS, f"{kind}: {error}") from error
    except UnidentifiedImageError as error:  # its text holds a memory address
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: its header cannot be read") from error
    except Exception as error:  # on hostile bytes Pillow raises whatever its plugins run into
        reason = str(error) or type(error).__name__
        raise ImageError(ErrorCode.UNDECODABLE, f"corrupt {kind}: {reason}") from error


def _decode(
    data: bytes, kind: str, targets: Sequence[Preprocess], limits: DecodeLimits, sha256: str, take: Take
) -> Decoded:
    file = as_browsers_read(data, kind)
    image = open_image(file, kind, limits, take)
    if kind == "JPEG" and jpeg.is_lossless(file):  # shown by no browser, and not to be scaled; see `turbo`
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "lossless JPEG")
    if kind == "WEBP" and file is not data:
        webp.refuse_hidden_alpha(file, image)
    try:
        pictures = _pictures(image, file, targets, limits, take)
        truncated = False
    except OSError:
        if kind != "JPEG" or limits.truncated == "strict":
            raise
        image = open_image(file + END_MARKER, kind, limits, take)
        pictures = _pictures(image, file, targets, limits, take, damaged=True)
        truncated = True
    width, height = pictures.size
    digest = sha256 or hashlib.sha256(data).hexdigest()
    info = ImageInfo(width=width, height=height, format=kind, bytes=len(data), sha256=digest)
    if truncated:
        info["truncated"] = True
    return Decoded(info, pictures.by_background)


@dataclass(frozen=True, slots=True)
class _Pictures:
    size: tuple[int, int]
    by_background: Mapping[Color, Picture]


def _pictures(
    image: ImageFile.ImageFile,
    data: bytes,
    targets: Sequence[Preprocess],
    limits: DecodeLimits,
    take: Take,
    *,
    damaged: bool = False,
) -> _Pictures:
    size, orientation = image.size, _orientation(image, data)
    shown = correction(image, data)
    sideways, scalable = orientation in SIDEWAYS, bool(targets) and all(map(averages, targets))
    # colours that will be torn apart must not be averaged before
    drafted = _draft(image, targets, sideways=sideways) if scalable and not (limits.exact or shown) else image.size
    ordinary_jpeg = image.format in ("JPEG", "MPO") and not shown
    held = math.prod(size) // JPEG_SHARE if "progressive" in image.info else 0
    take(held + math.prod(image.size) // (JPEG_SHARE if ordinary_jpeg else 1))
    backgrounds = {target.background for target in targets} or {WHITE}
    ordinary = turbo_pixels(data, image) if scalable and not shown else None
    if ordinary is None and image.format in ("JPEG", "MPO") and not damaged and jpeg.in_several_scans(data):
        refuse_damaged(data)
    flat = dict.fromkeys(backgrounds, ordinary) if ordinary is not None else _loaded(image, data, shown, backgrounds)
    by_background = {background: Picture(rgb, (0, 0, *drafted), orientation) for background, rgb in flat.items()}
    return _Pictures(size[::-1] if sideways else size, by_background)


def _loaded(
    image: ImageFile.ImageFile, data: bytes, shown: Correction | None, backgrounds: set[Color]
) -> dict[Color, Image.Image]:
    painted = image.tile[0].extents if image.tile else None
    keyed = load_keyed(image, data)
    if image.format == "PNG" and not image.tell() and (png.is_interlaced(data) or not _last_row(keyed).any()):
        png.refuse_short(data, image.size)
    if count := _PALETTE_COLORS.get((image.format, image.mode)):
        _refuse_missing_colors(image, count(data))
    return _flattened(_colors(keyed, image.format, shown, painted), backgrounds)


def _refuse_missing_colors(image: Image.Image, colors: int) -> None:
    """Refuse a picture whose pixels name colours that its palette lacks: each program fills in its own."""
    indices = np.asarray(image)
    if indices.max() < colors:
        return
    if ((indices >= colors) & (indices != image.info.get("transparency"))).any():
        raise ImageError(ErrorCode.UNDECODABLE, f"{image.format} with pixels that its palette lacks")


def _last_row(image: Image.Image) -> NDArray[np.uint8]:
    """What Pillow leaves zero where pixels are missing."""
    return np.asarray(image.crop((0, image.height - 1, image.width, image.height)))


def _draft(image: Image.Image, targets: Sequence[Preprocess], *, sideways: bool) -> tuple[float, float]:
    """Let libjpeg scale by 1/2, 1/4 or 1/8 while it decodes. Only resizing that averages hides the difference.

    Returns:
        Width and height of the picture, which may end within the last pixel.
    """
    if image.format not in ("JPEG", "MPO"):
        return image.size
    sizes = [scaled_size(image.size[::-1] if sideways else image.size, target) for target in targets]
    width, height = (math.ceil(DRAFT_MARGIN * max(sides)) for sides in zip(*sizes, strict=True))
    drafted = image.draft(None, (height, width) if sideways else (width, height))
    return image.size if drafted is None else drafted[1][2:]


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none. Browsers do not read that of a WEBP.

    Not `ImageOps.exif_transpose`: that writes the EXIF block anew, and a picture with a broken block would fail. Not
    `Image.getexif`: that also believes XMP and text chunks, lists, numbers of other types than EXIF's SHORT, and of
    twins the last.
    """
    if image.format in ("JPEG", "MPO"):
        block = jpeg.exif(data)
    elif image.format == "PNG":
        block = image.info.get("exif", b"").removeprefix(PILLOWS_EXIF_PREFIX)
    else:
        return 1
    exif.refuse_stretched(block, image.size)
    orientation = exif.orientation(block)
    if image.format == "PNG" and orientation != 1 and (png.is_animated(data) or png.is_interlaced(data)):
        raise ImageError(ErrorCode.UNDECODABLE, "animated or interlaced PNG that Exif turns")  # Firefox does not
    return orientation


def _flattened(image: Image.Image, backgrounds: set[Color]) -> dict[Color, Image.Image]:
    if not image.has_transparency_data:
        return dict.fromkeys(backgrounds, image if image.mode == "RGB" else image.convert("RGB"))
    return {background: _flatten(image.convert("RGBA"), background) for background in backgrounds}


def _flatten(image: Image.Image, background: Color) -> Image.Image:
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return canvas


def _colors(
    image: Image.Image, kind: str | None, shown: Correction | None, painted: tuple[int, int, int, int] | None
) -> Image.Image:
    """A loaded picture in 8 bits and the colours that a person sees; clear where a first frame does not reach."""
    eight = _eight_bits(image)
    right = shown(eight) if shown else eight
    if kind not in ("GIF", "PNG") or painted is None or painted == (0, 0, *image.size):
        return right
    canvas = Image.new("RGBA", image.size)
    canvas.paste(right.convert("RGBA").crop(painted), painted)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by scale, where Pillow's own conversion clips everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.uint16)
    levels = np.empty(values.shape, np.uint8)
    for row, shown in zip(values, levels, strict=True):  # at once, numpy would make 8 bytes of each index
        np.take(_SIXTEEN_TO_EIGHT, row, out=shown)
    grey = Image.fromarray(levels)
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255)))
    return Image.merge("LA", (grey, alpha))
