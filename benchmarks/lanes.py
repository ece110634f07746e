"""What an interactive image waits for while bulk fills the fleet: a real worker, real photos, one model.

    .venv/bin/python benchmarks/lanes.py [--requests 60] [--model imagenet] [--set NAME=VALUE …]

First one image at a time on an idle fleet; then the same while a bulk job keeps every place taken. Under the backlog
p95 may be the idle p95 and two full batches: the one that runs when the image arrives, and its own.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import quote

from classifleet.producer import Fleet, Job
from classifleet.producer.embedded import EmbeddedFleet, embedded_fleet

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.fleet import make_photos

BULK_IMAGES: Final = 100_000  # more than a run gets through
BATCHES: Final = 2
Timed = tuple[float, dict[str, float]]  # milliseconds as the caller sees them, and by stage
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def main() -> None:
    """Measure idle and under a backlog; print both, a full batch, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--model", default="imagenet")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        refs = ["file://" + quote(str(photo)) for photo in make_photos(folder)]
        settings = {"MODELS": arguments.model, "FILE_ROOTS": str(folder)}
        settings |= dict(pair.split("=", 1) for pair in arguments.set)
        process = stack.enter_context(embedded_fleet(settings=settings))
        fleet = stack.enter_context(Fleet(process.url, redis_url=process.url))
        latencies(fleet, refs, arguments.model, 5)  # whatever happens at first alone
        idle = latencies(fleet, refs, arguments.model, arguments.requests)
        report("idle", idle)
        items = ((str(n), refs[n % len(refs)]) for n in range(BULK_IMAGES))
        job = fleet.submit_many(items, models=arguments.model)
        fill(job, process)
        before, start = Counts(process), time.monotonic()
        loaded = latencies(fleet, refs, arguments.model, arguments.requests)
        rate = (Counts(process).images - before.images) / (time.monotonic() - start)
        batch_ms, size = Counts(process).batch_since(before)
        job.cancel()
    report("under a bulk backlog", loaded)
    print(f"bulk and interactive together {rate:.1f} images/s; a batch of {size:.1f} takes {batch_ms:.1f} ms")
    allowed = p(idle, 95) + BATCHES * batch_ms
    verdict = "met" if p(loaded, 95) <= allowed else "NOT met"
    print(f"target: p95 at most {allowed:.1f} ms (idle p95 + {BATCHES} full batches): {verdict}")


def report(name: str, times: list[Timed]) -> None:
    """Print percentiles, and where the slowest spent its time."""
    print(f"interactive, {name:21}  p50 {p(times, 50):7.1f} ms   p95 {p(times, 95):7.1f} ms", flush=True)
    milliseconds, stages = max(times, key=lambda timed: timed[0])
    print(f"    the slowest, {milliseconds:.0f} ms: {', '.join(f'{stage} {ms:.0f}' for stage, ms in stages.items())}")


def p(times: list[Timed], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles((timed[0] for timed in times), n=100, method="inclusive")[percent - 1]


def latencies(fleet: Fleet, refs: list[str], model: str, count: int) -> list[Timed]:
    """So many images, one at a time, at moments that nothing else sets."""
    times: list[Timed] = []
    for number in range(count):
        start = time.perf_counter()
        result = fleet.submit(refs[number % len(refs)], models=model).result(timeout=600)
        result.raise_for_error()
        times.append(((time.perf_counter() - start) * 1000, dict(result.timings)))
        time.sleep(random.uniform(0, 0.1))
    return times


def fill(job: Job, process: EmbeddedFleet) -> None:
    """Wait until the worker is as full as it gets: its first chunks have been committed."""
    while job.progress().done < 256:
        process.require_running()
        time.sleep(0.1)


class Counts:
    """What a worker has counted up to now."""

    def __init__(self, process: EmbeddedFleet) -> None:
        with urllib.request.urlopen(process.http_url + "/metrics", timeout=30) as answer:
            samples = _SAMPLE.findall(answer.read().decode())
        values = {name + labels: float(value) for name, labels, value in samples}
        forward = 'classifleet_stage_duration_seconds_{}stage="forward"'
        self.forward_seconds = values.get(forward.format("sum"), 0.0)
        self.images = values.get(forward.format("count"), 0.0)
        self.batches = sum(v for name, v in values.items() if name.startswith("classifleet_batch_size_count"))

    def batch_since(self, before: Counts) -> tuple[float, float]:
        """Milliseconds that the batch of the average image took, and the average batch's size."""
        images = self.images - before.images
        return (self.forward_seconds - before.forward_seconds) / images * 1000, images / (
            self.batches - before.batches
        )


if __name__ == "__main__":
    main()
