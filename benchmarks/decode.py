"""How fast one core decodes and preprocesses JPEGs, against the plain way, in one run.

    .venv/bin/python benchmarks/decode.py [--photos FOLDER] [--rounds 7]

The plain way is a full decode by Pillow, convert, resize, crop. Every variant gets the same bytes in turns; times are
CPU seconds of the thread, medians over rounds; ours include SHA-256 and all guards. `500x375` are the photos that are
about that large, as they are on disk (ImageNet's: 5 bits a pixel, so that half of our time is Huffman decoding),
and encoded as on the web, at quality 80; `12 MP` are photos scaled to 4000 x 3000 and encoded at quality 90.
Differences are to the plain way, in levels.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifleet.worker import decode
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.models import Preprocess

SPEC = Preprocess(
    resize="shortest_edge_crop",
    resize_size=256,
    crop_size=(224, 224),
    interpolation="bilinear",
    scale=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
EDGE, CROP = 256, 224
SMALL_PIXELS = 500 * 375
LARGE = (4000, 3000)
LARGE_PHOTOS = 10
MODEL_BYTES = 16 << 20
"""Taken and given back first, as a worker does when it loads a model: glibc then keeps memory of such sizes when it is
freed, and no variant pays for pages anew with each photo."""
Variant = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "photos")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    np.empty(MODEL_BYTES, np.uint8)
    photos = [path.read_bytes() for path in sorted(arguments.photos.iterdir())]
    small = [data for data in photos if 0.8 < math.prod(Image.open(io.BytesIO(data)).size) / SMALL_PIXELS < 1.25]
    variants: dict[str, Variant] = {
        "plain": plain,
        "ours": ours,
        "ours by Pillow": by_pillow,
        "ours, scaled": by_scaling,
    }
    sets = {
        "500x375": small,
        "500x375, quality 80": [encoded(Image.open(io.BytesIO(data)), 80) for data in small],
        "12 MP": [encoded(Image.open(io.BytesIO(data)), 90, LARGE) for data in small[:LARGE_PHOTOS]],
    }
    for name, chosen in sets.items():
        compare(f"{name} ({len(chosen)} photos)", chosen, variants, arguments.rounds)


def compare(title: str, photos: Sequence[bytes], variants: dict[str, Variant], rounds: int) -> None:
    """Time the variants in turns and print them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            start = time.thread_time()
            for data in photos:
                variant(data)
            seconds[name].append((time.thread_time() - start) / len(photos))
    print(f"\n{title:<28}{'images/s a core':>16}{'ratio':>8}{'max':>6}{'mean':>8}")
    plain_seconds = statistics.median(seconds["plain"])
    for name, variant in variants.items():
        median = statistics.median(seconds[name])
        most, mean = difference(photos, variant)
        print(f"  {name:<26}{1 / median:>16,.0f}{plain_seconds / median:>8.2f}{most:>6}{mean:>8.3f}")


def difference(photos: Sequence[bytes], variant: Variant) -> tuple[int, float]:
    """Largest difference to the plain way of any photo, and the largest mean of any photo."""
    found = [np.abs(variant(data).astype(int) - plain(data)) for data in photos]
    return max(int(each.max()) for each in found), max(float(each.mean()) for each in found)


def plain(data: bytes) -> NDArray[np.uint8]:
    """What everybody writes."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = scaled(*image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + CROP, top + CROP)))


def ours(data: bytes) -> NDArray[np.uint8]:
    """What a worker does."""
    return prepare(data, {"": SPEC}, DecodeLimits())[1][""]


def by_scaling(data: bytes) -> NDArray[np.uint8]:
    """The same with `decode_exact=false`, where nobody hostile writes the files."""
    return prepare(data, {"": SPEC}, DecodeLimits(exact=False))[1][""]


def never(data: bytes, image: object) -> None:
    """The fast way, turned off."""


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """What a worker does with a JPEG that is not ordinary."""
    with mock.patch.object(decode, "turbo_pixels", never):
        return ours(data)


def scaled(width: int, height: int) -> tuple[int, int]:
    """Shorter edge to 256, the longer rounded down."""
    return (EDGE, int(EDGE * height / width)) if width <= height else (int(EDGE * width / height), EDGE)


def encoded(image: Image.Image, quality: int, size: tuple[int, int] | None = None) -> bytes:
    """A JPEG with halved colours, perhaps of another size."""
    file, rgb = io.BytesIO(), image.convert("RGB")
    (rgb.resize(size, Image.Resampling.BICUBIC) if size else rgb).save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    main()
