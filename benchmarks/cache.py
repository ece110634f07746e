"""What the content cache is worth where most pictures come again, and what it costs where none does.

    .venv/bin/python benchmarks/cache.py [--photos 400] [--rounds 3]

First, what the fleet itself spends on an image whose fetch, decode and model cost nothing, all of one content: with
the cache nothing of it is decoded or classified. Then a real model, on a worker with the cache and one without, in
turns: jobs whose photos come five times each, shuffled (80 % re-uploads), and jobs whose photos come once. Every round
has photos of its own, so that what is known is known from the same job. Labels are compared.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._null_worker import add_model
from benchmarks._ours import TUNING, Ours, best, reference
from benchmarks._photos import make_photos
from benchmarks._processes import cpu_seconds
from benchmarks.cost import WORKER, submit
from tests.support.fleet import Worker, start_worker
from tests.support.services import RedisServer

COPIES = 5
WAYS = {"without": {}, "with": {"CONTENT_CACHE": "*"}}


@dataclass
class Runs:
    """Of one way: images/s and CPU of the worker in ms an image, by round."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="of the first table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        overhead(Path(name), arguments.images)
        with fleets(Path(name)) as ours:
            for title, copies in ((f"{100 - 100 // COPIES} % re-uploads", COPIES), ("no re-uploads", 1)):
                compare(ours, title, Path(name), arguments.photos * COPIES // copies, copies, arguments.rounds)


def overhead(folder: Path, images: int) -> None:
    """Print what an image costs whose work costs nothing."""
    add_model(folder / "null-models")
    print("CPU of the worker an image, fetch, decode and model costing nothing, chunks of 32:")
    for way, more in WAYS.items():
        settings = {"MODEL_REPOSITORY": str(folder / "null-models"), "LOG_LEVEL": "warning", **more}
        with ExitStack() as stack:
            server = stack.enter_context(RedisServer.start(folder / f"null-{way}"))
            url = f"{server.url}/0"
            log = folder / f"null-{way}.log"
            worker = stack.enter_context(start_worker(url, log, settings=settings, command=WORKER))
            submit(url, 32, 2048)
            before = cpu_seconds(worker.process.pid)
            submit(url, 32, images)
            print(f"  {way:<8} {(cpu_seconds(worker.process.pid) - before) / images * 1e6:6.0f} µs")


@contextmanager
def fleets(folder: Path) -> Iterator[Mapping[str, Ours]]:
    """A fleet for each way, with the same tuned model."""
    (folder / "photos").mkdir()
    with ExitStack() as stack:
        ours = {}
        for way, settings in WAYS.items():
            ours[way] = Ours(way, folder / "photos", {"TUNING_CACHE": str(TUNING), **settings})
            ours[way].start(folder / way)
            stack.callback(ours[way].stop)
        yield ours


def compare(ours: Mapping[str, Ours], title: str, folder: Path, photos: int, copies: int, rounds: int) -> None:
    """Print a line for each way, and their ratio."""
    runs = {way: Runs() for way in ours}
    before = looked_up(ours["with"].worker)
    for number in range(rounds + 1):  # the first warms up
        seed = 1000 * copies + number
        paths = fresh_photos(folder / "photos" / str(seed), photos) * copies
        random.Random(seed).shuffle(paths)
        labels = [classify(fleet, paths, runs[way], counts=number > 0) for way, fleet in ours.items()]
        if labels[0] != labels[1]:
            different = sum(one != other for one, other in zip(*labels, strict=True))
            print(f"  {different} of {len(paths)} labels differ")
    after = looked_up(ours["with"].worker)
    found = {outcome: after.get(outcome, 0) - before.get(outcome, 0) for outcome in after}
    print(f"\n{title}: {photos * copies} photos a job, median of {rounds}; {ours['with'].details}")
    for way, run in runs.items():
        print(f"  {way:<8} {median(run.rates):8.1f} images/s {median(run.cpu_ms):8.2f} ms of CPU an image")
    faster = [one / other for one, other in zip(runs["with"].rates, runs["without"].rates, strict=True)]
    print(f"  with/without by round: {', '.join(f'{ratio:.2f}' for ratio in faster)}")
    print(f"  {', '.join(f'{outcome} {count / sum(found.values()):.1%}' for outcome, count in found.items())}")


def fresh_photos(folder: Path, count: int) -> list[Path]:
    """Photos that decode like others and have bytes of their own: a decoder ends before what is appended."""
    paths = make_photos(folder, count)
    for path in paths:
        with path.open("ab") as file:
            file.write(folder.name.encode())
    return paths


def classify(fleet: Ours, paths: Sequence[Path], run: Runs, *, counts: bool) -> list[int]:
    """A bulk job; the best class of each photo."""
    before = cpu_seconds(fleet.worker.process.pid)
    with fleet.producer() as producer:
        items = ((str(number), reference(path)) for number, path in enumerate(paths))
        job = producer.submit_many(items, models=fleet.model)
        rate = job.wait(timeout=600).rate
        if counts:
            run.rates.append(rate)
            run.cpu_ms.append((cpu_seconds(fleet.worker.process.pid) - before) / len(paths) * 1000)
        classes = {result.id: best(result) for result in job.results()}
    return [classes[str(number)] for number in range(len(paths))]


def looked_up(worker: Worker) -> dict[str, float]:
    """How often the cache was asked, by outcome."""
    lines = re.findall(r'^classifleet_cache_total{.*outcome="(\w+)".*} (\S+)$', worker.metrics(), re.MULTILINE)
    return {outcome: float(count) for outcome, count in lines}


if __name__ == "__main__":
    main()
