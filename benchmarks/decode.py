"""How fast one core decodes and preprocesses JPEGs, against the plain way, in one run.

    .venv/bin/python benchmarks/decode.py [--photos FOLDER] [--rounds 7]

The plain way is a full decode by Pillow, convert, resize, crop. Every variant gets the same bytes in turns; times are
CPU seconds of the thread, medians over rounds. `500x375` are the photos that are about that large, as they are on
disk; `12 MP` are photos scaled to 4000 x 3000 and encoded at quality 90. Differences are to the plain way, in levels.
simplejpeg is measured where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
Variant = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "photos")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(arguments.photos.iterdir())]
    small = [data for data in photos if 0.8 < math.prod(Image.open(io.BytesIO(data)).size) / SMALL_PIXELS < 1.25]
    variants: dict[str, Variant] = {"plain": plain, "ours": ours, "ours, exact": exact}
    if importlib.util.find_spec("simplejpeg") and importlib.util.find_spec("torch"):
        variants["simplejpeg + torch"] = turbo()
    compare(f"500x375 ({len(small)} photos)", small, variants, arguments.rounds)
    large = [enlarged(data) for data in small[:LARGE_PHOTOS]]
    compare(f"12 MP ({len(large)} photos)", large, variants, arguments.rounds)


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


def exact(data: bytes) -> NDArray[np.uint8]:
    """The same with `decode_exact`."""
    return prepare(data, {"": SPEC}, DecodeLimits(exact=True))[1][""]


def turbo() -> Variant:
    """simplejpeg at a power-of-two scale, then torch's antialiased resize: without any of our guards."""
    import simplejpeg
    import torch

    torch.set_num_threads(1)

    def decode(data: bytes) -> NDArray[np.uint8]:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        wanted = scaled(width, height)
        room = min(width // (2 * wanted[0]), height // (2 * wanted[1]))
        scale = max(step for step in (1, 2, 4, 8) if step <= max(room, 1))
        smallest: dict[str, Any] = {"min_height": math.ceil(height / scale), "min_width": math.ceil(width / scale)}
        pixels = simplejpeg.decode_jpeg(data, "RGB", **(smallest if scale > 1 else {}))
        columns, rows = scaled(pixels.shape[1], pixels.shape[0])
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(tensor, size=(rows, columns), mode="bilinear", antialias=True)[0]
        left, top = round((columns - CROP) / 2), round((rows - CROP) / 2)
        cut: NDArray[np.uint8] = resized[:, top : top + CROP, left : left + CROP].permute(1, 2, 0).contiguous().numpy()
        return cut

    return decode


def scaled(width: int, height: int) -> tuple[int, int]:
    """Shorter edge to 256, the longer rounded down."""
    return (EDGE, int(EDGE * height / width)) if width <= height else (int(EDGE * width / height), EDGE)


def enlarged(data: bytes) -> bytes:
    """The photo as a 12 MP JPEG."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
