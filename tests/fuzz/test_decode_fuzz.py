"""Mutated real files through the decoder: a picture, or one permanent error, within memory and time. Never else.

A JPEG goes both ways, the fast and Pillow's, which must give the same error, or pictures that differ by a level.

The test runs hypothesis for a few seconds. For longer, and guided by coverage of our own modules:

    .venv/bin/python -m tests.fuzz.test_decode_fuzz --seconds 600      (hypothesis' mutations, plain loop)
    .venv/bin/python -m tests.fuzz.atheris_decode -max_total_time=600  (extra [fuzz])
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifleet.config import ErrorCode, ImageError
from classifleet.worker import decode as decoder
from classifleet.worker.decode import DecodeLimits, prepare
from tests.models_support import NASTY, PHOTOS, encode, noise, spec

PERMANENT = {ErrorCode.UNSUPPORTED_FORMAT, ErrorCode.TOO_MANY_PIXELS, ErrorCode.UNDECODABLE}
SPECS = {
    found.digest: found
    for found in (
        spec(resize="shortest_edge_crop", resize_size=64, crop_size=[56, 56]),
        spec(resize="letterbox", resize_size=[32, 48], background=[0, 0, 255], interpolation="bicubic"),
    )
}
LIMITS = [DecodeLimits(max_pixels=4_000_000, truncated=mode) for mode in ("strict", "lenient")]
SLOWEST_SECONDS = 2.0
LARGEST_BYTES = 200_000
EXAMPLES = 300


def corpus() -> list[bytes]:
    """Small real files of all formats and modes; the nasty ones and photos where they are at hand."""
    image = noise(90, 60)
    made = [encode(image.convert(mode), kind) for mode, kind in [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("LA", "PNG"),
        ("1", "PNG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"), ("RGB", "BMP"), ("1", "BMP"),
    ]]  # fmt: skip
    frames = [image.rotate(90 * n) for n in range(1, 3)]
    made += [encode(image, kind, save_all=True, append_images=frames) for kind in ("GIF", "WEBP", "PNG", "MPO")]
    made += [encode(image, "JPEG", progressive=True), encode(image, "JPEG", icc_profile=b"A2B" * 99)]
    made += [encode(image, "JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1)]  # lossless, which simplejpeg must never see
    found = [path for folder in (NASTY, PHOTOS) if folder.is_dir() for path in sorted(folder.iterdir())]
    return made + [path.read_bytes() for path in found if path.stat().st_size < LARGEST_BYTES]


CORPUS = corpus()


def mutate(data: bytes, randomness: random.Random) -> bytes:
    """A few of: flipped bits, wild bytes, pieces cut, doubled, moved, or taken from another file, extreme numbers."""
    mutant = bytearray(data)
    for _ in range(randomness.choice((1, 1, 2, 4, 16))):
        at = min(int(randomness.expovariate(1 / 200)), len(mutant)) if randomness.random() < 0.5 else 0
        at = at or randomness.randrange(len(mutant) + 1)
        end = at + randomness.choice((1, 2, 4, 16, 256, 4096))
        match randomness.randrange(7):
            case 0 if at < len(mutant):
                mutant[at] ^= 1 << randomness.randrange(8)
            case 1:
                mutant[at:end] = randomness.randbytes(min(end, len(mutant)) - min(at, len(mutant)))
            case 2:
                del mutant[at:end]
            case 3:
                mutant[at:at] = mutant[at:end]
            case 4:
                other = randomness.choice(CORPUS)
                begin = randomness.randrange(len(other) + 1)
                mutant[at:end] = other[begin : begin + end - at]
            case 5:
                mutant[at : at + 4] = randomness.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"))
            case 6:
                del mutant[at:]
    return bytes(mutant)


def check(data: bytes, limits: DecodeLimits) -> str:
    """Prepare it, and raise AssertionError for anything but a picture or a permanent error; says which it was."""
    refused, arrays, info = attempt(data, limits)
    if data[:3] == b"\xff\xd8\xff":
        with mock.patch.object(decoder, "turbo_pixels", never):
            refused_slowly, plain, info_slowly = attempt(data, limits)
        assert (str(refused), info) == (str(refused_slowly), info_slowly)
        for digest, array in arrays.items():
            assert np.abs(array.astype(int) - plain[digest]).max() <= 1
    if refused is not None:
        message = str(refused)
        assert refused.code in PERMANENT, refused.code
        assert message
        assert message.isprintable()
        assert len(message) < 500
        return refused.code.value
    assert {array.shape for array in arrays.values()} == {(56, 56, 3), (32, 48, 3)}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
    assert info["width"] * info["height"] <= limits.max_pixels
    return "ok"


def never(data: bytes, image: object) -> None:
    """The fast way, turned off."""


def attempt(data: bytes, limits: DecodeLimits):
    """The refusal, the arrays, the account of the image, as far as there are any."""
    began = time.thread_time()
    refused, arrays, info = None, {}, {}
    try:
        info, arrays = prepare(data, SPECS, limits)
    except ImageError as error:
        refused = error
    assert time.thread_time() - began < SLOWEST_SECONDS
    return refused, arrays, info


@pytest.mark.filterwarnings("error")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(range(len(CORPUS))), st.integers(0, 2**32), st.sampled_from(LIMITS))
def test_mutants_of_real_files(number: int, seed: int, limits: DecodeLimits) -> None:
    check(mutate(CORPUS[number], random.Random(seed)), limits)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFFxxxxWEBP", b"GIF89a", b"BM"]), st.binary())
def test_anything_after_the_magic(magic: bytes, rest: bytes) -> None:
    check(magic + rest, LIMITS[0])


def main() -> None:
    """Mutate for as long as asked, and print what came of it; a failure leaves its file behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    randomness = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < arguments.seconds:
        data = mutate(randomness.choice(CORPUS), randomness)
        try:
            outcomes[check(data, randomness.choice(LIMITS))] += 1
        except BaseException:
            with open("fuzz-failure.bin", "wb") as file:  # noqa: PTH123 - a plain tool
                file.write(data)
            raise
    print(f"{outcomes.total():,} executions in {seconds:.0f} s: {dict(outcomes.most_common())}")


if __name__ == "__main__":
    main()
