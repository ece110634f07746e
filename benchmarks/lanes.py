"""What an interactive image waits for while bulk fills the fleet: a real worker, real photos, one model.

    .venv/bin/python benchmarks/lanes.py [--requests 60] [--model imagenet] [--set NAME=VALUE …]

First one image at a time on an idle fleet; then the same while a bulk job keeps every place taken. Under the backlog
p95 may be the idle p95 and two full batches: the one that runs when the image arrives, and its own. What a batch takes
is measured anew during each request, for on a shared machine it changes from one moment to the next.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from classifleet.producer import Fleet, Job
from classifleet.producer.embedded import EmbeddedFleet, embedded_fleet

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.fleet import make_photos

BULK_IMAGES: Final = 100_000  # more than a run gets through
BATCHES: Final = 2
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Timed:
    """One request: milliseconds as its caller sees them, of a batch meanwhile, and its record's seconds by stage."""

    milliseconds: float
    batch_ms: float
    stages: dict[str, float]


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
        loaded = latencies(fleet, refs, arguments.model, arguments.requests, process)
        job.cancel()
    report("under a bulk backlog", loaded)
    over = [timed.milliseconds - BATCHES * timed.batch_ms for timed in loaded]
    print(f"a batch took {statistics.median(timed.batch_ms for timed in loaded):.1f} ms (median over the requests)")
    verdict = "met" if p(over, 95) <= p([timed.milliseconds for timed in idle], 95) else "NOT met"
    print(f"target: p95 at most the idle p95 beyond {BATCHES} batches; it is {p(over, 95):.1f} ms: {verdict}")


def report(name: str, times: list[Timed]) -> None:
    """Print percentiles, and where the slowest spent its time."""
    values = [timed.milliseconds for timed in times]
    print(f"interactive, {name:21}  p50 {p(values, 50):7.1f} ms   p95 {p(values, 95):7.1f} ms", flush=True)
    slowest = max(times, key=lambda timed: timed.milliseconds)
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in slowest.stages.items())
    print(f"    seconds of the slowest: {stages}; a batch took {slowest.batch_ms / 1000:.2f}")


def p(values: list[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def latencies(
    fleet: Fleet, refs: list[str], model: str, count: int, process: EmbeddedFleet | None = None
) -> list[Timed]:
    """So many images, one at a time, at moments that nothing else sets; with a process, batches are timed too."""
    times = []
    for number in range(count):
        before = Counts(process) if process else None
        start = time.perf_counter()
        result = fleet.submit(refs[number % len(refs)], models=model).result(timeout=600)
        milliseconds = (time.perf_counter() - start) * 1000
        result.raise_for_error()
        batch_ms = Counts(process).batch_ms_since(before) if process and before else 0.0
        times.append(Timed(milliseconds, batch_ms, dict(result.timings)))
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

    def batch_ms_since(self, before: Counts) -> float:
        """Milliseconds that the batch of the average image took."""
        return (self.forward_seconds - before.forward_seconds) / (self.images - before.images) * 1000


if __name__ == "__main__":
    main()
