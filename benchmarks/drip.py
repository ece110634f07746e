"""What slow strangers cost the whole fleet: a real worker, a web server, and 2 % of the references that drip.

    .venv/bin/python benchmarks/drip.py [--seconds 30] [--rounds 1] [--set NAME=VALUE …]

A job of photos over http (loopback) runs until its drips end as fast as they begin; then its good images are counted
for a while. A second worker does the same without drips, at the same time, so that whatever else the machine does
meets both. The model costs next to nothing: places and slots are what drips could use up, and not this CPU.

A drip is at a host of its own, as strangers are, and sends a byte each half second until the worker's
`fetch_timeout_seconds` (here its default) has passed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from aiohttp import web

from classifleet.config import Settings
from classifleet.producer import Fleet, Job
from classifleet.producer.embedded import embedded_fleet

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.fleet import make_photos
from tests.support.tiny import MODEL, add_tiny

DRIP_SHARE: Final = 50  # every fiftieth reference: 2 %
IMAGES: Final = 40_000  # more than a run gets through
GOOD_HOSTS: Final = 8
DRIP_HOSTS: Final = 200
DRIP_PAUSE_SECONDS: Final = 0.5
SETTLE_FACTOR: Final = 1.4  # of the fetch timeout: from then on as many drips end as begin


def main() -> None:
    """Measure with and without drips; print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the worker")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        photos = make_photos(folder)
        port = stack.enter_context(web_server(photos))
        repository = add_tiny(folder / "models")
        settings = {"MODEL_REPOSITORY": str(repository), "HTTP_ALLOW": f"127.0.0.0/8:{port}"}
        settings |= dict(pair.split("=", 1) for pair in arguments.set)
        rates = [measure(settings, port, len(photos), arguments.seconds) for _ in range(arguments.rounds)]
    normal, dripping = (statistics.median(values) for values in zip(*rates, strict=True))
    print(
        f"fleet, no drips {normal:6.1f} images/s   2 % drips {dripping:6.1f} good images/s   "
        f"ratio {dripping / normal:.2f} (at least 0.80 is asked for)"
    )


def measure(settings: dict[str, str], port: int, photos: int, seconds: float) -> list[float]:
    """Good images per second without and with drips, of two workers at the same time."""
    with ExitStack() as stack:
        jobs = []
        for drips in (False, True):
            process = stack.enter_context(embedded_fleet(settings=settings))
            fleet = stack.enter_context(Fleet(process.url, redis_url=process.url))
            refs = (reference(n, port, photos, drips=drips) for n in range(IMAGES))
            jobs.append(fleet.submit_many(refs, models=MODEL))
        for job in jobs:
            await_first(job)
        time.sleep(SETTLE_FACTOR * Settings.load().fetch_timeout_seconds)
        before, start = [job.progress().ok for job in jobs], time.monotonic()
        time.sleep(seconds)
        after, end = [job.progress() for job in jobs], time.monotonic()
        rates = [(last.ok - first) / (end - start) for first, last in zip(before, after, strict=True)]
        print(
            f"no drips, drips: {rates[0]:.1f}, {rates[1]:.1f} /s; {[dict(last.by_code) for last in after]}", flush=True
        )
        return rates


def await_first(job: Job) -> None:
    """Wait until the first chunk is done."""
    while job.progress().done == 0:
        time.sleep(0.05)


def reference(number: int, port: int, photos: int, *, drips: bool) -> tuple[str, str]:
    """The reference with this number, and its id."""
    if drips and number % DRIP_SHARE == DRIP_SHARE // 2:
        return str(number), f"http://127.0.1.{1 + number // DRIP_SHARE % DRIP_HOSTS}:{port}/drip"
    return str(number), f"http://127.0.0.{1 + number % GOOD_HOSTS}:{port}/{number % photos}"


@contextlib.contextmanager
def web_server(photos: list[Path]) -> Iterator[int]:
    """A web server in a process of its own, at many addresses of the loopback; yields its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, [photo.read_bytes() for photo in photos]), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, photos: list[bytes]) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/drip":
            return web.Response(body=photos[int(request.path[1:])])
        response = web.StreamResponse(headers={"Content-Length": str(len(photos[0]))})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b".")
                await asyncio.sleep(DRIP_PAUSE_SECONDS)
        return response

    async def run() -> None:
        loop, server, port = asyncio.get_running_loop(), web.Server(handler, access_log=None), 0
        hosts = [f"127.0.0.{n + 1}" for n in range(GOOD_HOSTS)] + [f"127.0.1.{n + 1}" for n in range(DRIP_HOSTS)]
        for host in hosts:
            listener = await loop.create_server(server, host, port, backlog=1024)
            port = listener.sockets[0].getsockname()[1]
        pipe.send(port)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
