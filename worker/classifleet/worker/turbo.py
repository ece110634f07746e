"""The fast way for the ordinary JPEG: simplejpeg decodes what Pillow has opened and found harmless.

It gives the same pixels as Pillow, straight into an array, in three quarters of the time. Whatever it has a complaint
about, be it a warning, goes to Pillow, whose word is final: so there is one set of answers for broken files.

Lossless JPEGs (SOF3) must never come here, nor to `Image.draft`: libjpeg cannot scale them and writes them in full, in
simplejpeg past the end of an array made for the scaled size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ImageFile

from classifleet.worker.formats import jpeg

_COLORS: Final = {"RGB": ("YCbCr", "RGB"), "L": ("Gray",)}
_INKS: Final = ("CMYK", "YCCK")


def turbo_pixels(data: bytes, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """Decode at the scale that `Image.draft` has chosen. Thread-safe; releases the GIL.

    Args:
        data: The file, not lossless.
        image: The same, opened by Pillow, its header checked, not loaded.

    Returns:
        uint8 [h, w, 3], RGB, or None: Pillow is to decode this one.
    """
    if image.format != "JPEG" or image.mode not in _COLORS:
        return None
    width, height = image.size
    try:
        # Pillow and libjpeg could read two sizes from one hostile header: so it is asked before it allocates
        *size, colors, _ = simplejpeg.decode_jpeg_header(data, min_height=height, min_width=width)
        if size != [height, width] or colors not in _COLORS[image.mode]:
            return None
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError:
        return None
    return found


def refuse_damaged(data: bytes) -> None:
    """Refuse what libjpeg only warns of: of a JPEG in several scans, browsers show nothing behind it.

    Args:
        data: The file, not lossless.

    Raises:
        OSError: It is damaged, or sampled in a way that cannot be checked.
    """
    bare = jpeg.without_notes(data)
    try:
        *_, colors, _ = simplejpeg.decode_jpeg_header(bare)
        simplejpeg.decode_jpeg(
            bare, "CMYK" if colors in _INKS else "RGB", min_height=1, min_width=1, min_factor=1, strict=True
        )
    except ValueError as error:
        raise OSError(str(error)) from error
