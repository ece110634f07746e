"""What the decoder makes of pictures: formats, colours, what a person would see."""

import hashlib
import inspect
import io
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from classifleet.config.errors import ErrorCode
from classifleet.worker.decode import decode
from tests.decode_support import IMAGENET, ORIENTATION, RED, chunk, gif, pixels, png, prepared, refusal
from tests.models_support import encode, noise, spec

# formats


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats(kind):
    data = encode(noise(60, 40), kind)
    decoded = decode(data)
    assert decoded.info == {
        "width": 60,
        "height": 40,
        "format": kind,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert "truncated" not in decoded.info
    difference = np.abs(pixels(data).astype(int) - np.asarray(noise(60, 40)).astype(int))
    assert difference.mean() < {"JPEG": 8, "WEBP": 8, "GIF": 12}.get(kind, 1e-9)


def test_mpo_counts_as_jpeg():
    data = encode(noise(60, 40), "MPO", save_all=True, append_images=[noise(60, 40)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode(data, targets=[IMAGENET]).info["format"] == "JPEG"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (20, 20), color) for color in (RED, (0, 255, 0))]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )
    assert pixels(data)[5, 5].tolist() == list(RED)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"<!DOCTYPE html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        encode(noise(8, 8), "TIFF"),
        encode(noise(8, 8), "PPM"),
        encode(noise(16, 16), "ICO"),
    ],
)
def test_other_formats_are_unsupported(data):
    error = refusal(data)
    assert error.code is ErrorCode.UNSUPPORTED_FORMAT
    assert f"{len(data)} bytes" in str(error)


# colours


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.array([[0, 128, 257, 32_768, 65_535]], np.uint16)
    data = encode(Image.fromarray(ramp), "PNG")
    assert pixels(data)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_grey_with_a_transparent_level():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 65_535]], np.uint16)).save(file, "PNG", transparency=0)
    background = spec(resize="stretch", resize_size=8, background=[9, 8, 7])
    assert pixels(file.getvalue(), targets=[background])[0].tolist() == [[9, 8, 7], [255, 255, 255]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("key", [0, 1, 3, 0x100, 0x101])
def test_a_transparent_grey_is_compared_at_the_files_depth(depth, key):
    """Of a key, as many bits count as the pixels have. Browsers disagree where that are less than a byte of more."""
    most = (1 << depth) - 1
    levels = [level % (most + 1) for level in range(8)]
    row = int("".join(f"{level:0{depth}b}" for level in levels), 2).to_bytes(depth)
    background = spec(resize="stretch", resize_size=8, background=[0, 0, 77])
    data = png(depth, 0, row, len(levels), chunk(b"tRNS", struct.pack(">H", key)))
    if key > most and depth < 8:
        assert refusal(data).code is ErrorCode.UNDECODABLE
        return
    found = pixels(data, targets=[background])
    shown = [[0, 0, 77] if level == key & most else [level * 255 // most] * 3 for level in levels]
    assert found[0].tolist() == shown


def test_a_transparent_colour_of_16_bits_is_compared_in_full():
    """Pillow would take black for clear, since the key's second byte is 0 like black's first."""
    row = struct.pack(">12H", 0, 0, 0, *[0x100] * 3, *[0x1FF] * 3, 0x100, 0x100, 0x101)
    found = pixels(png(16, 2, row, 4, chunk(b"tRNS", struct.pack(">HHH", *[0x100] * 3))))
    assert found[0].tolist() == [[0] * 3, [255] * 3, [1] * 3, [1] * 3]


def test_alpha_is_laid_on_the_declared_background():
    image = Image.new("RGBA", (3, 1), (*RED, 0))  # red that must not appear
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    on_white, on_blue = (
        spec(resize="stretch", resize_size=8, background=color) for color in ((255,) * 3, (0, 0, 255))
    )
    decoded = decode(encode(image, "PNG"), targets=[on_white, on_blue])
    assert np.asarray(decoded.picture(on_white).image)[0].tolist() == [[255] * 3, list(RED), [127] * 3]
    assert np.asarray(decoded.picture(on_blue).image)[0].tolist() == [[0, 0, 255], list(RED), [0, 0, 127]]


def test_opaque_pictures_share_one_copy():
    targets = [spec(resize="stretch", resize_size=8, background=[level] * 3) for level in (0, 255)]
    decoded = decode(encode(noise(30, 20), "PNG"), targets=targets)
    assert decoded.picture(targets[0]).image is decoded.picture(targets[1]).image


def transparent(mode: str) -> Image.Image:
    """Left half fully transparent, right half opaque, black below."""
    alpha = Image.new("L", (20, 10), 0)
    alpha.paste(255, (10, 0, 20, 10))
    image = Image.new("RGBA", (20, 10))
    image.putalpha(alpha)
    return image.convert(mode) if mode != "P" else image.quantize(4)


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA"])
def test_transparency_in_every_mode(mode):
    found = pixels(encode(transparent(mode), "PNG"))
    assert found[5, 2].tolist() == [255] * 3
    assert found[5, 17].tolist() == [0] * 3


def test_palette_transparency_by_index():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    found = pixels(encode(image, "GIF", transparency=0))
    assert found[0, 0].tolist() == [255] * 3
    assert found[3, 3].tolist() == [0, 255, 0]


@pytest.mark.parametrize(("mode", "color"), [("L", 200), ("1", 1), ("CMYK", (0, 0, 0, 0))])
def test_other_colour_models(mode, color):
    kind = "PNG" if mode == "1" else "JPEG"
    level = 200 if mode == "L" else 255
    assert pixels(encode(Image.new(mode, (16, 16), color), kind))[8, 8].tolist() == [level] * 3


def test_colour_profiles_are_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(
        pixels(encode(noise(30, 20), "PNG", icc_profile=profile)), pixels(encode(noise(30, 20), "PNG"))
    )


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(orientation, kind):
    upright = noise(64, 32)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = decode(encode(stored, kind, exif=exif, **options))
    (picture,) = decoded.pictures.values()
    assert (decoded.info["width"], decoded.info["height"]) == picture.image.size == (64, 32)
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(upright).astype(int)).max() <= 6


def test_browsers_do_not_turn_a_webp():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(noise(64, 32), "WEBP", exif=exif, lossless=True)
    assert np.array_equal(pixels(data), np.asarray(noise(64, 32)))


@pytest.mark.parametrize(("kind", "size"), [(3, (407, 611)), (4, (611, 407)), (1, (611, 407))])
def test_an_orientation_is_a_short_number(kind, size):
    """Browsers obey no other type, so a person would not see the picture turned."""
    entry = b"\x12\x01" + kind.to_bytes(2, "little") + b"\x01\0\0\0" + b"\x06\0\0\0"
    data = encode(noise(611, 407), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0")
    assert (decode(data).info["width"], decode(data).info["height"]) == size


@pytest.mark.parametrize("head", [b"MM*\0", b"II\0*", b"MM\0+", b"II*", b""])
def test_exif_without_the_head_of_a_tiff_is_none(head):
    order = ">" if head.startswith(b"MM") else "<"
    exif = b"Exif\0\0" + head + struct.pack(f"{order}IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 6, 0, 0)
    assert pixels(encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).shape == (4, 8, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_meaningless_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert decode(encode(noise(64, 32), "JPEG", exif=exif)).info["width"] == 64


def test_broken_exif_costs_nothing():
    data = encode(noise(64, 32), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken")
    assert decode(data, targets=[IMAGENET]).info["width"] == 64


# threads and warnings


def test_many_threads_and_no_warning_escapes():
    noisy = encode(noise(300, 200), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x00")
    start = threading.Barrier(8)

    def work(_: int) -> int:
        start.wait()
        return sum(decode(noisy, targets=[IMAGENET]).info["width"] for _ in range(20))

    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        assert list(pool.map(work, range(8))) == [6000] * 8
    assert [str(item.message) for item in caught] == []


# what a person sees


@pytest.mark.parametrize("options", [{}, {"transparency": 0}])
def test_what_a_gifs_first_frame_does_not_cover_is_background(options):
    found = pixels(gif((20, 20), (5, 6, 8, 8), **options))
    assert found[0, 0].tolist() == found[19, 19].tolist() == [255] * 3
    assert found[6, 5].tolist() == found[13, 12].tolist() == [0, 255, 0]


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_an_animations_default_image_is_seen_by_nobody(mode, blend):
    """A browser shows the first frame after it, in the middle of nothing, and so do we."""
    color = {"RGB": (0, 0, 255), "RGBA": (0, 0, 255, 255), "P": 0}[mode]
    frame = Image.new("P" if mode == "P" else mode, (4, 4), color)
    if mode == "P":
        frame.putpalette([0, 0, 255, 255, 0, 0])
    default = Image.new(mode, (10, 10), 1 if mode == "P" else (255, 0, 0, 255)[: len(mode)])
    if mode == "P":
        default.putpalette([0, 0, 255, 255, 0, 0])
    still, moving = encode(default, "PNG", bits=8), encode(frame, "PNG", bits=8)
    start = moving.index(b"IDAT")
    body = moving[start + 4 : start + 4 + int.from_bytes(moving[start - 4 : start])]
    control = struct.pack(">IIIIIHHBB", 0, 4, 4, 3, 3, 1, 1, 0, blend)
    at = still.index(b"IDAT") - 4
    end = still.rindex(b"IEND") - 4
    animation = still[:at] + chunk(b"acTL", struct.pack(">II", 1, 0)) + still[at:end]
    animation += chunk(b"fcTL", control) + chunk(b"fdAT", struct.pack(">I", 1) + body) + still[end:]
    found = pixels(animation)
    assert found[4, 4].tolist() == [0, 0, 255]
    assert found[0, 0].tolist() == [255] * 3
    wrong_order = animation.replace(chunk(b"fcTL", control), chunk(b"fcTL", b"\0\0\0\5" + control[4:]))
    assert refusal(wrong_order).code is ErrorCode.UNDECODABLE  # as there is no frame, browsers show nothing


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def test_only_exif_turns_a_picture():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    info.add_text("Raw profile type exif", f"\nexif\n{len(turned.tobytes())}\n{turned.tobytes().hex()}\n")
    for data in (encode(noise(64, 32), "PNG", pnginfo=info), encode(noise(64, 32), "JPEG", xmp=XMP)):
        assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == 6  # Pillow believes it, browsers do not
        assert decode(data).info["width"] == 64


def test_top_down_bmp_is_upright():
    data = bytearray(encode(noise(20, 10), "BMP"))
    flipped = bytearray(encode(noise(20, 10).transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP"))
    flipped[22:26] = struct.pack("<i", -10)
    assert np.array_equal(pixels(bytes(flipped)), pixels(bytes(data)))


def bmp(bits: int, coding: int, *colors: bytes, size: int = 108, alpha: int = 0xFF << 24, begin: int = 0) -> bytes:
    """One row of pixels behind a header of version 4, or 3 where its size is 40."""
    masks = (
        struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, alpha)
        if bits == 32
        else struct.pack("<IIII", 31744, 992, 31, alpha)
    )
    header = (
        struct.pack("<IiiHHIIiiII", size, len(colors), 1, 1, bits, coding, 8, 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    )
    body = b"".join(colors).ljust(4, b"\0")
    at = 14 + size
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, begin or at) + header[:size] + body


@pytest.mark.parametrize(("alphas", "shown"), [((0, 0), (255, 255)), ((0, 255), (255, 100)), ((255, 255), (200, 100))])
def test_the_alpha_that_a_bmp_names_is_obeyed(alphas, shown):
    """Be it clear everywhere. Without masks Chromium obeys it, and Firefox does not."""
    colors = [bytes((level, level, level, alpha)) for level, alpha in zip((200, 100), alphas, strict=True)]
    assert pixels(bmp(32, 3, *colors))[0, :, 0].tolist() == list(shown)
    if alphas == (255, 255):
        assert pixels(bmp(32, 0, *colors))[0, :, 0].tolist() == list(shown)
    else:
        assert "without masks" in str(refusal(bmp(32, 0, *colors)))


def test_alpha_that_a_bmp_does_not_name_is_none():
    assert pixels(bmp(32, 0, bytes((200, 200, 200, 0)), size=40))[0, 0].tolist() == [200] * 3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bmp(16, 3, b"\0\0", b"\xff\xff", alpha=0x8000), ErrorCode.UNSUPPORTED_FORMAT),
        (bmp(24, 0, bytes(3), alpha=0, begin=60), ErrorCode.UNDECODABLE),
    ],
)
def test_a_bmp_that_pillow_reads_in_another_way_is_refused(data, code):
    assert refusal(data).code is code


@pytest.mark.parametrize(("colors", "right"), [(0, True), (4, True), (3, False), (17, False)])
def test_the_palette_of_a_bmp_has_all_its_colours(colors, right):
    image = Image.new("P", (8, 1), 3)
    image.putpalette(bytes(range(256)) * 3)
    data = bytearray(encode(image, "BMP"))
    data[46:50] = struct.pack("<I", colors if colors < 17 else 257)
    if right:
        assert pixels(bytes(data))[0, 0].tolist() == [9, 10, 11]
    else:
        assert refusal(bytes(data)).code is ErrorCode.UNDECODABLE


def test_run_length_coded_bmp_is_refused():
    header = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 1, 4, 0, 0, 2, 0) + bytes(8)
    body = b"\x04\x01\x00\x01"
    data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body
    assert refusal(data).code is ErrorCode.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
@pytest.mark.parametrize("tail", [b"<script>", b"PK\x03\x04", b"%PDF-1.7", encode(noise(9, 9), "PNG")])
def test_polyglots_are_what_they_begin_with(kind, tail):
    data = encode(noise(60, 40), kind)
    assert np.array_equal(pixels(data + tail), pixels(data))


def test_a_name_is_not_looked_at():
    """A file is what its bytes are; names never come this far."""
    assert set(inspect.signature(decode).parameters) == {"data", "targets", "limits", "sha256"}


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_thin_pictures(kind, size):
    data = encode(Image.new("RGB", size, (200, 200, 200)), kind)
    decoded = decode(data, targets=[IMAGENET])
    assert (decoded.info["width"], decoded.info["height"]) == size
    assert np.abs(prepared(decoded, IMAGENET) - 200).max() <= 1
