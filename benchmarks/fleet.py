"""What the queue costs: one worker end to end against the same work called directly, side by side in one run.

    .venv/bin/python benchmarks/fleet.py [--images 400] [--model imagenet] [--json FILE]

Direct means: the same decode, preprocessing and backend in one process, without Redis, Celery or records. The file is
what `python -m benchmarks.autoscale` reads: `benchmarks/results/fleet.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import numpy as np
import skimage
from PIL import Image

from classifleet.config import Settings
from classifleet.producer import Fleet
from classifleet.producer.embedded import embedded_fleet
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.models import Backend, ModelDescription, load_backend, open_repository

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
ROUNDS = 60
BATCH = 16


def main() -> None:
    """Measure, and print figures with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = make_photos(folder)
        repository = open_repository(Settings.load().model_repository)
        description = repository.describe(arguments.model)
        backend = load_backend(repository, arguments.model, device="cpu")
        backend.warm([1, BATCH])
        direct_ms = median_ms(lambda n: classify(photos[n % len(photos)], description, backend))
        direct_rate = throughput(photos, arguments.images, description, backend)
        backend.close()
        settings = {"MODELS": arguments.model, "FILE_ROOTS": str(folder)}
        fleet_process = stack.enter_context(embedded_fleet(settings=settings))
        fleet = stack.enter_context(Fleet(fleet_process.url, redis_url=fleet_process.url))
        refs = ["file://" + quote(str(photo)) for photo in photos]
        fleet_ms = median_ms(lambda n: fleet.submit(refs[n % len(refs)], models=arguments.model).result(timeout=60))
        items = ((str(n), refs[n % len(refs)]) for n in range(arguments.images))
        fleet_rate = fleet.submit_many(items, models=arguments.model).wait(timeout=600).rate
    print(
        f"latency, one at a time, idle, p50   direct {direct_ms:6.1f} ms     fleet {fleet_ms:6.1f} ms     "
        f"the queue costs {fleet_ms - direct_ms:.1f} ms"
    )
    print(
        f"throughput, {arguments.images} photos            direct {direct_rate:6.1f} /s     "
        f"fleet {fleet_rate:6.1f} /s     ratio {fleet_rate / direct_rate:.2f}"
    )
    if arguments.json:
        write(arguments.json, arguments.model, arguments.images, fleet_rate)


def write(file: Path, model: str, images: int, images_per_second: float) -> None:
    """What a replica does, and what it holds at a time."""
    settings = Settings.load()
    figures = {
        "model": model,
        "images": images,
        "cores": os.cpu_count(),
        "images_per_second": round(images_per_second, 1),
        "window_images": settings.chunks_in_flight * settings.chunk_size,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n")


def make_photos(folder: Path) -> list[Path]:
    """scikit-image's photos as JPEGs."""
    photos = []
    for name in PHOTOS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=90)
        photo = (folder / name).with_suffix(".jpg")
        photo.write_bytes(buffer.getvalue())
        photos.append(photo)
    return photos


def pixels(photo: Path, description: ModelDescription) -> np.ndarray:
    """File to the model's uint8 input [h, w, 3]."""
    spec = description.preprocess
    return prepare(photo.read_bytes(), {spec.digest: spec}, DecodeLimits())[1][spec.digest]


def classify(photo: Path, description: ModelDescription, backend: Backend) -> None:
    """One image, directly."""
    backend.run(pixels(photo, description)[np.newaxis])


def median_ms(call: Callable[[int], object]) -> float:
    """Median milliseconds of a call."""
    times = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def throughput(photos: list[Path], count: int, description: ModelDescription, backend: Backend) -> float:
    """Images per second in batches, decoding and forward in turn in one thread."""
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        batch = [pixels(photos[n % len(photos)], description) for n in range(first, min(first + BATCH, count))]
        backend.run(np.stack(batch))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
