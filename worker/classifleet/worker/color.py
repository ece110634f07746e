"""Colours as a person sees them, where a file asks for something else than sRGB.

Ordinary colour profiles (sRGB, Display P3, Adobe RGB, camera profiles) are not applied, as in the training pipelines
of every model known to us: they move colours by a little, and models answer the same. But a profile, or the gamma of
a PNG, can also turn one picture into another: swap channels, invert, or spread two neighbouring levels over the whole
range. Browsers obey it, so we do, and only then. A PNG's chromaticities (cHRM) that do so are refused: there is no
honest use for them.

What a profile does is measured. One of curves and a matrix is fully known from its ramps; one that brings a table
of colours (`A2B…`) can hide a fold anywhere in it, and always counts as strange.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.formats import bmp, jpeg, png, webp

Correction = Callable[[Image.Image], Image.Image]
"""8-bit picture in the file's colours to RGB, or RGBA where it is transparent, in sRGB."""

_LEAST_GAMMA, _LARGEST_GAMMA = 0.01, 100  # those that Chromium and Firefox obey alike
DISPLAY_GAMMA: Final = 2.2
ORDINARY_SHIFT_LEVELS: Final = 48
"""What an ordinary profile moves a grey by, at most: Apple's old gamma of 1.8 moves by 19, linear light by 81."""
ORDINARY_MEAN_LEVELS: Final = 32
"""What it moves colours by in the mean: ProPhoto, the widest in use, by 22; swapped channels by 57."""
ORDINARY_SLOPE_LEVELS: Final = 12
"""How far it tears neighbouring levels apart, at most."""
# Safe for many threads at once; tables in the finest grid, between whose points less can hide. Exact is ten times as
# slow (170 ms a megapixel), and needed only for greys, which have 256 levels and are looked up.
_FLAGS: Final = ImageCms.Flags.NOCACHE | ImageCms.Flags.HIGHRESPRECALC
_EXACT: Final = ImageCms.Flags.NOCACHE | ImageCms.Flags.NOOPTIMIZE
CACHED_PROFILE_BYTES: Final = 64 << 10
_ICC_COUNT_AT: Final = 128
_ICC_TAGS_AT: Final = 132
_ICC_TAG_BYTES: Final = 12  # name, offset, size
_ICC_MOST_TAGS: Final = 100
_ICC_VERSION_AT, _ICC_NEWEST = 8, 4
_ICC_CLASS_AT, _ICC_CLASSES = 12, (b"mntr", b"scnr", b"prtr", b"spac")
_ICC_WHITE_AT: Final = 68
_ICC_ONE: Final = 65_536
_ICC_D50: Final = np.array((0.9642, 1, 0.8249))
_ICC_TOLERANCE, _ICC_SUM_TOLERANCE = 0.01, 0.1
_ICC_LEAST_TAG_BYTES: Final = 4
_ICC_CURVES: Final = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_ICC_PRIMARIES: Final = (b"rXYZ", b"gXYZ", b"bXYZ")
_ICC_FLOAT_TAGS: Final = (b"D2B", b"B2D")
_GREYS: Final = ("1", "L", "LA", "I", "I;16")
_SPACES: Final = {
    "RGB": ("RGB ", ("RGB", "RGBA", "P", "PA", *_GREYS)),  # browsers take greys for colours, too
    "L": ("GRAY", _GREYS),
    "CMYK": ("CMYK", ("CMYK",)),
}
_LATTICE: Final = np.stack(np.meshgrid(*[np.linspace(0, 255, 9).astype(np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
_SRGB_CHROMATICITIES: Final = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green, blue
_UNSIGNED_TURN: Final = 2**32 / 100_000
_LARGEST_CHROMATICITY: Final = 1.1
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SDR_PRIMARIES: Final = frozenset({1, 4, 5, 6, 7, 8, 9, 11, 12, 22})  # H.273: those that move colours by a little
_SDR_TRANSFERS: Final = frozenset({1, 4, 6, 13, 14, 15})  # H.273: BT.709 and its twins, gamma 2.2, sRGB


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
        study = _study if len(profile) <= CACHED_PROFILE_BYTES else _study.__wrapped__
        if found := study(profile, image.mode):
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
    if primaries and image.mode not in _GREYS:
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
    if primaries not in _SDR_PRIMARIES or transfer not in _SDR_TRANSFERS or matrix or full_range != 1:
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
    ramps = _LATTICE[0] / 255
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
        return _keeping_alpha(image, "RGB", lambda opaque: opaque.point(table * 3))

    return apply


def _keeping_alpha(image: Image.Image, mode: str, change: Correction) -> Image.Image:
    """Change the colours alone. `mode` is what `change` takes; it gives RGB."""
    if not image.has_transparency_data:
        return change(image if image.mode == mode else image.convert(mode))
    clear = image.convert("RGBA")
    changed = change(clear.convert(mode))
    changed.putalpha(clear.getchannel("A"))
    return changed


@dataclass(frozen=True, slots=True)
class _Profile:
    """One that browsers obey, and how: None where that can be left out."""

    change: Correction | None


@functools.lru_cache(maxsize=32)
def _study(profile: bytes, mode: str) -> _Profile | None:
    """None for a profile that is broken, or not for such a picture.

    Raises:
        ImageError: `unsupported_format`: it makes another picture, but perhaps not for everybody.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(_as_browsers_read(profile)))
        named = source.profile.xcolor_space
        if all(named != name for name, _ in _SPACES.values()):  # some browsers obey it
            raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, f"colour profile of another space ({named!r})")
        space = next((m for m, (name, modes) in _SPACES.items() if name == named and mode in modes), None)
        if space is None:
            return None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), space, "RGB", flags=_EXACT if space == "L" else _FLAGS
        )
        if b"A2B" not in profile and _is_ordinary(transform, space):
            return _Profile(None)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if not _is_sound(profile):
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, "strange colours by a broken profile, which some programs obey")

    change = _looked_up(transform) if space == "L" else functools.partial(_transformed, transform=transform)

    def apply(image: Image.Image) -> Image.Image:
        return _keeping_alpha(image, space, change)

    return _Profile(apply)


def _is_sound(profile: bytes) -> bool:
    """Whether a profile that lcms reads is one that the stricter readers of browsers obey, too."""
    (size,) = struct.unpack_from(">I", profile)
    tags = {name: (at, length) for name, at, length in _icc_tags(profile)}
    white = struct.unpack_from(">3i", profile, _ICC_WHITE_AT)
    primaries = [_icc_xyz(profile, tags[name][0]) for name in _ICC_PRIMARIES if name in tags]
    total = np.sum(primaries, axis=0) if primaries else _ICC_D50
    return (
        _ICC_TAGS_AT <= size <= len(profile)
        and profile[_ICC_VERSION_AT] <= _ICC_NEWEST
        and np.abs(np.array(white) / _ICC_ONE - _ICC_D50).max() < _ICC_TOLERANCE
        and np.abs(total - _ICC_D50).max() < _ICC_SUM_TOLERANCE
        and not any(_icc_has_no_slope(profile, tags[name][0]) for name in _ICC_CURVES if name in tags)
        and all(length >= _ICC_LEAST_TAG_BYTES and at + length <= size for at, length in tags.values())
    )


def _icc_tags(profile: bytes) -> list[tuple[bytes, int, int]]:
    count = int.from_bytes(profile[_ICC_COUNT_AT:_ICC_TAGS_AT])
    return [struct.unpack_from(">4sII", profile, _ICC_TAGS_AT + _ICC_TAG_BYTES * n) for n in range(count)]


def _icc_has_no_slope(profile: bytes, at: int) -> bool:
    """Whether a curve is a power of zero."""
    return profile[at : at + 4] == b"curv" and profile[at + 8 : at + 14] == b"\0\0\0\1\0\0"


def _icc_xyz(profile: bytes, at: int) -> NDArray[np.float64]:
    values = profile[at + 8 : at + 20].ljust(12, b"\0")
    return np.frombuffer(values, ">i4") / _ICC_ONE


def _as_browsers_read(profile: bytes) -> bytes:
    """A profile without what browsers pass over.

    That is its class, without a right one of which lcms refuses it; and its steps in floating point (`D2B…`), which
    lcms prefers to all else. Of those there can be any number, in eight bytes each, and lcms takes milliseconds for
    each.
    """
    if profile[_ICC_CLASS_AT : _ICC_CLASS_AT + 4] not in _ICC_CLASSES:
        profile = profile[:_ICC_CLASS_AT] + _ICC_CLASSES[0] + profile[_ICC_CLASS_AT + 4 :]
    count = int.from_bytes(profile[_ICC_COUNT_AT:_ICC_TAGS_AT])
    if count > _ICC_MOST_TAGS:  # lcms refuses it
        return profile
    end = _ICC_TAGS_AT + _ICC_TAG_BYTES * count
    table = profile[_ICC_TAGS_AT:end]
    tags = [table[at : at + _ICC_TAG_BYTES] for at in range(0, len(table), _ICC_TAG_BYTES)]
    read = [tag for tag in tags if not tag.startswith(_ICC_FLOAT_TAGS)]
    if len(read) == len(tags):
        return profile
    head = profile[:_ICC_COUNT_AT] + len(read).to_bytes(_ICC_TAGS_AT - _ICC_COUNT_AT)
    return head + b"".join(read).ljust(len(table), b"\0") + profile[end:]


def _looked_up(transform: Any) -> Correction:
    tables = _through(np.arange(256, dtype=np.uint8)[None], transform)[0].T.tolist()
    return lambda grey: Image.merge("RGB", [grey.point(table) for table in tables])


def _is_ordinary(transform: Any, space: str) -> bool:
    ramp = np.arange(256, dtype=np.uint8)
    grey = np.repeat(ramp[None, :, None], 3, axis=2)
    if space == "L":
        return _near(_through(ramp[None], transform), grey)
    ramps = np.concatenate([grey, *(np.where(np.arange(3) == band, grey, 0).astype(np.uint8) for band in range(3))])
    shifts = np.abs(_through(_LATTICE, transform).astype(int) - _LATTICE)
    shown = _through(ramps, transform)
    return bool(shifts.mean() <= ORDINARY_MEAN_LEVELS and _smooth(shown) and _near(shown[:1], grey))


def _near(shown: NDArray[np.uint8], grey: NDArray[np.uint8]) -> bool:
    return bool(np.abs(shown.astype(int) - grey).max() <= ORDINARY_SHIFT_LEVELS) and _smooth(shown)


def _smooth(shown: NDArray[np.uint8]) -> bool:
    return bool(np.abs(np.diff(shown.astype(int), axis=1)).max() <= ORDINARY_SLOPE_LEVELS)


def _through(colors: NDArray[np.uint8], transform: Any) -> NDArray[np.uint8]:
    return np.asarray(_transformed(Image.fromarray(colors), transform))


def _transformed(image: Image.Image, transform: Any) -> Image.Image:
    changed = ImageCms.applyTransform(image, transform)
    if changed is None:
        raise RuntimeError("applyTransform gives None only in place")
    return changed
