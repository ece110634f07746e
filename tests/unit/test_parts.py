"""What browsers do not read of a file, Pillow is not shown: neither to believe it, nor to spend time on it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from classifleet.config.errors import ErrorCode
from classifleet.worker.decode import decode
from classifleet.worker.formats import as_browsers_read
from tests.decode_support import chunk, pixels, png, refusal
from tests.models_support import encode, noise, spec
from tests.unit.test_color import SRGB, profile

HEADER_END = 33
END_BYTES = 12
PICTURE = noise(64, 32)
PLAIN = encode(PICTURE, "PNG")
PALETTE = encode(PICTURE.quantize(8), "PNG", bits=8)
TIFF = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLHH", 0x112, 3, 1, 6, 0) + bytes(4)
"""Exif that turns the picture."""


UPRIGHT = TIFF.replace(b"\x06\0", b"\x01\0")


def before(data: bytes, *chunks: bytes) -> bytes:
    return data[:HEADER_END] + b"".join(chunks) + data[HEADER_END:]


def behind(data: bytes, *chunks: bytes) -> bytes:
    return data[:-END_BYTES] + b"".join(chunks) + data[-END_BYTES:]


def text(kind: bytes, keyword: bytes, value: bytes) -> bytes:
    heads = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\0\0\0\0"}
    return chunk(kind, keyword + heads[kind] + (zlib.compress(value) if kind == b"zTXt" else value))


GAMMA, LINEAR = (chunk(b"gAMA", struct.pack(">I", value)) for value in (45_455, 100_000))
ACTUAL = {
    b"exif": b"",
    b"icc_profile": LINEAR,
    b"srgb": LINEAR,
    b"gamma": b"",
    b"chromaticity": GAMMA,
    b"transparency": b"",
    b"interlace": b"",
    b"bbox": b"",
    b"default_image": b"",
    b"disposal": b"",
    b"blend": b"",
}
"""Keywords under which Pillow keeps real metadata, and a chunk beside which it would show."""


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("keyword", ACTUAL)
@pytest.mark.parametrize("place", [before, behind])
@pytest.mark.parametrize("plain", [PLAIN, PALETTE], ids=["RGB", "palette"])
def test_no_text_of_a_png_shapes_the_picture(kind, keyword, place, plain):
    honest = before(plain, ACTUAL[keyword])
    wanted = pixels(honest)
    assert np.array_equal(pixels(place(honest, text(kind, keyword, TIFF))), wanted)


def test_texts_made_another_picture_in_pillow():
    """What the test above guards against; if this fails, Pillow has mended it."""
    interlaced = Image.open(io.BytesIO(before(PLAIN, text(b"tEXt", b"interlace", b"1"))))
    with pytest.raises(OSError, match="image file"):
        interlaced.load()
    assert Image.open(io.BytesIO(before(PLAIN, text(b"tEXt", b"exif", TIFF)))).getexif()[0x112] == 6


TWINS = {
    "gamma": (GAMMA, LINEAR),
    "exif": (chunk(b"eXIf", TIFF.replace(b"\x06\0", b"\x01\0")), chunk(b"eXIf", TIFF)),
    "code points": (chunk(b"cICP", bytes([1, 13, 0, 1])), chunk(b"cICP", bytes([9, 16, 0, 1]))),
    "key": (chunk(b"tRNS", b"\0\1\0\2\0\3"), chunk(b"tRNS", struct.pack(">HHH", *PICTURE.getpixel((0, 0))))),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_first_of_twins_counts(name):
    first, second = TWINS[name]
    assert np.array_equal(pixels(before(PLAIN, first, second)), pixels(before(PLAIN, first)))


@pytest.mark.parametrize("stray", [second for _, second in TWINS.values()], ids=TWINS)
def test_nothing_behind_the_picture_shapes_it(stray):
    assert np.array_equal(pixels(behind(PLAIN, stray)), pixels(PLAIN))


@pytest.mark.parametrize("stray", [chunk(b"gAMA", b"\0\1\x86\xa0\0"), chunk(b"sRGB", b"")])
def test_what_has_a_wrong_size_does_not_count(stray):
    assert np.array_equal(pixels(before(PLAIN, stray, LINEAR)), pixels(before(PLAIN, LINEAR)))


def test_colours_stand_before_the_palette_and_transparency_behind_it():
    at = PALETTE.index(b"IDAT") - 4
    assert "behind its palette" in str(
        refusal(PALETTE[:at] + LINEAR + PALETTE[at:])
    )  # Chromium reads it, others do not
    assert not np.array_equal(pixels(before(PALETTE, LINEAR)), pixels(PALETTE))
    srgb = chunk(b"sRGB", b"\0")  # some programs write it there, and without a gamma it says nothing
    assert np.array_equal(pixels(PALETTE[:at] + srgb + PALETTE[at:]), pixels(PALETTE))
    assert "behind its palette" in str(refusal(before(PALETTE[:at] + srgb + PALETTE[at:], LINEAR)))
    clear = chunk(b"tRNS", bytes(8))
    assert np.array_equal(pixels(before(PALETTE, clear)), pixels(PALETTE))
    assert (pixels(PALETTE[:at] + clear + PALETTE[at:]) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_an_ordinary_file_comes_back_as_it_is(kind):
    data = encode(PICTURE, kind, exif=b"Exif\0\0" + TIFF) if kind in ("JPEG", "PNG", "WEBP") else encode(PICTURE, kind)
    assert as_browsers_read(data, kind) is data


# JPEG


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body


PHOTO = encode(PICTURE, "JPEG")
FIRST, REST = b"Exif\0\0" + TIFF[:8], b"Exif\0\0" + TIFF[8:]


@pytest.mark.parametrize(
    ("segments", "width"),
    [
        ([b"Exif\0\0" + TIFF], 32),
        ([FIRST, REST], 64),
        ([b"Exif\0\0" + TIFF, REST], 32),
        ([b"Exif\0\0MM\0*", b"Exif\0\0" + TIFF], 64),
        ([b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + TIFF], 32),
        ([b"Exif\0\0", b"Exif\0\0" + TIFF], 32),
    ],
)
def test_the_first_exif_segment_counts_alone(segments, width):
    """Pillow joins all of them to one block; no browser does."""
    data = PHOTO[:2] + b"".join(map(app1, segments)) + PHOTO[2:]
    for targets in ([], [spec(resize="stretch", resize_size=16)]):
        assert decode(data, targets=targets).info["width"] == width


def test_an_exif_segment_that_begins_strangely_is_refused():
    """Chromium reads it, Firefox does not."""
    strange = PHOTO[:2] + app1(b"Exif\0x" + TIFF) + app1(b"Exif\0\0" + UPRIGHT) + PHOTO[2:]
    assert "Exif block begins" in str(refusal(strange))
    behind_another = PHOTO[:2] + app1(b"Exif\0\0" + UPRIGHT) + app1(b"Exif\0x" + TIFF) + PHOTO[2:]
    assert pixels(behind_another).shape == pixels(PHOTO).shape


@pytest.mark.parametrize("way", ["animated", "interlaced"])
def test_a_png_that_exif_turns_is_still_and_comes_in_rows(way):
    """Firefox does not turn others."""
    frames = {"save_all": True, "append_images": [PICTURE.rotate(180)]} if way == "animated" else {}
    data = before(encode(PICTURE, "PNG", **frames), chunk(b"eXIf", TIFF))
    if way == "interlaced":
        head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            chunk(*part)
            for part in ((b"IHDR", head), (b"eXIf", TIFF), (b"IDAT", zlib.compress(b"\0\7")), (b"IEND", b""))
        )
    assert "that Exif turns" in str(refusal(data))
    assert pixels(data.replace(chunk(b"eXIf", TIFF), chunk(b"eXIf", UPRIGHT))).any()


@pytest.mark.parametrize("codings", [(1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, 255)])
def test_unknown_codings_of_a_png_are_refused(codings):
    head = chunk(b"IHDR", PLAIN[16:26] + bytes(codings))
    assert "unknown compression" in str(refusal(PLAIN[:8] + head + PLAIN[33:]))


def test_an_interlaced_png_without_its_last_pass_is_refused():
    """Its last row comes with an earlier one."""
    head = struct.pack(">IIBBBBB", 1, 3, 8, 0, 0, 0, 1)
    for rows, whole in ((b"\0\7\0\7\0\7", True), (b"\0\7\0\7", False)):
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
        if whole:
            assert (pixels(data) == 7).all()
        else:
            assert "before its last row" in str(refusal(data))


TWO_COLORS = chunk(b"PLTE", bytes((255, 0, 0, 0, 0, 255)))


def transparent(*values: int, size: int = 2) -> bytes:
    return chunk(b"tRNS", b"".join(value.to_bytes(size) for value in values))


@pytest.mark.parametrize(
    ("color_type", "row", "chunks", "shown"),
    [
        (3, b"\0\1", [transparent(0, size=1), TWO_COLORS], [[255, 0, 0], [0, 0, 255]]),
        (0, b"\0\x09", [transparent(9), TWO_COLORS, transparent(0)], [[0] * 3, [255] * 3]),
        (2, bytes(3) + b"\x09" * 3, [transparent(0, 0), transparent(9, 9, 9)], [[0] * 3, [255] * 3]),
        (6, bytes(3) + b"\xff" + b"\x09" * 3 + b"\xff", [transparent(0, 0, 0)], [[0] * 3, [9] * 3]),
    ],
)
def test_transparency_is_what_libpng_takes(color_type, row, chunks, shown):
    assert pixels(png(8, color_type, row, 2, *chunks)).tolist() == [shown]


@pytest.mark.parametrize(
    ("color_type", "chunks"),
    [
        (3, [TWO_COLORS, transparent(0, 0, 0, size=1)]),
        (0, [transparent(0, 0)]),
        (2, [transparent(0, 0, 0, 0)]),
    ],
)
def test_transparency_that_is_too_long_is_refused(color_type, chunks):
    """Chromium reads it, libpng does not."""
    error = refusal(png(8, color_type, bytes(6), 2, *chunks))
    assert (error.code, "tRNS" in str(error)) == (ErrorCode.UNDECODABLE, True)


def test_a_second_palette_is_refused():
    error = refusal(png(8, 3, b"\0\1", 2, TWO_COLORS, TWO_COLORS))
    assert (error.code, str(error)) == (ErrorCode.UNDECODABLE, "PNG with more than one palette")


def test_a_palette_with_a_part_of_a_colour_is_refused():
    """Chromium drops it, others the palette."""
    assert "a part of a colour" in str(refusal(png(8, 3, b"\0\1", 2, chunk(b"PLTE", bytes(7)))))


@pytest.mark.parametrize("depth", [2, 8])
def test_pixels_that_a_palette_lacks_are_refused(depth):
    """Pillow shows black, Chromium something else."""
    row = {2: b"\x10", 8: b"\0\1"}[depth]
    assert pixels(png(depth, 3, row, 2, TWO_COLORS)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    beyond = {2: b"\x20", 8: b"\0\2"}[depth]
    assert "palette lacks" in str(refusal(png(depth, 3, beyond, 2, TWO_COLORS)))


def test_a_png_without_its_end_is_truncated():
    """Browsers wait for the last row."""
    error = refusal(PLAIN[:-12])
    assert (error.code, "truncated" in str(error)) == (ErrorCode.UNDECODABLE, True)
    assert np.array_equal(pixels(PLAIN[:-4]), pixels(PLAIN))


def test_a_header_of_another_length_is_refused():
    start, end = PLAIN[:8], PLAIN[33:]
    longer = start + chunk(b"IHDR", PLAIN[16:29] + b"\0") + end
    assert "header is longer" in str(refusal(longer))


ONE_FRAME = chunk(b"acTL", struct.pack(">II", 1, 0))


@pytest.mark.parametrize("animation", [b"", ONE_FRAME])
@pytest.mark.parametrize(("width", "height", "x", "y"), [(64, 10, 0, 0), (32, 32, 32, 0), (20, 10, 7, 9)])
def test_no_frame_is_a_part_of_the_picture(animation, width, height, x, y):
    frame = chunk(b"fcTL", struct.pack(">5IHHBB", 0, width, height, x, y, 1, 10, 0, 0))
    assert np.array_equal(pixels(before(PLAIN, animation, frame)), np.asarray(PICTURE))


SWAPPING = profile(primaries=SRGB[::-1])
SRGB_PROFILE = profile()
HALF = len(SWAPPING) // 2


def with_profile(*segments: tuple[int, int, bytes]) -> bytes:
    parts = [b"ICC_PROFILE\0" + bytes((number, count)) + data for number, count, data in segments]
    marked = b"".join(b"\xff\xe2" + (len(part) + 2).to_bytes(2) + part for part in parts)
    jpeg = encode(PICTURE, "JPEG", quality=95)
    return jpeg[:2] + marked + jpeg[2:]


@pytest.mark.parametrize(
    ("segments", "obeyed"),
    [
        ([(1, 1, SWAPPING)], True),
        ([(2, 2, SWAPPING[HALF:]), (1, 2, SWAPPING[:HALF])], True),
        ([(5, 1, SWAPPING)], False),
        ([(0, 1, SWAPPING)], False),
        ([(1, 2, SWAPPING)], False),
        ([(1, 2, SWAPPING[:HALF]), (1, 2, SWAPPING[HALF:])], False),
        ([(1, 2, SWAPPING[:HALF]), (2, 7, SWAPPING[HALF:])], False),
        ([(1, 1, SWAPPING), (1, 1, SWAPPING)], True),  # who has all of them looks no further
        ([(1, 1, SRGB_PROFILE), (1, 1, SWAPPING)], False),
    ],
)
def test_a_colour_profile_that_is_not_whole_is_none(segments, obeyed):
    plain = pixels(encode(PICTURE, "JPEG", quality=95))
    assert np.array_equal(pixels(with_profile(*segments)), plain) != obeyed


def test_a_segment_without_numbers_is_no_part_of_a_colour_profile():
    data = with_profile((1, 1, SWAPPING))
    with_short = data[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + data[2:]
    assert np.array_equal(pixels(with_short), pixels(data))


# what Chromium shows


def wrong(part: bytes) -> bytes:
    return part[:-1] + bytes((part[-1] ^ 1,))


ROW = zlib.compress(b"\0\1\2\3")
HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 8, 0, 0, 0, 0))
LAST = chunk(b"IEND", b"")
WHOLE = chunk(b"IDAT", ROW)
TWO_ROWS = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0))
FRAME = struct.pack(">IIIIIHH", 0, 3, 1, 0, 0, 1, 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [HEADER, chunk(b"IDAT", ROW[:4]), text(b"tEXt", b"k", b"v"), chunk(b"IDAT", ROW[4:])],
        [HEADER, chunk(b"IDAT", ROW[:4]), wrong(chunk(b"IDAT", ROW[4:]))],
        [HEADER, WHOLE, HEADER],
        [HEADER, ONE_FRAME, WHOLE, chunk(b"fcTL", FRAME + b"\0\7"), chunk(b"fdAT", b"\0\0\0\1" + ROW)],
        [HEADER, ONE_FRAME, WHOLE, chunk(b"fcTL", FRAME + b"\7\0"), chunk(b"fdAT", b"\0\0\0\1" + ROW)],
        [HEADER, ONE_FRAME, WHOLE, wrong(chunk(b"fcTL", FRAME + bytes(2))), chunk(b"fdAT", b"\0\0\0\1" + ROW)],
        [HEADER, ONE_FRAME, WHOLE, chunk(b"fcTL", FRAME + bytes(2))],
        [TWO_ROWS, WHOLE],
    ],
    ids=["gap", "checksum", "header", "blend", "dispose", "frame checksum", "no frame", "rows"],
)
def test_of_what_browsers_show_a_part_nothing_is_shown(chunks):
    assert refusal(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + LAST).code is ErrorCode.UNDECODABLE


def test_a_black_row_is_no_missing_one():
    for image in (Image.new("L", (9, 7)), Image.new("P", (9, 7)), Image.new("1", (9, 7)), Image.new("RGBA", (9, 7))):
        assert pixels(encode(image, "PNG")).shape == (7, 9, 3)


@pytest.mark.parametrize(
    "stray",
    [
        chunk(b"sRGB", b"\x09"),
        chunk(b"iCCP", b"\0\0" + zlib.compress(SWAPPING)),
        chunk(b"iCCP", b"k" * 80 + b"\0\0" + zlib.compress(SWAPPING)),
        chunk(b"iCCP", b"k\0\0" + zlib.compress(SWAPPING)[:-6]),
    ],
)
def test_colours_that_break_the_rules_do_not_count(stray):
    assert np.array_equal(pixels(before(PLAIN, stray, LINEAR)), pixels(before(PLAIN, LINEAR)))


def test_a_profile_behind_the_frame_header_counts():
    data = with_profile((1, 1, SWAPPING))
    length = len(SWAPPING) + 18
    segment, plain = data[2 : 2 + length], data[:2] + data[2 + length :]
    at = plain.index(b"\xff\xda")
    assert np.array_equal(pixels(plain[:at] + segment + plain[at:]), pixels(data))


def test_more_frames_than_there_can_be_are_refused():
    """Chromium then shows the default image, Firefox nothing."""
    frame = chunk(b"fcTL", struct.pack(">5IHHBB", 0, 64, 32, 0, 0, 1, 10, 0, 0))
    for frames, plays in ((1 << 31, 0), (1, 1 << 31)):
        data = before(PLAIN, chunk(b"acTL", struct.pack(">II", frames, plays)), frame)
        assert "more frames than there can be" in str(refusal(data))


def test_nothing_stands_between_the_parts_of_a_frame():
    """Chromium shows nothing then."""
    frames = encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)])
    at = frames.rindex(b"fdAT") - 4
    parted = frames[:at] + text(b"tEXt", b"a", b"b") + frames[at:]
    assert np.array_equal(pixels(frames), np.asarray(PICTURE))
    assert "between the parts of a frame" in str(refusal(parted))


def test_a_profile_with_a_wrong_checksum_is_refused():
    """Firefox does not look at it, others do."""
    packed = zlib.compress(SWAPPING)
    whole = before(PLAIN, chunk(b"iCCP", b"x\0\0" + packed))
    wrong = before(PLAIN, chunk(b"iCCP", b"x\0\0" + packed[:-1] + bytes((packed[-1] ^ 1,))))
    assert not np.array_equal(pixels(whole), pixels(PLAIN))
    assert "checksum in its profile" in str(refusal(wrong))
