"""What one image costs the fleet itself, with a fetch, a decode and a model that cost nothing.

    .venv/bin/python benchmarks/cost.py [--images 20000] [--json FILE]

For each chunk size: CPU of the worker process per image (user and system, from /proc), and commands that clients send
to Redis per image, worker and producer together (seen by MONITOR in a run of its own; what runs inside Lua is not
sent by anyone). Then what an image and a job take in Redis. Records have ten classes, top 5.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis

from classifleet.producer import Fleet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._null_worker import add_model
from benchmarks._outcome import Outcome, arguments
from benchmarks._processes import cpu_seconds
from tests.support.fleet import Worker, start_worker
from tests.support.services import RedisServer

SIZES: Final = (1, 8, 32, 64)
MONITORED_IMAGES: Final = 2048
RECORDS: Final = 16_000
SINGLES: Final = 2000
JOBS: Final = 200
QUEUED: Final = 32_000
REF: Final = "https://images.example.com/uploads/2026/11/{:08d}.jpg"
WORKER: Final = (sys.executable, str(Path(__file__).with_name("_null_worker.py")), "worker")
MOST_MICROS: Final = {1: 2000.0, 32: 150.0}  # by images a chunk
MOST_COMMANDS: Final = {32: 0.5}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of an image, at one chunk size: CPU of the worker, commands to Redis; and images a second."""

    micros: float
    commands: float
    rate: float


def main() -> None:
    """Each chunk size, then the sizes in Redis."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    outcome = Outcome("cost", "Cost")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        add_model(folder / "models")
        server = stack.enter_context(RedisServer.start(folder / "redis"))
        url = f"{server.url}/0"
        sink = f"file://{folder}/sink"
        settings = {"MODEL_REPOSITORY": str(folder / "models"), "LOG_LEVEL": "warning", "SINK_ALLOW": sink}
        worker = stack.enter_context(start_worker(url, folder / "worker.log", settings=settings, command=WORKER))
        submit(url, 32, 2048)
        conclude(outcome, {size: cost(server, url, worker, size, options.images) for size in SIZES})
        sizes = finished_sizes(server, url, sink)
    sizes = queued_sizes() | sizes
    rows = [[what, f"{found:,.0f}" if found > 10 else f"{found:.1f}"] for what, found in sizes.items()]
    outcome.table("In Redis, references of 61 characters, ids as they come by default", ["", "bytes"], rows)
    outcome.write(options.json)


def cost(server: RedisServer, url: str, worker: Worker, size: int, images: int) -> Cost:
    """In chunks of so many images."""
    count = max(size, images if size > 1 else images // 10)
    before = cpu_seconds(worker.process.pid)
    rate = submit(url, size, count)
    micros = (cpu_seconds(worker.process.pid) - before) / count * 1e6
    return Cost(micros, sent(server, url, size), rate)


def conclude(outcome: Outcome, costs: Mapping[int, Cost]) -> None:
    """A row for each chunk size, and the verdicts."""
    rows = [[size, f"{cost.micros:.0f}", f"{cost.commands:.2f}", f"{cost.rate:,.0f}"] for size, cost in costs.items()]
    columns = ["images a chunk", "worker CPU µs an image", "commands an image", "images/s"]
    outcome.table("An image that costs nothing to fetch, decode and classify", columns, rows)
    for size, most in MOST_MICROS.items():
        found = costs[size].micros
        outcome.target(f"worker CPU, {size} a chunk", f"at most {most:,.0f} µs", f"{found:.0f} µs", met=found <= most)
    for size, most in MOST_COMMANDS.items():
        found = costs[size].commands
        outcome.target(f"commands an image, {size} a chunk", f"at most {most}", f"{found:.2f}", met=found <= most)


def submit(url: str, size: int, count: int, *, sink: str | None = None) -> float:
    """Run a job of so many images; images per second from its first begin to its last commit."""
    with Fleet(url, chunk_size=size) as fleet:
        job = fleet.submit_many((REF.format(n) for n in range(count)), models="null", sink=sink)
        progress = job.wait(timeout=600)
        if progress.ok != count:
            raise SystemExit(f"{count - progress.ok} of {count} images failed: {progress.by_code}")
        return progress.rate


def sent(server: RedisServer, url: str, size: int) -> float:
    """Commands that clients sent, an image."""
    count = max(size, MONITORED_IMAGES if size > 1 else MONITORED_IMAGES // 8)
    with monitor(server) as seen:
        submit(url, size, count)
    return seen.total() / count


@contextmanager
def monitor(server: RedisServer) -> Iterator[Counter[str]]:
    """Count commands by name while it is open."""
    seen: Counter[str] = Counter()
    opened, ended = threading.Event(), "classifleet-cost-ended"

    def listen() -> None:
        with server.client() as client, client.monitor() as commands:
            opened.set()
            for command in commands.listen():
                if ended in command["command"]:
                    return
                if command["client_type"] != "lua":
                    seen[command["command"].split()[0].upper()] += 1

    thread = threading.Thread(target=listen)
    thread.start()
    opened.wait()
    yield seen
    with server.client() as client:
        client.echo(ended)
    thread.join()


def finished_sizes(server: RedisServer, url: str, sink: str) -> dict[str, float]:
    """What stays in Redis of images, and of jobs, that are done."""

    def kept(each: Callable[[], object], count: int) -> float:
        client.flushdb()
        each()
        return used(client) / count

    def jobs() -> None:
        with Fleet(url) as fleet:
            for job in [fleet.submit_many([REF.format(n)], models="null", sink=sink) for n in range(JOBS)]:
                job.wait(timeout=600)

    with server.client() as client:
        return {
            "an image that is done, its record in Redis": kept(lambda: submit(url, 32, RECORDS), RECORDS),
            "an image that is done, its record in a sink": kept(lambda: submit(url, 32, RECORDS, sink=sink), RECORDS),
            "a job that is done, its records in a sink": kept(jobs, JOBS),
        }


def queued_sizes() -> dict[str, float]:
    """What waiting images take in Redis, with their messages in the broker."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer.start(Path(folder), "--appendonly", "no") as server,
        server.client() as client,
        Fleet(f"{server.url}/0", ephemeral=True) as fleet,
    ):
        fleet.submit_many((REF.format(n) for n in range(QUEUED)), models="null")
        bulk = used(client) / QUEUED
        client.flushdb()
        for n in range(SINGLES):
            fleet.submit(REF.format(n), models="null")
        return {"an image that waits, in chunks of 32": bulk, "an image that waits, as a job": used(client) / SINGLES}


def used(client: redis.Redis) -> int:
    """Bytes that all keys take, with what they hold."""
    return sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter(count=1000))


if __name__ == "__main__":
    main()
