"""What the decoder refuses, and how: limits, damage, attacks."""

import pickle
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.decode import Decoded, DecodeLimits, decode
from classifleet.worker.formats.jpeg import MAX_SCANS
from classifleet.worker.formats.parts import MAX_PARTS
from classifleet.worker.preprocess import preprocess
from tests.decode_support import IMAGENET, chunk, gif, png, refusal
from tests.models_support import NASTY, encode, noise, spec

SLOWEST_SECONDS = 2.0

# limits


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (DecodeLimits(), True),
        (DecodeLimits(max_pixels=60 * 40), True),
        (DecodeLimits(max_pixels=60 * 40 - 1), False),
        (DecodeLimits(max_side=60), True),
        (DecodeLimits(max_side=59), False),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_limits(kind, limits, fits):
    data = encode(noise(60, 40), kind)
    if fits:
        assert decode(data, limits=limits).info["width"] == 60
    else:
        error = refusal(data, limits=limits)
        assert error.code is ErrorCode.TOO_MANY_PIXELS
        assert "60 x 40 pixels" in str(error)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    data = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize("size", [(7072, 7072), (9500, 9500), (15_000, 15_000), (2**31 - 1, 2**31 - 1), (65_501, 1)])
def test_bombs_are_refused_by_their_header(size):
    # 50, 90 (Pillow warns) and 225 megapixels (Pillow raises)
    assert refusal(png_header(*size)).code is ErrorCode.TOO_MANY_PIXELS


def test_a_limit_above_pillows_warning_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = refusal(png_header(9500, 9500), limits=DecodeLimits(max_pixels=100_000_000))
    assert error.code is ErrorCode.UNDECODABLE  # there are no pixels behind the header


def test_a_gifs_first_frame_cannot_smuggle_size_past_the_limit():
    assert refusal(gif((9000, 9000), (0, 0, 8, 8))).code is ErrorCode.TOO_MANY_PIXELS
    assert refusal(gif((10, 10), (9000, 9000, 8, 8))).code is ErrorCode.UNDECODABLE  # see test_parts


@pytest.mark.parametrize("options", [{}, {"transparency": 0, "disposal": 2}])
def test_a_gif_is_measured_before_it_is_opened(options, monkeypatch):
    data = gif((60, 41), (2, 3, 58, 38), **options)
    assert decode(data, limits=DecodeLimits(max_pixels=60 * 41)).info["height"] == 41
    monkeypatch.setattr("PIL.Image.open", None)
    assert refusal(data, limits=DecodeLimits(max_pixels=60 * 41 - 1)).code is ErrorCode.TOO_MANY_PIXELS


# damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_is_refused(kind):
    data = encode(noise(200, 100), kind)
    for length in (len(data) // 2, len(data) * 3 // 4, 20):
        error = refusal(data[:length])
        assert error.code is ErrorCode.UNDECODABLE, length
        assert "0x" not in str(error)  # no memory addresses
        assert "runcated" in str(error) or error.__cause__ is not None  # of which Pillow then says why


def test_two_missing_bytes_of_a_jpeg_are_enough():
    data = encode(noise(200, 100), "JPEG")
    assert refusal(data[:-2]).code is ErrorCode.UNDECODABLE


@pytest.mark.parametrize("targets", [[], [spec(resize="stretch", resize_size=50)]])
def test_lenient_completes_a_truncated_jpeg_and_says_so(targets):
    image = noise(400, 400)
    data = encode(image, "JPEG", quality=95)
    lenient = DecodeLimits(truncated="lenient")
    decoded = decode(data[: len(data) * 2 // 3], targets=targets, limits=lenient)
    assert decoded.info["truncated"] is True
    assert decoded.info["height"] == 400
    (picture,) = decoded.pictures.values()
    upper = picture.image.resize((40, 40)).crop((0, 0, 40, 15))
    wanted = image.resize((40, 40)).crop((0, 0, 40, 15))
    assert np.abs(np.asarray(upper).astype(int) - np.asarray(wanted).astype(int)).mean() < 3
    assert "truncated" not in decode(data, limits=lenient).info


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_lenient_does_not_complete_other_formats(kind):
    data = encode(noise(200, 100), kind)
    assert refusal(data[: len(data) // 2], limits=DecodeLimits(truncated="lenient")).code is ErrorCode.UNDECODABLE


def test_lenient_does_not_save_a_jpeg_without_pixels():
    data = encode(noise(200, 100), "JPEG")
    assert refusal(data[:40], limits=DecodeLimits(truncated="lenient")).code is ErrorCode.UNDECODABLE


def test_error_pickles():
    error = pickle.loads(pickle.dumps(refusal(b"nothing")))
    assert (error.code, str(error)[:10]) == (ErrorCode.UNSUPPORTED_FORMAT, "not one of")


def test_no_memory_is_not_the_pictures_fault(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError):
        decode(encode(noise(60, 40), "BMP"))


# attacks on time and memory


def with_parts(kind: str, count: int) -> bytes:
    data = encode(noise(60, 40), kind)
    match kind:
        case "JPEG":
            return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]
        case "PNG":
            return data[:33] + chunk(b"teSt", b"") * count + data[33:]
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + b"!\xfe" + b"\x01x" * count + b"\x00" + data[at:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_no_file_makes_pillow_walk_for_seconds(kind):
    assert decode(with_parts(kind, 1000)).info["width"] == 60
    error = refusal(with_parts(kind, MAX_PARTS))
    assert error.code is ErrorCode.UNDECODABLE
    assert "parts" in str(error)


@pytest.mark.parametrize("padding", [b"\xff", b"\xff\xd8"])
def test_padding_before_a_marker_is_bounded(padding):
    data = encode(noise(60, 40), "JPEG")
    assert refusal(data[:2] + padding * MAX_PARTS + data[2:]).code is ErrorCode.UNDECODABLE


@pytest.mark.parametrize("alone", [b"x", b"\xff\xc8\xff\xfc", b"\xff\xf0\xff\xfc"])
def test_nothing_hides_parts_of_a_jpeg_from_the_count(alone):
    """Pillow skips junk byte by byte, and reads no length after these markers."""
    data = encode(noise(60, 40), "JPEG")
    assert "parts" in str(refusal(data[:20] + alone + b"\xff\xfe\x00\x02" * MAX_PARTS + data[20:]))
    assert decode(data[:20] + b"x" + data[20:]).info["width"] == 60


def test_parts_behind_the_picture_count_in_a_png():
    data = encode(noise(60, 40), "PNG")
    assert refusal(data[:-12] + chunk(b"teSt", b"") * MAX_PARTS + data[-12:]).code is ErrorCode.UNDECODABLE


def test_scans_of_a_progressive_jpeg_are_bounded():
    data = encode(noise(400, 300), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    lenient = DecodeLimits(truncated="lenient")  # scans that say nothing new are taken for damage
    assert decode(data[:-2] + last * (MAX_SCANS - 20) + data[-2:], limits=lenient).info["width"] == 400
    error = refusal(data[:-2] + last * MAX_SCANS + data[-2:])
    assert error.code is ErrorCode.UNDECODABLE
    assert "scans" in str(error)
    assert decode(data + b"\xff\xda" * 1000).info["width"] == 400  # what follows the picture does not count


def test_scans_of_a_baseline_jpeg_are_bounded():
    """One that is not interleaved is read to its end before its first row appears: 5 ms a scan at 49 megapixels."""
    data = encode(noise(400, 300), "JPEG")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert "scans" in str(refusal(data[: data.index(b"\xff\xda")] + scan * (MAX_SCANS + 1) + data[-2:]))


def test_a_large_jpeg_has_fewer_scans():
    data = encode(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert "more than 20 scans" in str(refusal(data[:-2] + scan * 40 + data[-2:]))
    assert decode(data + scan * 40, targets=[spec(resize="stretch", resize_size=[32, 32])]).info["width"] == 7000


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True, "append_images": [noise(60, 41)]}])
def test_a_webp_is_measured_before_it_is_opened(options, monkeypatch):
    data = encode(noise(60, 41), "WEBP", **options)
    assert decode(data, limits=DecodeLimits(max_pixels=60 * 41)).info["height"] == 41
    monkeypatch.setattr("PIL.Image.open", None)
    assert refusal(data, limits=DecodeLimits(max_pixels=60 * 41 - 1)).code is ErrorCode.TOO_MANY_PIXELS


@pytest.mark.parametrize(("color_type", "channels", "most"), [(0, 1, 6), (2, 3, 10)])
def test_a_transparent_colour_takes_few_bytes_a_pixel(color_type, channels, most):
    """Of numpy's. With indices and masks of 8 bytes it was twice as much: 400 MB more at 50 megapixels."""
    width, rows = 1000, 1000
    key = chunk(b"tRNS", b"\0\1" * channels)
    data = png(16, color_type, bytes(width * channels * 2), width, key, rows=rows)
    decode(data)
    tracemalloc.start()
    try:
        decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / (width * rows) < most


# the collection of nasty files


def attempt(data: bytes, limits: DecodeLimits) -> Decoded | ImageError:
    try:
        return decode(data, targets=[IMAGENET], limits=limits)
    except ImageError as error:
        return error


@pytest.mark.skipif(not NASTY.is_dir(), reason="the collection of nasty files is not here")
def test_nasty_files_are_pictures_or_one_permanent_error():
    allowed = {ErrorCode.UNSUPPORTED_FORMAT, ErrorCode.TOO_MANY_PIXELS, ErrorCode.UNDECODABLE}
    pictures, slowest = 0, 0.0
    for path in sorted(NASTY.iterdir()):
        for limits in (DecodeLimits(), DecodeLimits(truncated="lenient")):
            began = time.thread_time()
            outcome = attempt(path.read_bytes(), limits)
            slowest = max(slowest, time.thread_time() - began)
            assert slowest < SLOWEST_SECONDS, path.name
            if isinstance(outcome, ImageError):
                assert outcome.code in allowed, path.name
                assert "\n" not in str(outcome), path.name
            else:
                assert preprocess(outcome.picture(IMAGENET), IMAGENET).shape == (224, 224, 3), path.name
                pictures += 1
    assert pictures > 500
