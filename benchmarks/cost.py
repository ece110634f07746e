"""What one image costs the fleet itself, with a fetch, a decode and a model that cost nothing.

    .venv/bin/python benchmarks/cost.py [--images 20000]

For each chunk size: CPU of the worker process per image (user and system, from /proc), and commands that clients send
to Redis per image, worker and producer together (seen by MONITOR in a run of its own; what runs inside Lua is not
sent by anyone). Then what an image takes in Redis: queued, and with its record. Records have ten classes, top 5.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from classifleet.producer import Fleet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks._null_worker import add_model
from tests.support.fleet import Worker, start_worker
from tests.support.services import RedisServer

SIZES = (1, 8, 32, 64)
MONITORED_IMAGES = 2048
REF = "https://images.example.com/uploads/2026/11/{:08d}.jpg"
TICKS = os.sysconf("SC_CLK_TCK")
WORKER = (sys.executable, str(Path(__file__).with_name("_null_worker.py")), "worker")


def main() -> None:
    """Print a line for each chunk size, and the sizes in Redis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    images = parser.parse_args().images
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        add_model(folder / "models")
        server = stack.enter_context(RedisServer.start(folder / "redis"))
        url = f"{server.url}/0"
        sink = f"file://{folder}/sink"
        settings = {"MODEL_REPOSITORY": str(folder / "models"), "LOG_LEVEL": "warning", "SINK_ALLOW": sink}
        worker = stack.enter_context(start_worker(url, folder / "worker.log", settings=settings, command=WORKER))
        submit(url, 32, 2048)
        print(f"{'images a chunk':>14} {'worker CPU/image':>18} {'commands/image':>16} {'images/s':>10}")
        for size in SIZES:
            count = max(size, images if size > 1 else images // 10)
            before = cpu_seconds(worker)
            rate = submit(url, size, count)
            micros = (cpu_seconds(worker) - before) / count * 1e6
            commands = sent(server, url, size)
            print(f"{size:>14} {micros:>15.0f} µs {commands:>16.2f} {rate:>10,.0f}")
        print("\nIn Redis, references of 61 characters, ids as they come by default:")
        finished_sizes(server, url, sink)
    queued_sizes()


def submit(url: str, size: int, count: int, *, sink: str | None = None) -> float:
    """Run a job of so many images; images per second from its first begin to its last commit."""
    with Fleet(url, chunk_size=size) as fleet:
        job = fleet.submit_many((REF.format(n) for n in range(count)), models="null", sink=sink)
        progress = job.wait(timeout=600)
        if progress.ok != count:
            raise SystemExit(f"{count - progress.ok} of {count} images failed: {progress.by_code}")
        return progress.rate


def cpu_seconds(worker: Worker) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


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


def finished_sizes(server: RedisServer, url: str, sink: str) -> None:
    """Print what stays in Redis of an image that is done."""
    count = 16_000
    with server.client() as client:
        client.flushdb()
        submit(url, 32, count)
        kept = used(client) / count
        client.flushdb()
        submit(url, 32, count, sink=sink)
        in_sink = used(client) / count
    print(f"done, records in Redis: {kept:.0f} bytes an image; records in a sink: {in_sink:.1f} bytes an image")


def queued_sizes() -> None:
    """Print what a queued image takes in Redis, with its message in the broker."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer.start(Path(folder), "--appendonly", "no") as server,
        server.client() as client,
        Fleet(f"{server.url}/0", ephemeral=True) as fleet,
    ):
        count = 32_000
        fleet.submit_many((REF.format(n) for n in range(count)), models="null")
        bulk = used(client) / count
        client.flushdb()
        count = 2000
        for n in range(count):
            fleet.submit(REF.format(n), models="null")
        single = used(client) / count
    print(f"queued: {bulk:.0f} bytes an image in chunks of 32; {single:.0f} bytes as a job of its own")


def used(client: redis.Redis) -> int:
    """Bytes that all keys take, with what they hold."""
    return sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter(count=1000))


if __name__ == "__main__":
    main()
