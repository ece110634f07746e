"""From bytes to an opened picture whose header is known to be harmless: nothing of its size is allocated before.

Facts:

- Pillow's own bomb check warns at 89 megapixels and raises at 179.
- Opening a WEBP allocates its canvas twice. A GIF's first frame enlarges its canvas, which opening may allocate.
- Pillow expands run-length coded BMPs in Python, and paints what they leave out: browsers leave it clear.
- Pillow warns through `warnings`, whose `catch_warnings` swaps a list that all threads share. Our filter is installed
  once, and again when someone (pytest does) has put an older list back.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from dataclasses import dataclass
from typing import Final, Literal

from PIL import (
    Image,
    ImageFile,
    PngImagePlugin,
    WebPImagePlugin,  # noqa: F401 - registers WEBP; otherwise Image.open imports every plugin there is
)

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats import gif, jpeg, webp
from classifleet.worker.pixel_room import Take

_RUN_LENGTH_CODED: Final = (1, 2)
_ALLOCATED: Final = {"GIF": gif.canvas_size, "WEBP": webp.canvas_size}
"""The formats that take memory for their pixels when they are opened, and how large those say they are."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is decoded. Above 178 megapixels Pillow refuses whatever `max_pixels` allows.

    `lenient` completes a JPEG whose end is missing with grey, takes one in several scans that is damaged, and says so
    in `info`; other formats that are cut stay errors. `exact` decodes every JPEG in full: what libjpeg averages while
    it scales it has not cut off to 0..255 before, so that a pixel far out of range weighs more than anybody sees.
    """

    max_pixels: int = 50_000_000
    max_side: int = 65_500
    truncated: Literal["strict", "lenient"] = "strict"
    exact: bool = True


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
    if kind == "JPEG":
        jpeg.refuse_many_scans(data, image.width * image.height)
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
