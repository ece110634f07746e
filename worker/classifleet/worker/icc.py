"""What a colour profile (ICC) does to a picture, and whether everybody would see it do so.

Ordinary profiles are left out, see `color`. What a profile does is measured. One of curves and a matrix is fully known
from its ramps; one that brings a table of colours (`A2B…`) can hide a fold anywhere in it, and always counts as
strange. A strange profile is obeyed if it is sound in every part that Pillow's lcms, Chromium's skcms and Firefox'
qcms are known to read in different ways; otherwise the picture is refused.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from classifleet.config.errors import ErrorCode, ImageError

Correction = Callable[[Image.Image], Image.Image]
"""8-bit picture in the file's colours to RGB, or RGBA where it is transparent, in sRGB."""

ORDINARY_SHIFT_LEVELS: Final = 48
"""What an ordinary profile moves a grey by, at most: Apple's old gamma of 1.8 moves by 19, linear light by 81."""
ORDINARY_MEAN_LEVELS: Final = 32
"""What it moves colours by in the mean: ProPhoto, the widest in use, by 22; swapped channels by 57."""
ORDINARY_SLOPE_LEVELS: Final = 12
"""How far it tears neighbouring levels apart, at most; near black, where gammas are steep."""
ORDINARY_CONTRAST: Final = (0.4, 2.0)
"""What it makes of any 16 levels that are lighter: a picture in few levels must not vanish, nor another appear."""
LATTICE: Final = np.stack(np.meshgrid(*[np.linspace(0, 255, 9).astype(np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
GREYS: Final = ("1", "L", "LA", "I", "I;16")
SDR_PRIMARIES: Final = frozenset({1, 4, 5, 6, 7, 8, 9, 11, 12, 22})  # H.273: those that move colours by a little
SDR_TRANSFERS: Final = frozenset({1, 4, 6, 13, 14, 15})  # H.273: BT.709 and its twins, gamma 2.2, sRGB
_NEAR_BLACK, _WINDOW = 24, 16
_INKS_MEAN_LEVELS: Final = 64
"""What a profile of inks moves colours by, against those that Firefox shows without it; an inverting one by 127."""
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
_ICC_MAGIC_AT, _ICC_MAGIC = 36, b"acsp"
_ICC_CONNECTION_AT: Final = 20
_ICC_INTENT_AT, _ICC_INTENTS = 64, range(4)
_ICC_COLORS: Final = (b"A2B", b"TRC")
_ICC_OTHER_TABLES: Final = frozenset({b"A2B1", b"A2B2"})
_ICC_FORMULA: Final = re.compile(rb"para\0\0\0\0")
_ICC_MOST_FORMULAS: Final = 1000
_ICC_PARAMETERS: Final = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}  # by the function
_ICC_PLAIN_FORMULA: Final = (1.0, 1.0, 0.0, 0.0, 0.0)
_ICC_ONE: Final = 65_536
_ICC_D50: Final = np.array((0.9642, 1, 0.8249))
_ICC_TOLERANCE, _ICC_SUM_TOLERANCE = 0.01, 0.1
_ICC_LEAST_TAG_BYTES: Final = 4
_ICC_CURVES: Final = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
_ICC_PRIMARIES: Final = (b"rXYZ", b"gXYZ", b"bXYZ")
_ICC_FLOAT_TAGS: Final = (b"D2B", b"B2D")
_SPACES: Final = {
    "RGB": ("RGB ", ("RGB", "RGBA", "P", "PA", *GREYS)),  # browsers take greys for colours, too
    "L": ("GRAY", GREYS),
    "CMYK": ("CMYK", ("CMYK",)),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One that browsers obey, and how: None where that can be left out."""

    change: Correction | None


def study(profile: bytes, mode: str, kind: str | None) -> Profile | None:
    """What a profile does.

    Args:
        profile: As the file brings it.
        mode: Pillow's, of the opened picture.
        kind: Its format: Firefox obeys a profile of colours on greys in a JPEG alone.

    Returns:
        None for what is no profile, or not one for such a picture.

    Raises:
        ImageError: `unsupported_format`: it makes another picture, but not for everybody.
    """
    studied = _study if len(profile) <= CACHED_PROFILE_BYTES else _study.__wrapped__
    return studied(profile, mode, greys_obey_colors=kind in ("JPEG", "MPO"))


@functools.lru_cache(maxsize=32)
def _study(profile: bytes, mode: str, *, greys_obey_colors: bool) -> Profile | None:
    if profile[_ICC_MAGIC_AT : _ICC_MAGIC_AT + len(_ICC_MAGIC)] != _ICC_MAGIC:
        return None
    try:
        tags = _icc_tags(profile)
        source = ImageCms.ImageCmsProfile(io.BytesIO(_as_browsers_read(profile)))
        named = source.profile.xcolor_space
        space = next((space for space, (name, modes) in _SPACES.items() if name == named and mode in modes), None)
        if all(named != name for name, _ in _SPACES.values()):
            raise _strange(f"of another space ({named!r})")
        if space is None and not (named == "RGB " and mode == "CMYK"):
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            space or "RGB",
            "RGB",
            flags=_EXACT if space == "L" else _FLAGS,
        )
        if not _is_sdr(profile, tags):
            raise _strange("of HDR colours (cicp)")
        if not any(name.startswith(b"A2B") for name, *_ in tags) and _is_ordinary(transform, space or "RGB"):
            return Profile(None)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, struct.error) as error:
        if any(name in profile for name in _ICC_COLORS):  # others read more than lcms
            raise _strange("that is broken") from error
        return None
    if space is None or not _is_sound(profile):
        raise _strange("that is broken, or not for such a picture")
    if space == "RGB" and mode in GREYS and not greys_obey_colors:
        raise _strange("of colours, for greys")
    if space == "L" and (b"A2B" in profile or profile[_ICC_CONNECTION_AT:][:4] != b"XYZ "):
        raise _strange("of greys, with tables")
    if space == "CMYK" and not _is_near_plain_inks(transform):
        raise _strange("of inks")
    change = _looked_up(transform) if space == "L" else functools.partial(_transformed, transform=transform)
    return Profile(functools.partial(keeping_alpha, mode=space, change=change))


def _strange(reason: str) -> ImageError:
    return ImageError(
        ErrorCode.UNSUPPORTED_FORMAT,
        f"strange colours by a profile {reason}, which some programs obey and others do not",
    )


def keeping_alpha(image: Image.Image, mode: str, change: Correction) -> Image.Image:
    """Change the colours alone. `mode` is what `change` takes; it gives RGB."""
    if not image.has_transparency_data:
        return change(image if image.mode == mode else image.convert(mode))
    clear = image.convert("RGBA")
    changed = change(clear.convert(mode))
    changed.putalpha(clear.getchannel("A"))
    return changed


def _is_sdr(profile: bytes, tags: list[tuple[bytes, int, int]]) -> bool:
    """Whether a profile without code points, or with those of ordinary colours: Chromium believes them first."""
    codes = [profile[at + 8 : at + 12] for name, at, _ in tags if name == b"cicp"]
    return all(len(code) > 1 and code[0] in SDR_PRIMARIES and code[1] in SDR_TRANSFERS for code in codes)


def _is_sound(profile: bytes) -> bool:
    """Whether a profile that lcms reads is one that browsers read, too, and in the same way."""
    (size,) = struct.unpack_from(">I", profile)
    listed = _icc_tags(profile)
    tags = {name: (at, length) for name, at, length in listed}
    white = struct.unpack_from(">3i", profile, _ICC_WHITE_AT)
    primaries = [_icc_xyz(profile, tags[name][0]) for name in _ICC_PRIMARIES if name in tags]
    total = np.sum(primaries, axis=0) if primaries else _ICC_D50
    return (
        _ICC_TAGS_AT <= size <= len(profile)
        and len(tags) == len(listed) <= _ICC_MOST_TAGS
        and profile[_ICC_VERSION_AT] <= _ICC_NEWEST
        and profile[_ICC_CLASS_AT : _ICC_CLASS_AT + 4] in _ICC_CLASSES
        and int.from_bytes(profile[_ICC_INTENT_AT:][:4]) in _ICC_INTENTS
        and np.abs(np.array(white) / _ICC_ONE - _ICC_D50).max() < _ICC_TOLERANCE
        and np.abs(total - _ICC_D50).max() < _ICC_SUM_TOLERANCE
        and not any(_icc_has_no_slope(profile, tags[name][0]) for name in _ICC_CURVES if name in tags)
        and all(length >= _ICC_LEAST_TAG_BYTES and at + length <= size for at, length in tags.values())
        and len(formulas := _icc_formulas(profile)) <= _ICC_MOST_FORMULAS
        and all(map(_is_rising, formulas))
        and (b"A2B0" in tags or not tags.keys() & _ICC_OTHER_TABLES)
    )


def _icc_formulas(profile: bytes) -> list[tuple[float, ...]]:
    """The parameters of all curves by formula (`para`), be they in a tag or in a table: g, a, b, c, d and so on."""
    found = []
    for match in itertools.islice(_ICC_FORMULA.finditer(profile), _ICC_MOST_FORMULAS + 1):
        kind, at = int.from_bytes(profile[match.end() : match.end() + 2]), match.end() + 4
        count = _ICC_PARAMETERS.get(kind, 0)
        values = struct.unpack_from(f">{count}i", profile.ljust(at + 4 * count, b"\0"), at)
        found.append(tuple(value / _ICC_ONE for value in values))
    return found


def _is_rising(formula: tuple[float, ...]) -> bool:
    """Whether a curve is one that every program computes alike: y = (a x + b)^g, above d; and c x below."""
    g, a, b, c, d = (*formula[:5], *_ICC_PLAIN_FORMULA[len(formula) :])[:5]
    return bool(formula) and g > 0 and a >= 0 and d >= 0 and a * d + b >= 0 and c >= 0


def _icc_tags(profile: bytes) -> list[tuple[bytes, int, int]]:
    count = min(int.from_bytes(profile[_ICC_COUNT_AT:_ICC_TAGS_AT]), (len(profile) - _ICC_TAGS_AT) // _ICC_TAG_BYTES)
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
    shifts = np.abs(_through(LATTICE, transform).astype(int) - LATTICE)
    shown = _through(ramps, transform)
    return bool(shifts.mean() <= ORDINARY_MEAN_LEVELS and _smooth(shown) and _near(shown[:1], grey))


def _is_near_plain_inks(transform: Any) -> bool:
    inks = np.array(list(itertools.product((0, 64, 128, 192, 255), repeat=4)), np.uint8)[None]
    plain = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)
    shown = np.asarray(_transformed(Image.fromarray(inks, "CMYK"), transform))
    return bool(np.abs(shown - plain).mean() <= _INKS_MEAN_LEVELS)


def _near(shown: NDArray[np.uint8], grey: NDArray[np.uint8]) -> bool:
    least, most = ORDINARY_CONTRAST
    light = shown[:, _NEAR_BLACK:].astype(int)
    contrast = (light[:, _WINDOW:] - light[:, :-_WINDOW]) / _WINDOW
    return (
        bool(np.abs(shown.astype(int) - grey).max() <= ORDINARY_SHIFT_LEVELS)
        and _smooth(shown)
        and bool(least <= contrast.min() and contrast.max() <= most)
    )


def _smooth(shown: NDArray[np.uint8]) -> bool:
    return bool(np.abs(np.diff(shown.astype(int), axis=1)).max() <= ORDINARY_SLOPE_LEVELS)


def _through(colors: NDArray[np.uint8], transform: Any) -> NDArray[np.uint8]:
    return np.asarray(_transformed(Image.fromarray(colors), transform))


def _transformed(image: Image.Image, transform: Any) -> Image.Image:
    changed = ImageCms.applyTransform(image, transform)
    if changed is None:
        raise RuntimeError("applyTransform gives None only in place")
    return changed
