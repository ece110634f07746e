"""Profiles that programs read in different ways: in the way of browsers, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from classifleet.config import ErrorCode, ImageError
from classifleet.worker.decode import decode
from tests.models_support import encode, noise
from tests.unit.test_color import BLUE_XYZ, RED_XYZ, SRGB, TABLES, pixels, profile, with_chunk

SWAPPING = profile(SRGB[::-1])
SHOWN = noise(64, 32)


def changed(at: int, value: int) -> bytes:
    return SWAPPING[:at] + bytes((value,)) + SWAPPING[at + 1 :]


def test_a_strange_profile_of_an_animated_webp_is_refused():
    """Firefox obeys it, Chromium does not."""
    options = {"save_all": True, "append_images": [noise(64, 32).rotate(180)], "lossless": True}
    plain = encode(SHOWN, "WEBP", **options)
    assert np.array_equal(pixels(encode(SHOWN, "WEBP", icc_profile=profile(), **options)), pixels(plain))
    with pytest.raises(ImageError, match="animated WEBP"):
        decode(encode(SHOWN, "WEBP", icc_profile=SWAPPING, **options))


def test_a_webp_announces_its_profile():
    data = bytearray(encode(SHOWN, "WEBP", icc_profile=SWAPPING, lossless=True))
    data[20] &= ~0x20
    assert np.array_equal(pixels(bytes(data)), np.asarray(SHOWN))


def test_a_profile_of_colours_counts_for_greys_of_a_jpeg():
    """For those of a PNG in Chromium alone."""
    grey = SHOWN.convert("L")
    found = pixels(encode(grey, "JPEG", icc_profile=profile(curve=6.0)))
    assert np.abs(found - pixels(encode(grey, "JPEG", icc_profile=profile(curve=6.0, space=b"GRAY")))).max() <= 1
    assert found.mean() < pixels(encode(grey, "JPEG")).mean() - 48
    assert pixels(encode(grey, "PNG", icc_profile=profile())).any()
    with pytest.raises(ImageError, match="of colours, for greys"):
        decode(encode(grey, "PNG", icc_profile=profile(curve=6.0)))


@pytest.mark.parametrize("at", range(12, 16))
def test_a_strange_profile_is_of_a_known_class(at):
    """Firefox passes over others, Chromium does not; who has an ordinary one is not asked."""
    with pytest.raises(ImageError, match="some programs obey"):
        decode(encode(SHOWN, "PNG", icc_profile=changed(at, 1)))
    ordinary = profile()
    assert np.array_equal(
        pixels(encode(SHOWN, "PNG", icc_profile=ordinary[:at] + b"\1" + ordinary[at + 1 :])), np.asarray(SHOWN)
    )


@pytest.mark.parametrize(
    "broken",
    [
        changed(0, 1),  # longer than it is
        changed(70, 0xFF),  # another white
        changed(132 + 4, 0xFF),  # a tag outside
        profile((RED_XYZ, BLUE_XYZ, (0.1, -3.0, 0.1))),
        profile(SRGB[::-1], curve=0.0),
        changed(67, 9),  # an intent that nobody knows
        changed(8, 5),  # a version of tomorrow
        profile(SRGB[::-1], extra={b"A2B1": TABLES}),
        profile(extra={b"A2B1": TABLES}),
        profile(SRGB[::-1], formula=(1.0, -1.0, 1.0, 0.0, 0.0)),
        profile(SRGB[::-1], formula=(-1.0,)),
        profile(SRGB[::-1], twice=b"rTRC"),
        profile(SRGB[::-1], twice=b"desc"),
        profile(curve=[65_535 * (n % 2) for n in range(33_000)]),
    ],
)
def test_a_strange_profile_that_some_programs_obey_is_refused(broken):
    """Chromium passes over it, lcms does not."""
    with pytest.raises(ImageError, match="a profile that is broken") as caught:
        decode(encode(SHOWN, "PNG", icc_profile=broken))
    assert caught.value.code is ErrorCode.UNSUPPORTED_FORMAT
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", [(9, 16), (9, 18), (1, 16), (1, 8)])
def test_a_profile_of_hdr_is_refused(code):
    """Chromium obeys its code points."""
    hdr = profile(extra={b"cicp": b"cicp" + bytes(4) + bytes((*code, 0, 1))})
    with pytest.raises(ImageError, match="of HDR colours"):
        decode(encode(SHOWN, "PNG", icc_profile=hdr))
    sdr = profile(extra={b"cicp": b"cicp" + bytes(4) + bytes((12, 13, 0, 1))})
    assert np.array_equal(pixels(encode(SHOWN, "PNG", icc_profile=sdr)), np.asarray(SHOWN))


def test_a_profile_of_colours_for_inks_is_ordinary_or_refused():
    """Firefox obeys it."""
    inks = SHOWN.convert("CMYK")
    plain = pixels(encode(inks, "JPEG"))
    assert np.array_equal(pixels(encode(inks, "JPEG", icc_profile=profile())), plain)
    with pytest.raises(ImageError, match="some programs obey"):
        decode(encode(inks, "JPEG", icc_profile=SWAPPING))


def steps(*points: tuple[float, float]) -> list[int]:
    """A curve, as seen on a display of gamma 2.2, that makes these of those levels."""
    seen = np.interp(range(256), *zip((0, 0), *points, (255, 255), strict=True)) / 255
    return [round(65_535 * level) for level in seen**2.2]


@pytest.mark.parametrize("points", [((123, 81), (133, 176)), ((80, 123), (176, 133))], ids=["appears", "vanishes"])
def test_a_curve_that_makes_a_picture_of_few_levels_is_not_ordinary(points):
    few = Image.fromarray(np.linspace(80, 176, 64 * 64).astype(np.uint8).reshape(64, 64)).convert("RGB")
    found = pixels(encode(few, "PNG", icc_profile=profile(curve=steps(*points))))
    assert (
        np.abs(
            found[..., 1] - np.interp(np.asarray(few)[..., 1], *zip((0, 0), *points, (255, 255), strict=True))
        ).max()
        <= 6
    )


@pytest.mark.parametrize("code", [(0, 13, 0, 1), (2, 13, 0, 1), (10, 13, 0, 1), (200, 13, 0, 1), (1, 13, 0, 2)])
def test_code_points_that_browsers_do_not_read_are_refused(code):
    """They would take the gamma beside them."""
    with pytest.raises(ImageError, match="cICP"):
        decode(with_chunk(encode(SHOWN, "PNG"), b"cICP", bytes(code)))


LAB, XYZ = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes() for space in ("LAB", "XYZ"))


@pytest.mark.parametrize("brought", [LAB, XYZ, profile(space=b"RGB\3")], ids=["LAB", "XYZ", "unknown"])
def test_a_profile_of_a_space_that_no_picture_has_is_refused(brought):
    """Chromium reads a PNG's pixels in it, others as they are."""
    with pytest.raises(ImageError, match="of another space") as caught:
        decode(encode(SHOWN, "PNG", icc_profile=brought))
    assert caught.value.code is ErrorCode.UNSUPPORTED_FORMAT
    assert str(caught.value).isprintable()
