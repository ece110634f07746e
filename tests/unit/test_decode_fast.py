"""The fast ways to decode a JPEG, against the plain one: scaled, and without Pillow."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker import decode as decoder
from classifleet.worker.decode import DecodeLimits, decode, prepare
from classifleet.worker.formats.jpeg import is_lossless
from classifleet.worker.headers import open_image
from classifleet.worker.turbo import turbo_pixels
from tests.decode_support import IMAGENET, ORIENTATION, prepared
from tests.models_support import NASTY, encode, noise, skimage_photo, spec

BICUBIC = spec(resize="stretch", resize_size=[120, 90], interpolation="bicubic")
TARGETS = [
    IMAGENET,
    spec(resize="stretch", resize_size=[100, 300]),
    spec(resize="letterbox", resize_size=[300, 200]),
    BICUBIC,
]


SCALED = DecodeLimits(exact=False)


@functools.cache
def photo(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.open(skimage_photo("astronaut.png")).resize((width, height), Image.Resampling.BICUBIC)
    return encode(image, "JPEG", exif=exif, quality=92)


# scaling while decoding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("target", TARGETS)
def test_scaled_jpeg_gives_nearly_the_same_pixels(target, orientation):
    """2,811 x 2,107 does not divide by the scale: forgetting the part of a pixel costs up to 74 levels."""
    data = photo(2811, 2107, orientation)
    scaled, full = (decode(data, targets=[target], limits=DecodeLimits(exact=exact)) for exact in (False, True))
    assert scaled.info == full.info
    assert scaled.picture(target).image.width < full.picture(target).image.width
    difference = np.abs(prepared(scaled, target) - prepared(full, target))
    assert difference.max() <= 10
    assert difference.mean() < 0.5


@pytest.mark.parametrize(
    ("targets", "divisor"),
    [
        ([spec(resize="stretch", resize_size=57)], 4),
        ([spec(resize="stretch", resize_size=58)], 2),
        ([spec(resize="stretch", resize_size=[57, 25])], 4),
        ([spec(resize="letterbox", resize_size=57)], 8),  # 57 x 28: 3.5 times that is an eighth
        ([spec(resize="stretch", resize_size=50), spec(resize="stretch", resize_size=114)], 2),
        ([spec(resize="stretch", resize_size=500)], 1),
        ([spec(resize="stretch", resize_size=25, antialias=False)], 1),
        ([spec(resize="stretch", resize_size=25, interpolation="nearest")], 1),
        ([spec(resize="stretch", resize_size=25), spec(resize="stretch", resize_size=25, antialias=False)], 1),
        ([], 1),
    ],
)
def test_never_below_the_margin(targets, divisor):
    decoded = decode(encode(noise(1600, 800), "JPEG"), targets=targets, limits=SCALED)
    assert {picture.image.width for picture in decoded.pictures.values()} == {1600 // divisor}


def test_without_more_a_jpeg_is_decoded_in_full():
    data = encode(noise(2000, 1800), "JPEG")
    (scaled,) = decode(data, targets=[IMAGENET], limits=SCALED).pictures.values()
    (full,) = decode(data, targets=[IMAGENET]).pictures.values()
    assert (scaled.image.width, full.image.width) == (1000, 2000)


def out_of_range(side: int) -> bytes:
    """Dark grey on the whole, but of each 2 x 2 pixels three are light, and one is far below black."""
    cells = np.full((side, side), 66, np.uint8)
    cells[1::2, 1::2] = 54
    data = encode(Image.fromarray(cells), "JPEG", qtables=[[1] * 64])
    table = data.index(b"\xff\xdb\0\x43\0") + 5
    return data[: table + 1] + bytes([40] * 63) + data[table + 64 :]


def test_no_pixels_out_of_range_hide_a_picture():
    """Of each 2 x 2, one pixel is far below black: everybody sees it as black, and scaling weighs it as it is."""
    data = out_of_range(1824)
    seen = prepared(decode(data), IMAGENET).mean()
    assert abs(prepared(decode(data, targets=[IMAGENET]), IMAGENET).mean() - seen) < 1
    assert abs(prepared(decode(data, targets=[IMAGENET], limits=SCALED), IMAGENET).mean() - seen) > 50


# without Pillow


def opened(data: bytes, scale: int = 1):
    image = open_image(data, "JPEG", DecodeLimits())
    image.draft(None, (image.width // scale, image.height // scale))
    return image


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_same_pixels_as_pillow(mode, options, scale):
    data = encode(noise(411, 303).convert(mode), "JPEG", quality=92, **options)
    image = opened(data, scale)
    found = turbo_pixels(data, image)
    assert found is not None
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["CMYK", "MPO", "PNG"])
def test_what_is_unusual_is_left_to_pillow(kind):
    image = noise(60, 40).convert("CMYK" if kind == "CMYK" else "RGB")
    data = encode(image, "JPEG" if kind == "CMYK" else kind, **({"save_all": True, "append_images": [image]}
                                                               if kind == "MPO" else {}))  # fmt: skip
    assert turbo_pixels(data, Image.open(io.BytesIO(data))) is None


def damaged(data: bytes) -> dict[str, bytes]:
    """Files of which Pillow makes a picture, or not; simplejpeg is to have no opinion on them."""
    middle = len(data) // 2
    sof = data.index(b"\xff\xc0")
    larger = data[sof : sof + 5] + (60_000).to_bytes(2) * 2 + data[sof + 9 : sof + 19]
    return {
        "without its end": data[:-2],
        "half": data[:middle],
        "a hole": data[:middle] + bytes(40) + data[middle + 40 :],
        "a marker amid": data[:middle] + b"\xff\xc4\x00\x02" + data[middle + 4 :],
        "two sizes": data[:sof] + larger + data[sof:],
    }


@pytest.mark.parametrize("name", damaged(encode(noise(400, 300), "JPEG")))
def test_what_is_broken_is_left_to_pillow(name):
    data = encode(noise(400, 300), "JPEG", quality=95)
    broken = damaged(data)[name]
    assert turbo_pixels(broken, opened(data)) is None


def lossless(data: bytes) -> bytes:
    """A JPEG that calls itself lossless; libjpeg believes it."""
    sof = data.index(b"\xff\xc0")
    return data[:sof] + b"\xff\xc3" + data[sof + 2 :]


@pytest.mark.parametrize(
    "before",
    [b"", b"\xff\xff", b"junk", b"\xff\x00", b"\xff\xd3", b"\xff\xfe\x00\x00", b"\xff\xfe\x00\x06\xff\xc0\x00\x00",
     b"\xff\xe1\x00\x06\xff\xda\x00\x00", b"\xff\xc4\x00\x02", b"\xff\xcc\x00\x02"],
)  # fmt: skip
def test_a_lossless_jpeg_is_refused(before):
    """Scaling one writes past the end of simplejpeg's array, and Pillow would show its corner."""
    plain = encode(noise(400, 300), "JPEG")
    with pytest.raises(ImageError, match="lossless") as caught:
        decode(plain[:20] + before + lossless(plain)[20:], targets=[spec(resize="stretch", resize_size=8)])
    assert caught.value.code is ErrorCode.UNSUPPORTED_FORMAT
    assert not is_lossless(plain[:20] + before + plain[20:])


def test_a_lossless_thumbnail_is_nobodys_business():
    plain = encode(noise(400, 300), "JPEG")
    comment = b"\xff\xfe" + (2 + 400).to_bytes(2) + lossless(plain)[:400]
    assert decode(plain[:2] + comment + plain[2:]).info["width"] == 400


def test_another_size_than_pillows_is_not_believed():
    data = encode(noise(400, 300), "JPEG")
    assert turbo_pixels(data, opened(encode(noise(400, 301), "JPEG"))) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("target", TARGETS)
def test_turned_as_pillow_turns(target, orientation, monkeypatch):
    data = photo(611, 407, orientation)
    fast = prepared(decode(data, targets=[target]), target)
    monkeypatch.setattr(decoder, "turbo_pixels", lambda data, image: None)
    slow = decode(data, targets=[target])
    assert np.abs(fast - prepared(slow, target)).max() <= 1
    upright = slow.picture(target).image
    assert upright.size == ((407, 611) if orientation > 4 else (611, 407))
    monkeypatch.undo()
    plain = prepared(decode(encode(upright, "PNG"), targets=[target]), target)
    assert np.abs(fast - plain).max() <= 1


def outcome(data: bytes, limits: DecodeLimits):
    try:
        info, arrays = prepare(data, {"": BICUBIC}, limits)
    except ImageError as error:
        return (error.code, str(error)), None
    return info, arrays[""].astype(int)


@pytest.mark.skipif(not NASTY.is_dir(), reason="the collection of nasty files is not here")
def test_nasty_files_come_out_the_same_without_the_fast_way(monkeypatch):
    files = [path for path in sorted(NASTY.iterdir()) if path.read_bytes()[:3] == b"\xff\xd8\xff"]
    limits = [DecodeLimits(), DecodeLimits(truncated="lenient")]
    fast = [outcome(path.read_bytes(), each) for path in files for each in limits]
    monkeypatch.setattr(decoder, "turbo_pixels", lambda data, image: None)
    slow = [outcome(path.read_bytes(), each) for path in files for each in limits]
    for number, ((told, pixels), (wanted, plain)) in enumerate(zip(fast, slow, strict=True)):
        name = files[number // len(limits)].name
        assert told == wanted, name
        assert plain is None or np.abs(pixels - plain).max() <= 1, name
