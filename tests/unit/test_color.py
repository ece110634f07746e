"""Colours as a person sees them: profiles and gamma that turn a picture into another one are obeyed."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from classifleet.config import ErrorCode, ImageError
from classifleet.worker import icc
from classifleet.worker.decode import DecodeLimits, decode
from tests.models_support import encode, noise, spec

RED_XYZ, GREEN_XYZ, BLUE_XYZ = (0.436, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
SRGB = (RED_XYZ, GREEN_XYZ, BLUE_XYZ)
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
IMAGENET = spec(resize="shortest_edge_crop", resize_size=256, crop_size=[224, 224])
KINDS = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


def pixels(data: bytes) -> np.ndarray:
    (picture,) = decode(data).pictures.values()
    return np.asarray(picture.image).astype(int)


TABLES = b"mft2" + bytes(60)


def profile(
    primaries=SRGB,
    curve: float | list[int] = 2.2,
    space: bytes = b"RGB ",
    formula: tuple[float, ...] = (),
    extra: dict[bytes, bytes] | None = None,
    twice: bytes = b"",
) -> bytes:
    """An ICC profile (version 2) of three primaries and one curve: a gamma, 16-bit levels, or a formula.

    And of what else is in it; one tag may be listed twice.
    """

    def xyz(values):
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65_536)) for value in values)

    levels = [round(curve * 256)] if isinstance(curve, float) else curve
    curves = b"curv" + bytes(4) + struct.pack(f">I{len(levels)}H", len(levels), *levels)
    if formula:
        values = b"".join(struct.pack(">i", round(value * 65_536)) for value in formula)
        curves = b"para" + bytes(4) + struct.pack(">H2x", {1: 0, 3: 1, 4: 2, 5: 3, 7: 4}[len(formula)]) + values
    tags = {b"wtpt": xyz((0.9642, 1, 0.8249)), b"desc": b"desc" + bytes(90), **(extra or {})}
    if space == b"GRAY":
        tags[b"kTRC"] = curves
    else:
        tags |= {b"rgb"[n : n + 1] + b"XYZ": xyz(primaries[n]) for n in range(3)}
        tags |= {b"rgb"[n : n + 1] + b"TRC": curves for n in range(3)}
    listed = [*tags.items(), *((name, value) for name, value in tags.items() if name == twice)]
    table, body = struct.pack(">I", len(listed)), b""
    for name, value in listed:
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(listed) + len(body), len(value))
        body += padded
    head = struct.pack(
        ">I4sI4s4s4s12x4s28x", 132 + len(table) - 4 + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ", b"acsp"
    )
    head += xyz((0.9642, 1, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + body


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return (
        data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + data[33:]
    )


def gamma(exponent: float, image: Image.Image) -> bytes:
    return with_chunk(encode(image, "PNG"), b"gAMA", struct.pack(">I", round(exponent * 100_000)))


@pytest.mark.parametrize("primaries", [SRGB, ADOBE, DISPLAY_P3, PROPHOTO], ids=["sRGB", "Adobe", "P3", "ProPhoto"])
@pytest.mark.parametrize("curve", [1.8, 2.2])
def test_ordinary_profiles_are_not_applied_as_in_training(primaries, curve):
    image = noise(60, 40)
    assert np.array_equal(pixels(encode(image, "PNG", icc_profile=profile(primaries, curve))), np.asarray(image))


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_that_swaps_colours_is_obeyed(kind):
    data = encode(Image.new("RGB", (16, 16), (250, 10, 10)), kind, icc_profile=profile(SRGB[::-1]), **KINDS[kind])
    red, _, blue = pixels(data)[8, 8]
    assert blue > 200 > 80 > red  # a browser shows blue


INVERTING = [65_535 - round((level / 255) ** 2.2 * 65_535) for level in range(256)]
TEARING = [0 if level < 128 else 65_535 for level in range(256)]
NARROW = [
    round((level / 255) ** 2.2 * 65_535) if not 126 <= level <= 129 else (level % 2) * 65_535 for level in range(256)
]


@pytest.mark.parametrize(
    ("curve", "level", "seen"),
    [
        (INVERTING, 250, 58),
        (TEARING, 127, 0),
        (TEARING, 128, 255),
        (NARROW, 127, 255),
        (NARROW, 128, 0),
        (1.0, 40, 110),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_a_profile_that_makes_another_picture_is_obeyed(curve, level, seen, mode):
    image = Image.new("RGB", (16, 16), (level,) * 3)
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    space = b"GRAY" if mode in ("L", "LA") else b"RGB "
    found = pixels(encode(image, "PNG", icc_profile=profile(curve=curve, space=space)))
    assert np.abs(found - seen).max() <= 8


def test_alpha_is_kept_where_colours_are_changed():
    image = Image.new("RGBA", (2, 1), (250, 10, 10, 255))
    image.putpixel((1, 0), (250, 10, 10, 0))
    found = pixels(encode(image, "PNG", icc_profile=profile(SRGB[::-1])))
    assert found[0, 0, 2] > 200
    assert found[0, 1].tolist() == [255] * 3


def test_a_table_of_colours_is_never_ordinary():
    assert icc.study(profile(), "RGB", "PNG").change is None
    with pytest.raises(ImageError, match="some programs obey"):  # its table is none
        icc.study(profile(extra={b"A2B0": TABLES}), "RGB", "PNG")


@pytest.mark.parametrize(("space", "obeyed"), [(b"DEBM", True), (b"BGRs", False)])
def test_the_profile_of_a_bmp_is_obeyed(space, obeyed):
    swapping = profile(primaries=SRGB[::-1])
    rows = bytes((0, 0, 255, 0)) * 64
    head = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 32, 0, len(rows), 0, 0, 0, 0) + bytes(16) + space + bytes(48)
    head += struct.pack("<IIII", 4, 124 + len(rows), len(swapping), 0)
    data = b"BM" + struct.pack("<IHHI", 138 + len(rows) + len(swapping), 0, 0, 138) + head + rows + swapping
    assert (pixels(data)[0, 0] > 200).tolist() == ([False, False, True] if obeyed else [True, False, False])


def with_float_steps(base: bytes, name: bytes, steps: int) -> bytes:
    """A profile with a tag in floating point: so many times the same matrix, which swaps red and blue."""
    matrix = b"matf" + bytes(4) + struct.pack(">HH9f3f", 3, 3, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0)
    head = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, steps)
    value = head + struct.pack(">II", len(head) + 8 * steps, len(matrix)) * steps + matrix
    count = int.from_bytes(base[128:132])
    entries = [struct.unpack_from(">4sII", base, 132 + 12 * number) for number in range(count)]
    table = b"".join(struct.pack(">4sII", tag, at + 12, size) for tag, at, size in entries)
    table += struct.pack(">4sII", name, len(base) + 12, len(value))
    grown = struct.pack(">I", count + 1) + table + base[132 + 12 * count :] + value
    head = struct.pack(">I", 128 + len(grown)) + base[4:8] + b"\x04\x30\0\0" + base[12:128]
    return head + grown


@pytest.mark.parametrize("name", [b"D2B0", b"D2B1", b"D2B3", b"B2D0"])
@pytest.mark.parametrize("steps", [1, 3000])
def test_steps_in_floating_point_are_passed_over_as_in_browsers(name, steps):
    """lcms takes 2 ms for each step."""
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    began = time.thread_time()
    data = encode(image, "PNG", icc_profile=with_float_steps(profile(), name, steps))
    assert np.array_equal(pixels(data), np.asarray(image))
    assert time.thread_time() - began < 1
    swapping = encode(image, "PNG", icc_profile=with_float_steps(profile(primaries=SRGB[::-1]), name, steps))
    assert (pixels(swapping)[0, 0] > 200).tolist() == [False, False, True]


def test_what_will_be_torn_apart_is_not_averaged_before():
    """Stripes of 127 and 128 are black and white to a person, and one grey after scaling: scale second."""
    stripes = Image.fromarray(np.tile(np.repeat(np.array([[126, 126, 129, 129]], np.uint8), 1600, 0), 400))
    data = encode(stripes.convert("RGB"), "JPEG", quality=100, icc_profile=profile(curve=TEARING))
    (picture,) = decode(data, targets=[IMAGENET], limits=DecodeLimits()).pictures.values()
    assert picture.image.width == 1600
    assert set(np.unique(np.asarray(picture.image))) == {0, 255}


@pytest.mark.parametrize(
    "broken", [b"", b"\0" * 200, profile()[:150], profile(space=b"GRAY"), profile(space=b"CMYK"), b"\xff" * 100_000]
)
def test_a_broken_or_unfitting_profile_is_no_profile(broken):
    image = noise(60, 40)
    assert np.array_equal(pixels(encode(image, "PNG", icc_profile=broken)), np.asarray(image))


@pytest.mark.parametrize("broken", [b"", profile()[:150], profile(space=b"GRAY")])
def test_behind_a_broken_profile_the_gamma_counts(broken):
    data = with_chunk(encode(Image.new("RGB", (4, 4), (40,) * 3), "PNG", icc_profile=broken), *LINEAR)
    assert np.abs(pixels(data) - 110).max() <= 1


# gamma and primaries

LINEAR = (b"gAMA", struct.pack(">I", 100_000))
WHITE, R, G, B = (0.3127, 0.329), (0.64, 0.33), (0.3, 0.6), (0.15, 0.06)


def primaries(*chromaticities: tuple[float, float], exponent: float | None = 0.45455) -> bytes:
    """A PNG with white, red, green and blue."""
    data = encode(noise(60, 40), "PNG") if exponent is None else gamma(exponent, noise(60, 40))
    return with_chunk(
        data, b"cHRM", struct.pack(">8i", *(round(x * 100_000) for pair in chromaticities for x in pair))
    )


@pytest.mark.parametrize("swapped", [(B, G, R), (G, R, B), (R, B, G), (G, B, R)])
def test_primaries_that_swap_colours_are_refused(swapped):
    with pytest.raises(ImageError, match="cHRM") as caught:
        decode(primaries(WHITE, *swapped))
    assert caught.value.code is ErrorCode.UNSUPPORTED_FORMAT
    assert str(caught.value).isprintable()
    image = np.asarray(noise(60, 40))
    assert np.array_equal(pixels(primaries(WHITE, *swapped, exponent=None)), image)  # as in browsers: not alone
    assert np.array_equal(pixels(with_chunk(primaries(WHITE, *swapped), b"sRGB", b"\0")), image)


@pytest.mark.parametrize(
    "ordinary",
    [
        (WHITE, R, G, B),
        (WHITE, (0.68, 0.32), (0.265, 0.69), B),
        (WHITE, R, (0.21, 0.71), B),
        (WHITE, (0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
        ((0.3457, 0.3585), (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)),
        ((0.31, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
        ((0.0, 0.0),) * 4,
        ((0.32168, 0.33767), (0.7347, 0.2653), (0.0, 1.0), (0.0001, -0.077)),
    ],
    ids=["sRGB", "P3", "Adobe", "BT.2020", "ProPhoto", "NTSC", "zeros", "ACES"],
)
def test_ordinary_and_meaningless_primaries_are_not_applied(ordinary):
    assert np.array_equal(pixels(primaries(*ordinary)), np.asarray(noise(60, 40)))


@pytest.mark.parametrize("meaningless", [((0.0, 0.0),) * 4, (WHITE, R, G, (0.15, -0.05)), (WHITE, (1.2, 0.33), G, B)])
def test_a_strange_gamma_beside_meaningless_primaries_is_refused(meaningless):
    """Chromium ignores both, libpng the primaries alone."""
    assert pixels(primaries(*meaningless)).shape == (40, 60, 3)
    with pytest.raises(ImageError, match="cHRM"):
        decode(primaries(*meaningless, exponent=1.0))


@pytest.mark.parametrize("colours", [(WHITE, R, R, R), ((3.127, 3.29), (6.4, 3.3), (3.0, 6.0), (1.5, 0.6))])
def test_primaries_of_no_colours_are_refused(colours):
    """Firefox obeys them."""
    with pytest.raises(ImageError, match="cHRM"):
        decode(primaries(*colours))


@pytest.mark.parametrize("at", range(4))
def test_a_primary_without_light_is_refused(at):
    dark = [WHITE, R, G, B]
    dark[at] = (0.3, 0.0)
    with pytest.raises(ImageError, match="cHRM"):
        decode(primaries(*dark))


def test_greys_have_no_primaries():
    grey = noise(60, 40).convert("L")
    odd = struct.pack(">8i", *(round(x * 100_000) for pair in (WHITE, B, G, R) for x in pair))
    data = with_chunk(gamma(0.45455, grey), b"cHRM", odd)
    assert np.array_equal(pixels(data)[..., 0], np.asarray(grey))


@pytest.mark.parametrize("exponent", [0.45455, 0.5, 0.55556, 0.0])
def test_an_ordinary_gamma_is_not_applied(exponent):
    image = noise(60, 40)
    assert np.array_equal(pixels(gamma(exponent, image)), np.asarray(image))


@pytest.mark.parametrize(
    ("exponent", "level", "seen"), [(1.0, 40, 110), (0.023, 250, 172), (0.023, 200, 2), (38.0, 3, 242)]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_a_gamma_that_makes_another_picture_is_obeyed(exponent, level, seen, mode):
    image = Image.new("RGB", (4, 4), (level,) * 3)
    found = pixels(gamma(exponent, image.quantize(2) if mode == "P" else image.convert(mode)))
    assert np.abs(found - seen).max() <= 1


@pytest.mark.parametrize("exponent", [0.00001, 0.005, 200.0, 7000.0])
def test_a_gamma_out_of_range_is_refused(exponent):
    """Chromium obeys it, Firefox does not."""
    with pytest.raises(ImageError, match="strange gamma"):
        decode(gamma(exponent, noise(60, 40)))


def test_a_profile_comes_before_gamma_and_srgb_contradicts_it():
    """Firefox applies a gamma even then."""
    image = noise(60, 40)
    assert np.array_equal(pixels(with_chunk(gamma(0.45455, image), b"sRGB", b"\0")), np.asarray(image))
    with pytest.raises(ImageError, match="sRGB and of another gamma"):
        decode(with_chunk(gamma(1.0, image), b"sRGB", b"\0"))
    both = with_chunk(encode(image, "PNG", icc_profile=profile()), b"gAMA", struct.pack(">I", 100_000))
    assert np.array_equal(pixels(both), np.asarray(image))


# coding-independent code points


def test_code_points_of_srgb_come_before_all():
    image = noise(60, 40)
    data = with_chunk(encode(image, "PNG", icc_profile=profile(SRGB[::-1])), b"cICP", bytes([1, 13, 0, 1]))
    assert np.array_equal(pixels(data), np.asarray(image))


@pytest.mark.parametrize("code", [(9, 16, 0, 1), (9, 18, 0, 1), (1, 8, 0, 1), (1, 13, 1, 1), (1, 13, 0, 0)])
def test_hdr_is_refused_in_words(code):
    with pytest.raises(ImageError, match="cICP") as caught:
        decode(with_chunk(encode(noise(60, 40), "PNG"), b"cICP", bytes(code)))
    assert caught.value.code is ErrorCode.UNSUPPORTED_FORMAT
    assert str(caught.value).isprintable()


# CMYK and YCCK


@pytest.mark.parametrize(
    ("transform", "samples", "seen"),
    [
        (0, (255, 0, 0, 255), (255, 0, 0)),
        (0, (179, 171, 0, 255), (179, 171, 0)),
        (2, (179, 171, 0, 255), (255, 0, 0)),  # Y, Cb, Cr of cyan, the complement of what is seen
        (2, (0, 128, 128, 255), (255, 255, 255)),
        (2, (255, 128, 128, 255), (0, 0, 0)),
        (2, (0, 128, 128, 0), (0, 0, 0)),
    ],
)
def test_the_adobe_marker_tells_ycck_from_cmyk(transform, samples, seen):
    image = Image.new("CMYK", (16, 16), tuple(255 - sample for sample in samples))  # Pillow writes them inverted
    data = encode(image, "JPEG", quality=100)
    at = data.index(b"Adobe") + 11
    assert np.abs(pixels(data[:at] + bytes([transform]) + data[at + 1 :])[8, 8] - seen).max() <= 3


def test_cmyk_is_inverted_as_browsers_do():
    assert pixels(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))[8, 8].tolist() == [
        255,
        0,
        0,
    ]
