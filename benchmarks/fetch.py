"""How fast images arrive: from an S3 server, from a web server, and while 2 % of the references drip.

    .venv/bin/python benchmarks/fetch.py [s3] [http] [drip] [--images 1000] [--rounds 3]

Servers run in processes of their own on the loopback, so that the CPU seconds are this process's alone. Whatever is
compared is measured in turns in one run, and the median counts. Images are 100 kB of noise; 32 are read at a time.

s3     obstore against boto3, both through `Fetcher`, and bare boto3 in a thread pool
http   `Fetcher` against a bare aiohttp session that checks nothing
drip   images/s in a steady state with 2 % of the references at hosts that drip until the deadline, against none
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from classifleet.config import ImageError, Settings, parse_reference
from classifleet.config.storage import s3_client
from classifleet.worker.ingest import Fetcher

IMAGE_BYTES: Final = 100_000
OBJECTS: Final = 64
CONCURRENCY: Final = 32
LATENCY_SECONDS: Final = 0.3  # of the web server in `drip`: slots are what bounds the rate, and not this CPU
DRIP_SHARE: Final = 50  # every fiftieth reference: 2 %
DRIP_DEADLINE_SECONDS: Final = 15.0

Read = Callable[[int], Awaitable[int]]


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["s3", "http", "drip", []])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for part in arguments.parts or ["s3", "http", "drip"]:
        {"s3": bench_s3, "http": bench_http, "drip": bench_drip}[part](arguments.images, arguments.rounds)


def bench_s3(images: int, rounds: int) -> None:
    """GETs per second of CPU from a real S3 server."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.support.services import ACCESS_KEY, SECRET_KEY, S3Server

    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, S3Server.start(Path(folder)) as server:
        settings = Settings.load(**server.settings_kwargs)
        client = s3_client(settings)
        client.create_bucket(Bucket="bench")
        for number in range(OBJECTS):
            client.put_object(Bucket="bench", Key=f"{number}.jpg", Body=random.Random(number).randbytes(IMAGE_BYTES))

        async def scenario() -> None:
            async with (
                fetching(**server.settings_kwargs) as fast,
                fetching(**server.settings_kwargs, s3_client="boto3") as boto,
            ):
                loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(CONCURRENCY)

                def bare(number: int) -> int:
                    body: bytes = client.get_object(Bucket="bench", Key=f"{number % OBJECTS}.jpg")["Body"].read()
                    return len(body)

                await compare(
                    "s3",
                    {
                        "boto3 get_object, bare": lambda number: loop.run_in_executor(pool, bare, number),
                        "Fetcher, boto3": lambda number: fetch(boto, f"s3://bench/{number % OBJECTS}.jpg"),
                        "Fetcher, obstore": lambda number: fetch(fast, f"s3://bench/{number % OBJECTS}.jpg"),
                    },
                    images,
                    rounds,
                )

        asyncio.run(scenario())
        client.close()


def bench_http(images: int, rounds: int) -> None:
    """GETs per second of CPU from a web server; what the guards cost."""
    with web_server() as port:

        async def scenario() -> None:
            async with (
                fetching(http_allow=[f"127.0.0.1:{port}"]) as fetcher,
                aiohttp.ClientSession() as session,
            ):

                async def bare(_: int) -> int:
                    async with session.get(f"http://127.0.0.1:{port}/image") as response:
                        return len(await response.read())

                ways: dict[str, Read] = {
                    "aiohttp, bare": bare,
                    "Fetcher": lambda _: fetch(fetcher, f"http://127.0.0.1:{port}/image"),
                }
                await compare("http", ways, images, rounds)

        asyncio.run(scenario())


async def compare(title: str, ways: dict[str, Read], images: int, rounds: int) -> None:
    """Measure the ways in turns; print each one's median and its ratio to the first."""
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, read in ways.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            await read_many(read, images if number else CONCURRENCY)
            if number:  # the first round warms up
                cpu[name].append((time.process_time() - start_cpu) / images)
                wall[name].append((time.perf_counter() - start) / images)
    base = statistics.median(next(iter(cpu.values())))
    for name in ways:
        seconds = statistics.median(cpu[name])
        print(
            f"{title:5} {name:24} {seconds * 1e3:6.2f} ms CPU/GET {1 / seconds:7,.0f} GET/s per core "
            f"{1 / statistics.median(wall[name]):7,.0f} GET/s  x{base / seconds:.2f}"
        )


async def read_many(read: Read, images: int) -> None:
    """Read so many images, `CONCURRENCY` at one time."""
    numbers = iter(range(images))

    async def reader() -> None:
        for number in numbers:
            if await read(number) != IMAGE_BYTES:
                raise RuntimeError("an image is not whole")

    await asyncio.gather(*(reader() for _ in range(CONCURRENCY)))


def bench_drip(_: int, rounds: int) -> None:
    """Images per second in a steady state, without and with drips; the worker's default limits."""
    seconds = 2 * DRIP_DEADLINE_SECONDS  # in the second half, as many drips end as begin
    ways: dict[str, dict[str, Any]] = {
        "no drips": {"drips": False},
        "2 % drips": {"drips": True},
        "2 % drips, no slow slots": {"drips": True, "fetch_slow_concurrency": 0},
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with web_server() as port:
        for _ in range(rounds):
            for name, options in ways.items():
                rates[name].append(asyncio.run(steady_rate(port, seconds, **options)))
    base = statistics.median(rates["no drips"])
    for name, values in rates.items():
        print(f"drip  {name:24} {statistics.median(values):7,.0f} images/s  x{statistics.median(values) / base:.2f}")


async def steady_rate(port: int, seconds: float, *, drips: bool, **settings: Any) -> float:
    """Good images per second in the last half of so many seconds, with a new reference for each one that is done."""
    in_flight = 1024  # 32 chunks of 32 images
    async with fetching(
        http_allow=[f"*.example:{port}"],
        getaddrinfo=everything_here,
        fetch_timeout_seconds=DRIP_DEADLINE_SECONDS,
        **settings,
    ) as fetcher:
        end = time.perf_counter() + seconds
        arrived: list[float] = []
        numbers = iter(range(1_000_000_000))

        async def reader() -> None:
            while time.perf_counter() < end:
                number = next(numbers)
                path = "drip" if drips and number % DRIP_SHARE == 0 else "slow"
                host = f"{path}{number % 9973}.example"  # strangers: no circuit opens
                with contextlib.suppress(ImageError):
                    await fetch(fetcher, f"http://{host}:{port}/{path}")
                    arrived.append(time.perf_counter())

        tasks = [asyncio.create_task(reader()) for _ in range(in_flight)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        half = end - seconds / 2
        return sum(half <= moment < end for moment in arrived) / (seconds / 2)


async def fetch(fetcher: Fetcher, text: str) -> int:
    """Fetch one image; its size."""
    return len(await fetcher.fetch(parse_reference(text), job="bench", chunk="0"))


@contextlib.asynccontextmanager
async def fetching(getaddrinfo: Any = None, **settings: Any) -> AsyncIterator[Fetcher]:
    """A started fetcher."""
    lookup = {"getaddrinfo": getaddrinfo} if getaddrinfo else {}
    fetcher = Fetcher(Settings.load(**settings), read_blob=lambda *_: None, **lookup)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def everything_here(host: str, port: int, **_: Any) -> list[Any]:
    """A `getaddrinfo` that knows one address."""
    import socket

    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """A web server in a process of its own; yields its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    image = random.Random(0).randbytes(IMAGE_BYTES)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/drip":
            response = web.StreamResponse(headers={"Content-Length": str(IMAGE_BYTES)})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b".")
                    await asyncio.sleep(0.5)
        if request.path == "/slow":
            await asyncio.sleep(LATENCY_SECONDS)
        return web.Response(body=image)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(web.Server(handler, access_log=None), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
