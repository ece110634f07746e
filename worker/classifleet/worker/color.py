"""Colours as a person sees them, where a file asks for something else than sRGB.

Ordinary colour profiles (sRGB, Display P3, Adobe RGB, camera profiles) are not applied, as in the training pipelines
of every model known to us: they move colours by a little, and models answer the same. But a profile, or the gamma of
a PNG, can also turn one picture into another: swap channels, invert, or spread two neighbouring levels over the whole
range. Browsers obey it, so we do, and only then. A PNG's chromaticities (cHRM) that do so are refused: there is no
honest use for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats import bmp, jpeg, png, webp
from classifleet.worker.icc import (
    GREYS,
    LATTICE,
    ORDINARY_MEAN_LEVELS,
    ORDINARY_SHIFT_LEVELS,
    SDR_PRIMARIES,
    SDR_TRANSFERS,
    Correction,
    keeping_alpha,
    study,
)

_LEAST_GAMMA, _LARGEST_GAMMA = 0.01, 100  # those that Chromium and Firefox obey alike
DISPLAY_GAMMA: Final = 2.2
_SRGB_CHROMATICITIES: Final = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green, blue
_UNSIGNED_TURN: Final = 2**32 / 100_000
_LARGEST_CHROMATICITY: Final = 1.1
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def correction(image: Image.Image, data: bytes) -> Correction | None:
    """How to bring an opened picture's colours to what a browser shows; None where its pixels are to be taken as is.

    Args:
        image: Opened, not loaded.
        data: Its file.

    Raises:
        ImageError: `unsupported_format`: a PNG in HDR colours, which have no one look on an ordinary display, or with
            primaries that make another picture of it; what browsers show in different ways.
    """
    # the order of PNG's third edition: cICP, iCCP, sRGB, gAMA and cHRM
    if image.format == "PNG" and (code := png.code_points(data)):
        _refuse_hdr(code)
        return None
    if image.format == "BMP" and (calibration := bmp.calibration(data)):
        _refuse_calibrated(*calibration)
    if profile := _profile(image, data):
        found = study(profile, image.mode, image.format)
        if image.format == "WEBP" and webp.is_animated(data):  # Firefox obeys it, others do not
            if found and found.change:
                raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "animated WEBP in strange colours (ICC)")
            return None
        if found:
            return found.change
    return _png_gamma(image) if image.format == "PNG" else None


def _png_gamma(image: Image.Image) -> Correction | None:
    """What the gamma of a PNG without a profile does; its primaries count beside it alone, and greys have none."""
    gamma, primaries = image.info.get("gamma", 0.0), image.info.get("chromaticity")
    if gamma <= 0:
        return None
    if not _LEAST_GAMMA <= gamma <= _LARGEST_GAMMA:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"PNG with a strange gamma (gAMA {gamma})")
    change = _gamma(gamma)
    if "srgb" in image.info:
        if change:  # Firefox believes it, others do not
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"PNG in sRGB and of another gamma (gAMA {gamma})")
        return None
    if primaries and image.mode not in GREYS:
        _refuse_strange(primaries, is_gamma_strange=change is not None)
    return change


def _profile(image: Image.Image, data: bytes) -> bytes:
    """The colour profile that browsers read; empty if there is none."""
    if image.format == "BMP":
        return bmp.profile(data)
    if image.format in ("JPEG", "MPO"):
        return jpeg.profile(data)
    if image.format == "WEBP" and not webp.has_profile(data):
        return b""
    return image.info.get("icc_profile") or b""


def _refuse_hdr(code: bytes) -> None:
    primaries, transfer, matrix, full_range = code
    if primaries not in SDR_PRIMARIES or transfer not in SDR_TRANSFERS or matrix or full_range != 1:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"PNG in colours other than 8-bit RGB's (cICP {list(code)})")


def _refuse_calibrated(gamma: float, chromaticities: list[float]) -> None:
    """Refuse a BMP in colours of its own that make another picture: Firefox obeys them, others do not."""
    try:
        is_gamma_strange = _gamma(1 / gamma) is not None
        _refuse_strange(chromaticities, is_gamma_strange=is_gamma_strange)
    except (ArithmeticError, ImageError):
        is_gamma_strange = True
    if is_gamma_strange:
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "BMP in strange colours of its own")


def _refuse_strange(stored: Sequence[float], *, is_gamma_strange: bool) -> None:
    """Refuse primaries that make another picture, and those without a meaning beside a gamma that some then ignore."""
    # Pillow reads them unsigned; of imaginary primaries, such as ACES', some are below zero
    chromaticities = [value - _UNSIGNED_TURN if value >= _UNSIGNED_TURN / 2 else value for value in stored]
    strange = ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"PNG in strange colours (cHRM {chromaticities})")
    in_range = min(chromaticities) >= 0 and max(chromaticities) <= _LARGEST_CHROMATICITY
    if is_gamma_strange and not (in_range and any(stored)):
        raise strange
    if not any(stored):
        return
    try:
        matrix = np.linalg.solve(_cones(_SRGB_CHROMATICITIES), _cones(chromaticities))
    except (ArithmeticError, np.linalg.LinAlgError) as error:  # of no colours
        raise strange from error
    ramps = LATTICE[0] / 255
    shown = np.clip(ramps**DISPLAY_GAMMA @ matrix.T, 0, 1) ** (1 / DISPLAY_GAMMA)
    if 255 * np.abs(shown - ramps).mean() > ORDINARY_MEAN_LEVELS:
        raise strange


def _cones(chromaticities: Sequence[float]) -> NDArray[np.float64]:
    """The responses of the eye to red, green and blue, in parts of that to white."""
    pairs = zip(chromaticities[::2], chromaticities[1::2], strict=True)
    white, *primaries = (_BRADFORD @ (x / y, 1, (1 - x - y) / y) for x, y in pairs)
    with np.errstate(all="raise"):
        colors = np.stack(primaries, axis=1) / white[:, None]
        return colors * np.linalg.solve(colors, np.ones(3))


def _gamma(exponent: float) -> Correction | None:
    ramp = np.arange(256) / 255
    levels = np.rint(255 * ramp ** (1 / (exponent * DISPLAY_GAMMA))).astype(int)
    if np.abs(levels - np.arange(256)).max() <= ORDINARY_SHIFT_LEVELS:
        return None
    table = levels.tolist()

    def apply(image: Image.Image) -> Image.Image:
        return keeping_alpha(image, "RGB", lambda opaque: opaque.point(table * 3))

    return apply
