"""What an interactive image waits for while bulk fills the fleet: a real worker, real photos, one model.

    .venv/bin/python benchmarks/lanes.py [--requests 60] [--rounds 3] [--set NAME=VALUE …] [--json FILE]

First one image at a time on an idle fleet; then the same while a bulk job keeps every place taken. Under the backlog
p95 may be the idle p95 and two full batches: the one that runs when the image arrives, and its own. What a batch takes
is measured anew during each request, for on a shared machine it changes from one moment to the next; for the same
reason the median of some rounds counts.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._ours import MODEL, TUNING, Ours, reference
from benchmarks._outcome import Outcome, arguments
from benchmarks._photos import make_photos
from benchmarks._statistics import median, percentile
from tests.support.fleet import Worker

from classifleet.producer import Fleet, Job

BULK_IMAGES: Final = 100_000  # more than a run gets through
FILLED: Final = 256
PHOTOS: Final = 100
BATCHES: Final = 2
BEYOND: Final = f"  of it, beyond {BATCHES} full batches"
WARM: Final = 5
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Timed:
    """One request: milliseconds as its caller sees them, of a batch meanwhile, and its record's seconds by stage."""

    milliseconds: float
    batch_ms: float
    stages: dict[str, float]


Round = tuple[list[Timed], list[Timed]]
"""Idle, and under the backlog."""


def main() -> None:
    """Measure idle and under a backlog."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker")
    parser.add_argument("--tune-seconds", type=float, default=60)
    options = parser.parse_args()
    outcome = Outcome("lanes", "Lanes")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        refs = [reference(photo) for photo in make_photos(folder / "photos", PHOTOS)]
        settings = {"TUNING_CACHE": str(TUNING / "all"), "TUNE_SECONDS": str(options.tune_seconds)}
        settings |= dict(pair.split("=", 1) for pair in options.set)
        ours = Ours("classifleet", folder / "photos", settings)
        stack.callback(ours.stop)
        ours.start(folder)
        fleet = stack.enter_context(ours.producer())
        rounds = [measure(fleet, refs, options.requests, ours.worker) for _ in range(options.rounds)]
    conclude(outcome, rounds)
    outcome.write(options.json)


def measure(fleet: Fleet, refs: Sequence[str], requests: int, worker: Worker) -> Round:
    """Idle, then under a backlog."""
    latencies(fleet, refs, WARM)  # whatever happens at first alone
    idle = latencies(fleet, refs, requests)
    job = fleet.submit_many(((str(n), refs[n % len(refs)]) for n in range(BULK_IMAGES)), models=MODEL)
    fill(job, worker)
    loaded = latencies(fleet, refs, requests, worker)
    job.cancel()
    job.wait(timeout=600)
    return idle, loaded


def conclude(outcome: Outcome, rounds: Sequence[Round]) -> None:
    """Percentiles, where the slowest spent its time, and the verdict."""
    times: dict[str, list[list[float]]] = {
        "idle fleet": [[timed.milliseconds for timed in idle] for idle, _ in rounds],
        "under a bulk backlog": [[timed.milliseconds for timed in loaded] for _, loaded in rounds],
        BEYOND: [[timed.milliseconds - BATCHES * timed.batch_ms for timed in loaded] for _, loaded in rounds],
    }
    found = {name: [percentile(values, 95) for values in each] for name, each in times.items()}
    rows = [
        [name, f"{median([percentile(values, 50) for values in each]):.1f}", f"{median(found[name]):.1f}"]
        for name, each in times.items()
    ]
    outcome.table(f"One interactive image at a time, median of {len(rounds)} rounds", ["", "p50 ms", "p95 ms"], rows)
    every = [timed for _, loaded in rounds for timed in loaded]
    slowest = max(every, key=lambda timed: timed.milliseconds)
    stages = ", ".join(f"{stage} {1000 * seconds:.0f}" for stage, seconds in slowest.stages.items())
    outcome.note(f"a batch took {median([timed.batch_ms for timed in every]):.1f} ms under the backlog (median)")
    outcome.note(f"milliseconds of the slowest of {len(every)}: {stages}; a batch took {slowest.batch_ms:.0f}")
    over = median([beyond - idle for beyond, idle in zip(found[BEYOND], found["idle fleet"], strict=True)])
    target = f"p95 at most the idle p95 and {BATCHES} full batches"
    outcome.target("interactive under a bulk backlog", target, f"{over:+.1f} ms of that", met=over <= 0)


def latencies(fleet: Fleet, refs: Sequence[str], count: int, worker: Worker | None = None) -> list[Timed]:
    """So many images, one at a time, at moments that nothing else sets; with a worker, batches are timed too."""
    times = []
    for number in range(count):
        before = Counts(worker) if worker else None
        start = time.perf_counter()
        result = fleet.submit(refs[number % len(refs)], models=MODEL).result(timeout=600)
        milliseconds = (time.perf_counter() - start) * 1000
        result.raise_for_error()
        batch_ms = Counts(worker).batch_ms_since(before) if worker and before else 0.0
        times.append(Timed(milliseconds, batch_ms, dict(result.timings)))
        time.sleep(random.uniform(0, 0.1))
    return times


def fill(job: Job, worker: Worker) -> None:
    """Wait until the worker is as full as it gets: its first chunks have been committed."""
    while job.progress().done < FILLED:
        if not worker.process.running():
            raise SystemExit(worker.process.tail())
        time.sleep(0.1)


class Counts:
    """What a worker has counted up to now."""

    def __init__(self, worker: Worker) -> None:
        with urllib.request.urlopen(worker.http_url + "/metrics", timeout=30) as answer:
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
