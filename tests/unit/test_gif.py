"""GIFs as browsers read them, or refused."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.decode_support import gif, pixels, refusal
from tests.models_support import encode


def graphic_control(transparent: bool) -> bytes:
    return b"!\xf9\x04" + bytes((transparent, 0, 0, 0)) + b"\0"


@pytest.mark.parametrize(
    ("controls", "clear"),
    [((True,), True), ((True, False), False), ((False, True), True), ((True, False, True), True)],
)
def test_the_last_graphic_control_counts(controls, clear):
    given = red_gif(*map(graphic_control, controls))
    assert pixels(given)[0, 0].tolist() == ([255] * 3 if clear else [255, 0, 0])


def red_gif(*extensions: bytes) -> bytes:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = encode(image, "GIF")
    at = data.index(b",", 13 + 6)
    return data[:at] + b"".join(extensions) + data[at:]


def test_a_comment_is_no_graphic_control():
    """A block of 33 bytes begins with an exclamation mark, too."""
    comment = b"!\xfe" + (b"!" + b"\xf9\x04" + bytes(31)) * 2 + b"\0"
    assert pixels(red_gif(graphic_control(True), comment))[0, 0].tolist() == [255] * 3
    assert pixels(red_gif(comment, graphic_control(False)))[0, 0].tolist() == [255, 0, 0]


def test_a_graphic_control_of_more_blocks_is_left_out_whole():
    longer = graphic_control(True)[:-1] + b"\x02,," + b"\0"
    assert pixels(red_gif(longer, graphic_control(False)))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("stray", [b"\0", b"\x05", b"\xff"])
def test_browsers_show_nothing_behind_a_stray_byte_of_a_gif(stray):
    data = gif((8, 8), (0, 0, 8, 8))
    at = data.index(b",", 13 + 6)
    assert "stray" in str(refusal(data[:at] + stray + data[at:]))


@pytest.mark.parametrize("bits", [0, 1, 9, 12, 13, 255])
def test_a_gifs_codes_are_of_two_to_eight_bits(bits):
    """Pillow takes up to 12, and shows what browsers do not."""
    data = red_gif()
    at = data.index(b",", 13 + 6) + 10
    assert data[at] in range(2, 9)
    assert "2 to 8 bits" in str(refusal(data[:at] + bytes((bits,)) + data[at + 1 :]))


@pytest.mark.parametrize(
    ("version", "canvas", "frame", "in_place"),
    [
        (b"GIF89a", (8, 8), (0, 0, 8, 8), True),
        (b"GIF87a", (8, 8), (0, 0, 8, 8), True),
        (b"GIF89a", (0, 0), (0, 0, 8, 8), True),
        (b"GIF87a", (8, 3), (0, 0, 8, 8), True),
        (b"GIF89a", (9, 9), (1, 1, 8, 8), True),
        (b"GIF87a", (9, 9), (1, 1, 8, 8), False),
        (b"GIF87a", (9, 9), (0, 0, 8, 8), False),
        (b"GIF89a", (9, 9), (2, 1, 8, 8), False),
        (b"GIF89a", (8, 8), (1, 0, 8, 8), False),
        (b"GIF89a", (100, 4), (0, 0, 8, 8), False),
        (b"GIF89a", (0, 0), (90, 0, 8, 8), False),
    ],
)
def test_a_gifs_first_frame_is_where_every_program_puts_it(version, canvas, frame, in_place):
    """Chromium enlarges the canvas, Firefox moves or cuts the frame: in a large one, no model would find it."""
    data = version + gif(canvas, frame)[6:]
    if in_place:
        assert pixels(data).shape == (max(canvas[1], 8), max(canvas[0], 8), 3)
    else:
        assert "not where its canvas is" in str(refusal(data))


@pytest.mark.parametrize("key", [None, 3])
def test_pixels_that_a_gifs_palette_lacks_are_refused(key):
    """Unless they are clear."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.putpixel((2, 2), 3)
    options = {} if key is None else {"transparency": 3}
    data = encode(image, "GIF", optimize=False, **options)
    assert data[10] & 7 == 1
    short = data[:10] + bytes((data[10] & 0xF8,)) + data[11:19] + data[25:]
    if key:
        assert pixels(short)[2, 2].tolist() == [255] * 3
    else:
        assert "palette lacks" in str(refusal(short))


def test_a_gif_without_a_palette_is_refused():
    data = gif((8, 8), (0, 0, 8, 8))
    size = 3 << (data[10] & 7) + 1
    bare = data[:10] + bytes((data[10] & 0x7F,)) + data[11:13] + data[13 + size :]
    assert "palette" in str(refusal(bare))
