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
from tests.decode_support import chunk, gif, pixels, png, refusal
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
