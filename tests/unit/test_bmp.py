"""BMPs that Pillow reads in another way than browsers do."""

from __future__ import annotations

import struct

import pytest

from classifleet.config import ErrorCode
from tests.decode_support import pixels, refusal

BLACK_AND_WHITE = (0, 255)


def bmp(
    rows: list[bytes], bits: int, width: int, *, greys=(), colors: int | None = None, size: int = 40, coding: int = 0
):
    """One from its rows, the last first, and a palette of greys."""
    palette = b"".join(bytes((grey,) * 3 + (0,) * (size > 12)) for grey in greys)
    begin, body = 14 + size + len(palette), b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    if size == 12:
        head = struct.pack("<I4H", 12, width, len(rows), 1, bits)
    else:
        used = len(greys) if colors is None else colors
        head = struct.pack("<IiiHHI4xii2I", size, width, len(rows), 1, bits, coding, 0, 0, used, 0).ljust(size, b"\0")
    return struct.pack("<2sIII", b"BM", begin + len(body), 0, begin) + head + palette + body


@pytest.mark.parametrize(
    ("bits", "row", "greys", "seen"),
    [
        (8, b"\0\1\1\0\1", BLACK_AND_WHITE, [0, 255, 255, 0, 255]),
        (4, b"\x01\x10\x10", BLACK_AND_WHITE, [0, 255, 255, 0, 255]),
        (4, b"\x01\x23\x40", range(5), [0, 1, 2, 3, 4]),
        (8, b"\0\1\2\3\4", range(5), [0, 1, 2, 3, 4]),
        (8, b"\0\1\x80\xfe\xff", range(256), [0, 1, 128, 254, 255]),
        (1, b"\x68", BLACK_AND_WHITE, [0, 255, 255, 0, 255]),
        (1, b"\0", [0], [0] * 5),
    ],
)
def test_a_palette_of_greys_is_a_palette(bits, row, greys, seen):
    """Pillow leaves it out, and reads pixels of 4 bits, or of 8, as of 1 or 8."""
    data = bmp([row] * 4, bits, 5, greys=greys)
    assert pixels(data).tolist() == [[[grey] * 3 for grey in seen]] * 4


@pytest.mark.parametrize(
    ("bits", "row", "greys"), [(8, b"\0\1\3\0\1", BLACK_AND_WHITE), (4, b"\x01\x23\x90", range(5))]
)
def test_greys_that_a_palette_lacks_are_refused(bits, row, greys):
    error = refusal(bmp([row] * 4, bits, 5, greys=greys))
    assert (error.code, "palette lacks" in str(error)) == (ErrorCode.UNDECODABLE, True)


def test_the_first_grey_that_a_palette_lacks_is_black():
    """As in Chromium: a colour was added to keep Pillow from the palette."""
    assert pixels(bmp([b"\x68"] * 4, 1, 5, greys=[0])).max() <= 1


def test_an_old_version_in_almost_black_greys_is_refused():
    assert refusal(bmp([b"\x01\x23\x40"] * 6, 4, 5, greys=range(16), size=12)).code is ErrorCode.UNSUPPORTED_FORMAT
    colors = bmp([b"\x01\x23\x40"] * 6, 4, 5, greys=range(0, 160, 10), size=12)
    assert pixels(colors)[0].tolist() == [[level] * 3 for level in (0, 10, 20, 30, 40)]


def test_a_row_that_is_not_whole_is_refused():
    """Browsers leave it out for want of its padding alone."""
    whole = bmp([b"\0\1\1\0\1"] * 4, 8, 5, greys=(10, 200))
    assert pixels(whole).shape == (4, 5, 3)
    assert refusal(whole[:-1]).code is ErrorCode.UNDECODABLE


@pytest.mark.parametrize(("bits", "greys"), [(24, ()), (8, range(0, 250, 5))])
def test_an_old_version_has_its_pixels_behind_its_palette(bits, greys):
    data = bytearray(bmp([bytes(bits // 8 * 5)] * 4, bits, 5, greys=greys, size=12))
    if bits == 24:
        assert pixels(bytes(data)).shape == (4, 5, 3)
        data[10] = 8
    assert "out of place" in str(refusal(bytes(data) + bytes(900)))


@pytest.mark.parametrize("at", [54, 58, 62])
def test_a_colour_without_a_mask_is_refused(at):
    """Pillow takes no masks for the usual ones."""
    data = bytearray(bmp([bytes((1, 2, 3, 0)) * 4] * 4, 32, 4, size=56, coding=3))
    struct.pack_into("<4I", data, 54, 0xFF0000, 0xFF00, 0xFF, 0)
    assert pixels(bytes(data))[0, 0].tolist() == [3, 2, 1]
    data[at : at + 4] = bytes(4)
    assert refusal(bytes(data)).code is ErrorCode.UNDECODABLE
    data[54:66] = bytes(12)
    assert "a mask for each colour" in str(refusal(bytes(data)))


def test_a_compressed_one_of_os2_is_refused():
    """Its code for one compression is that of masks elsewhere."""
    data = bmp([bytes(20)] * 4, 32, 5, size=64, coding=3)
    assert refusal(data).code is ErrorCode.UNSUPPORTED_FORMAT


def calibrated(gamma: float, *points: tuple[float, float]) -> bytes:
    """A white one of version 4, in colours of its own: x and y of red, green and blue."""
    data = bytearray(bmp([bytes((200,) * 3 + (255,)) * 4] * 4, 32, 4, size=108))
    for number, (x, y) in enumerate(points):
        struct.pack_into("<3i", data, 74 + 12 * number, *(round(value * 2**30) for value in (x, y, 1 - x - y)))
    struct.pack_into("<3I", data, 110, *[round(gamma * 65_536)] * 3)
    return bytes(data)


POINTS = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))


@pytest.mark.parametrize("gamma", [0.0, 1.8, 2.2])
def test_ordinary_colours_of_its_own_are_not_applied(gamma):
    assert (pixels(calibrated(gamma, *POINTS)) == 200).all()
    assert (pixels(calibrated(gamma)) == 200).all()


@pytest.mark.parametrize(
    ("gamma", "points"), [(0.45, POINTS), (20.0, POINTS), (2.2, POINTS[::-1]), (2.2, ((0.3, 0.0),) * 3)]
)
def test_strange_colours_of_its_own_are_refused(gamma, points):
    """Firefox obeys them."""
    error = refusal(calibrated(gamma, *points))
    assert (error.code, "strange colours" in str(error)) == (ErrorCode.UNSUPPORTED_FORMAT, True)
