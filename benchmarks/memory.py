"""Memory: what a worker takes with each model, and whether it grows over 100,000 images.

    .venv/bin/python benchmarks/memory.py [--images 100000] [--json FILE]

Models: each alone, and all of the repository together, after their first 200 photos. Images: small photos that are
fetched, decoded and run through a tiny TorchScript model, so that everything is real and 100,000 take about 2 minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._ceiling import Ceiling
from benchmarks._ours import TUNING, Ours, reference
from benchmarks._outcome import Outcome, arguments
from benchmarks._photos import make_photos, small_photos
from benchmarks._processes import resident_mib
from benchmarks._statistics import median
from tests.support.tiny import MODEL as TINY
from tests.support.tiny import add_tiny

from classifleet.config import Settings
from classifleet.worker.models import open_repository

FIRST_PHOTOS: Final = 200
TENTHS: Final = 10
GROWN_MIB: Final = 32.0


def main() -> None:
    """Models first, then images."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--tune-seconds", type=float, default=60)
    options = parser.parse_args()
    outcome = Outcome("memory", "Memory")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models(outcome, folder, options.tune_seconds)
        if options.images:
            images(outcome, folder, options.images)
    outcome.write(options.json)


def models(outcome: Outcome, folder: Path, tune_seconds: float) -> None:
    """A worker with each model."""
    repository = open_repository(Settings.load().model_repository)
    names = sorted({key.partition("@")[0] for key in repository.list()})
    photos = make_photos(folder / "photos", FIRST_PHOTOS)
    rows = []
    for chosen in [*([name] for name in names), names] if len(names) > 1 else [names]:
        settings = {"MODELS": ",".join(chosen), "TUNING_CACHE": str(TUNING / "all"), "TUNE_SECONDS": str(tune_seconds)}
        if len(chosen) == 1:
            _tune(folder, settings)
        ready, after, variant = _with_models(folder, settings, photos, chosen)
        rows.append([", ".join(chosen), f"{ready:.0f}", f"{after:.0f}", variant])
    columns = ["models", "MiB when ready", f"MiB after {FIRST_PHOTOS} photos", "runs"]
    outcome.table("A worker's resident memory", columns, rows)


def _with_models(
    folder: Path, settings: dict[str, str], photos: Sequence[Path], names: list[str]
) -> tuple[float, float, str]:
    ours = Ours("memory", folder / "photos", settings, model=names[0])
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        stack.callback(ours.stop)
        ours.start(place)
        ready = resident_mib(ours.worker.process.pid)
        with ours.producer() as fleet:
            job = fleet.submit_many([reference(path) for path in photos], models=names)
            if (progress := job.wait(timeout=600)).ok != len(photos):
                raise SystemExit(f"images failed: {progress.by_code}")
        return ready, resident_mib(ours.worker.process.pid), ours.details


def _tune(folder: Path, settings: dict[str, str]) -> None:
    """In a process of its own: what tuning has loaded would count as the worker's."""
    tuner = Ceiling("tuning", {**settings, "MODEL_REPOSITORY": Settings.load().model_repository})
    try:
        tuner.start(folder)
    finally:
        tuner.stop()


def images(outcome: Outcome, folder: Path, count: int) -> None:
    """Many images through one worker; its memory after each tenth of them."""
    photos = small_photos(folder / "small", 100)
    settings = {"MODEL_REPOSITORY": str(add_tiny(folder / "models")), "TUNE_SECONDS": "0", "LOG_LEVEL": "warning"}
    settings["SINK_ALLOW"] = sink = f"file://{folder}/sink"
    ours = Ours("memory", folder / "small", settings, model=TINY)
    rows, seen = [], []
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        stack.callback(ours.stop)
        ours.start(place)
        fleet = stack.enter_context(ours.producer())
        began = time.perf_counter()
        for number in range(1, TENTHS + 1):
            refs = (reference(photos[n % len(photos)]) for n in range(count // TENTHS))
            progress = fleet.submit_many(refs, models=TINY, sink=sink).wait(timeout=600)
            if progress.failed:
                raise SystemExit(f"images failed: {progress.by_code}")
            seen.append(resident_mib(ours.worker.process.pid))
            rows.append([f"{number * count // TENTHS:,}", f"{progress.rate:,.0f}", f"{seen[-1]:.0f}"])
    title = f"{count:,} small photos through one worker in {time.perf_counter() - began:.0f} s"
    outcome.table(title, ["images", "images/s", "worker MiB"], rows)
    # the first fifth fills pools and caches
    grown = median(seen[-2:]) - median(seen[1:3])
    limit = f"at most {GROWN_MIB:g} MiB"
    outcome.target(
        f"growth to {count:,} images, after the first fifth", limit, f"{grown:+.0f} MiB", met=grown <= GROWN_MIB
    )


if __name__ == "__main__":
    main()
