"""WebPs as browsers read them, or refused."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from classifleet.config import ErrorCode
from tests.decode_support import pixels, refusal
from tests.models_support import encode

FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]


def animation() -> bytearray:
    return bytearray(encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True))


@pytest.mark.parametrize("at", [6, 9])
def test_a_frame_of_a_webp_is_of_its_size(at):
    """Pillow shows black around one that is smaller than it says, and browsers nothing."""
    data = animation()
    data[24], data[27] = 15, 15  # the canvas, less one
    frame = data.index(b"ANMF") + 8
    assert pixels(bytes(data)).shape == (16, 16, 3)
    data[frame + at] = 11
    assert "not of its size" in str(refusal(bytes(data)))


def test_the_first_frame_of_a_webp_is_a_chunk():
    """And not what looks like one in another."""
    data = animation()
    fake = b"JUNK" + struct.pack("<I", 32) + b"ANMF" + struct.pack("<I", 24) + bytes(6) + data[24:30] + bytes(12)
    data[20] &= ~0x10
    at = data.index(b"ANIM")
    data[24] = 15
    longer = (
        bytes(data[:4]) + struct.pack("<I", len(data) - 8 + len(fake)) + bytes(data[8:at]) + fake + bytes(data[at:])
    )
    assert pixels(longer)[0, 15].tolist() == [255] * 3


def test_an_animated_webp_that_hides_its_transparency_is_refused():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    data = bytearray(encode(clear, "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True, exact=True))
    assert pixels(bytes(data))[0, 0].tolist() == [255] * 3
    data[20] &= ~0x10
    assert "does not announce" in str(refusal(bytes(data)))


def test_frames_without_end_are_no_frames():
    endless = b"RIFF\xff\xff\xff\x00WEBPVP8X" + struct.pack("<I", 10) + b"\2" + bytes(9) + b"junk\0\0\0\0" * 30_000
    assert "parts" in str(refusal(endless))
    assert "without a frame" in str(refusal(endless[:60]))


def test_what_a_webps_first_frame_leaves_out_is_background():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    data[20] &= ~0x10
    data[24] = 15  # width, less one
    found = pixels(bytes(data))
    assert (found[0, 0].tolist(), found[0, 15].tolist()) == ([255, 0, 0], [255] * 3)


def test_a_webp_that_hides_its_transparency_is_refused():
    """Pillow shows what is clear; browsers, a mixture of their own."""
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    extended = encode(clear, "WEBP", lossless=True, exact=True)
    at = extended.index(b"VP8L")
    lossless = bytearray(extended[at:])
    riff = b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP"
    found = pixels(riff + bytes(lossless))
    assert (found[0, 0].tolist(), found[5, 5].tolist()) == ([0, 0, 255], [255] * 3)
    lossless[12] &= ~0x10  # the hint that there is any
    assert "does not announce" in str(refusal(riff + bytes(lossless)))
    announced = bytearray(encode(clear, "WEBP", lossless=True, exact=True, exif=b"II*\0\x08\0\0\0\0\0"))
    announced[20] &= ~0x10
    assert "does not announce" in str(refusal(bytes(announced)))
    opaque = encode(clear.convert("RGB"), "WEBP", lossless=True, exif=b"II*\0\x08\0\0\0\0\0")
    assert pixels(opaque)[5, 5].tolist() == [255, 0, 0]
    twice = bytes(lossless) + b"ALPH" + struct.pack("<I", 65) + bytes(66)
    assert refusal(b"RIFF" + struct.pack("<I", 4 + len(twice)) + b"WEBP" + twice).code is ErrorCode.UNDECODABLE
