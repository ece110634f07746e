"""Scale: images a second as worker processes are added, and a million references through one worker.

    .venv/bin/python benchmarks/scale.py [--workers 1 2 4] [--references 1000000] [--json FILE]

Workers: each has a model that sleeps without the CPU, so that 2 cores suffice for four, at 80 images a second each.
References: a model, fetch and decode that cost nothing; rate, CPU and memory of producer, worker and Redis for each
tenth. The producer is paced by the worker from the first tenth to the last, in which it has more to submit: the less
of the two cores the worker has, the less its threads wait for each other and the less CPU an image takes (alone, a
third more), so that tenths can only be compared beside a producer that does the same. A million takes 4 minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._null_worker import add_model
from benchmarks._outcome import Outcome, arguments
from benchmarks._processes import cpu_seconds, resident_mib
from benchmarks._statistics import median, slope_share
from benchmarks._submit_references import REF, WINDOW_CHUNKS
from tests.support.fleet import start_worker
from tests.support.processes import ManagedProcess
from tests.support.services import RedisServer

from classifleet.producer import Fleet, UnknownJob

HERE: Final = Path(__file__).parent
RATE: Final = 80.0  # of each worker; at most 100 are asked for
TENTHS: Final = 10
CHUNK: Final = 32
WINDOW_IMAGES: Final = CHUNK * WINDOW_CHUNKS  # submitted and not done
LINEAR: Final = 0.05
SLOWER: Final = 0.1  # of a tenth: what a shared machine's moods may explain
GROWN_MIB: Final = 32.0


@dataclass(frozen=True, slots=True)
class Tenth:
    """What was seen when another tenth of the references was done."""

    images: int
    seconds: float
    worker_cpu: float
    producer_mib: float
    worker_mib: float
    redis_mib: float


def main() -> None:
    """Workers first, then references."""
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=15.0, help="of work for each number of workers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--references", type=int, default=1_000_000)
    options = parser.parse_args()
    outcome = Outcome("scale", "Scale")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        add_model(folder / "models")
        if options.workers:
            workers(outcome, folder, options.workers, options.seconds, options.rounds)
        if options.references:
            references(outcome, folder, options.references)
    outcome.write(options.json)


def workers(outcome: Outcome, folder: Path, counts: Sequence[int], seconds: float, rounds: int) -> None:
    """Images a second of so many workers, against as many times those of one."""
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            rates[count].append(with_workers(folder, count, int(seconds * RATE * count)))
    first = median(rates[counts[0]]) / counts[0]
    rows = []
    for count in counts:
        share = median(rates[count]) / (first * count)
        rows.append([count, f"{median(rates[count]):.1f}", f"{share:.3f}"])
        if count != counts[0]:
            met = abs(1 - share) <= LINEAR
            outcome.target(f"{count} workers", f"linear to within {LINEAR:.0%}", f"{share - 1:+.1%}", met=met)
    title = f"Worker processes that may do {RATE:g} images/s each"
    outcome.table(title, ["workers", "images/s", "of linear"], rows)


def with_workers(folder: Path, count: int, images: int) -> float:
    """Images a second of one job, from its first begin to its last commit."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        server = stack.enter_context(RedisServer.start(place / "redis"))
        url = f"{server.url}/0"
        command = (sys.executable, str(HERE / "_sleeping_worker.py"), str(RATE), "worker")
        settings = _settings(folder) | {"CHUNKS_IN_FLIGHT": "2"}  # or one would take all that is left for the others
        for number in range(count):
            stack.enter_context(start_worker(url, place / f"{number}.log", settings=settings, command=command))
        fleet = stack.enter_context(Fleet(url, chunk_size=8))
        job = fleet.submit_many((REF.format(n) for n in range(images)), models="null")
        progress = job.wait(timeout=600)
        if progress.ok != images:
            raise SystemExit(f"{images - progress.ok} of {images} images failed: {progress.by_code}")
        return progress.rate


def references(outcome: Outcome, folder: Path, count: int) -> None:
    """So many references through one worker, into a sink."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        server = stack.enter_context(RedisServer.start(place / "redis"))
        url, sink = f"{server.url}/0", f"file://{place}/sink"
        command = (sys.executable, str(HERE / "_null_worker.py"), "worker")
        settings = _settings(folder) | {"SINK_ALLOW": sink}
        worker = stack.enter_context(start_worker(url, place / "worker.log", settings=settings, command=command))
        fleet = stack.enter_context(Fleet(url))
        warm = [REF.format(n) for n in range(count // TENTHS)]
        fleet.submit_many(warm, models="null", sink=sink).wait(timeout=600)
        job_id = fleet.new_id()
        more = str(count + WINDOW_IMAGES)
        submit: list[str | Path] = [sys.executable, HERE / "_submit_references.py", url, job_id, more, sink]
        producer = stack.enter_context(ManagedProcess(submit, place / "producer.log"))
        pids = {"producer": producer.pid, "worker": worker.process.pid, "redis": server.process.pid}
        tenths = list(watch(fleet, job_id, count, pids, producer))
    report(outcome, tenths, count)


def watch(fleet: Fleet, job_id: str, count: int, pids: Mapping[str, int], producer: ManagedProcess) -> Iterator[Tenth]:
    """What is seen whenever a tenth is done."""
    began, cpu, before = time.perf_counter(), cpu_seconds(pids["worker"]), 0
    for number in range(1, TENTHS + 1):
        if producer.running():  # it ends with the last tenth
            memory = [resident_mib(pid) for pid in pids.values()]
        while (now_done := done(fleet, job_id)) < number * count // TENTHS:
            if not producer.running():
                raise SystemExit(f"the producer ended:\n{producer.tail()}")
            memory = [resident_mib(pid) for pid in pids.values()]
            time.sleep(0.05)
        now, cpu_now = time.perf_counter(), cpu_seconds(pids["worker"])
        yield Tenth(max(1, now_done - before), now - began, cpu_now - cpu, *memory)
        began, cpu, before = now, cpu_now, now_done


def done(fleet: Fleet, job_id: str) -> int:
    """Images that have their record; none while the job is not known yet."""
    try:
        return fleet.job(job_id).progress().done
    except UnknownJob:
        return 0


def report(outcome: Outcome, tenths: Sequence[Tenth], count: int) -> None:
    """A row for each tenth, and the verdicts."""
    rows = [
        [
            f"{number * count // TENTHS:,}",
            f"{tenth.images / tenth.seconds:,.0f}",
            f"{tenth.worker_cpu / tenth.images * 1e6:.0f}",
            f"{tenth.producer_mib:.0f}",
            f"{tenth.worker_mib:.0f}",
            f"{tenth.redis_mib:.0f}",
        ]
        for number, tenth in enumerate(tenths, 1)
    ]
    columns = ["references", "images/s", "worker CPU µs an image", "producer MiB", "worker MiB", "Redis MiB"]
    outcome.table(f"{count:,} references, a model that costs nothing, records into a sink", columns, rows)
    cpu = slope_share([tenth.worker_cpu / tenth.images for tenth in tenths])
    slower = f"at most {SLOWER:.0%} more CPU an image"
    outcome.target("last tenth against the first", slower, f"{cpu:+.1%}", met=cpu <= SLOWER)
    for name in ("producer", "worker"):
        grown = getattr(tenths[-1], f"{name}_mib") - getattr(tenths[0], f"{name}_mib")
        limit = f"at most {GROWN_MIB:g} MiB more at the end"
        outcome.target(f"memory of the {name}", limit, f"{grown:+.0f} MiB", met=grown <= GROWN_MIB)


def _settings(folder: Path) -> dict[str, str]:
    return {"MODEL_REPOSITORY": str(folder / "models"), "LOG_LEVEL": "warning"}


if __name__ == "__main__":
    main()
