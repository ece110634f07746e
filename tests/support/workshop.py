"""A `ChunkRunner` on the real ledger, with a pipeline that does what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from classifleet.config import ErrorCode, ImageError, Item, Payload, Record, Settings
from classifleet.config.claims import Claims
from classifleet.ledger import Lease, Offer, Replicas
from classifleet.worker.chunks import ChunkRunner
from classifleet.worker.commits import Committer
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.lending import Loads
from classifleet.worker.outages import Outages, WatchedRunner
from classifleet.worker.records import failed_records
from classifleet.worker.sink import Sinks
from tests.fixtures_ledger import QUEUE, Bench, head

OWNER = "w1"
Mark = Callable[[str], Awaitable[None]]


class ScriptedPipeline:
    """Takes so many seconds for each image; its records are errors, which are records like all others."""

    def __init__(self) -> None:
        self.image_seconds = 0.0
        self.begun = 0
        self.images = 0

    def wait_idle(self) -> None:
        """It has no device."""

    async def classify(
        self, payload: Payload, lease: Lease, lane: str, mark: Mark | None = None, trace: object = None
    ) -> list[Record]:
        self.begun += 1
        for item in payload.items:
            if mark is not None:
                await mark(item.id)
            self.images += 1
            await asyncio.sleep(self.image_seconds)
        return failed_records(payload, ImageError(ErrorCode.NOT_FOUND), attempt=lease.attempt, worker=OWNER)


class ScriptedLender:
    """Has every model; those that are `left` are others'."""

    def __init__(self) -> None:
        self.left: set[str] = set()

    def offers(self) -> Mapping[str, Offer]:
        return {}

    def left_to_others(self, models: Collection[str], queue: str) -> bool:
        return bool(self.left.intersection(models))

    def lent(self, models: Collection[str]) -> AbstractContextManager[Loads]:
        return nullcontext(())

    async def bring(self, payload: Payload, lease: Lease, lane: str, loads: Loads) -> tuple[Lease, list[Record]]:
        return lease, []


class Workshop:
    """A chunk runner and what it works on."""

    def __init__(self, bench: Bench, loop: asyncio.AbstractEventLoop) -> None:
        self.bench = bench
        self.loop = loop
        self.pipeline = ScriptedPipeline()
        self.lender = ScriptedLender()
        self.interrupt = threading.Event()
        self.outages = Outages()
        self.pool = ThreadPoolExecutor(4)
        self.chunks: ChunkRunner
        self.runner: WatchedRunner

    def build(self, settings: Settings) -> ChunkRunner:
        bench, sinks = self.bench, Sinks(settings)
        self.runner = WatchedRunner(bench.redis, bench.url, Replicas.of(settings), self.outages)
        shared: dict[str, Any] = {"ledger": bench.ledger, "runner": self.runner, "settings": settings}
        committer = Committer(
            **shared, sinks=sinks, outages=self.outages, claims=Claims(settings), interrupt=self.interrupt
        )
        self.chunks = ChunkRunner(
            **shared,
            owner=OWNER,
            leases=LeaseKeeper(bench.ledger, self.runner, OWNER, settings.lease_seconds),
            lender=self.lender,
            pipeline=self.pipeline,  # type: ignore[arg-type]
            loop=self.loop,
            sinks=sinks,
            committer=committer,
            interrupt=self.interrupt,
        )
        return self.chunks

    def put(self, chunk: str, *, images: int = 2, deaths: int = 0, sink: str | None = None, **changes: Any) -> None:
        items = [Item(id=f"i{n}", ref="data:,x") for n in range(images)]
        payload = Payload(job="j", chunk=chunk, items=items, models=["m"], sink=sink)
        header = head(models='["m"]', options="{}", **({"sink": sink} if sink else {}))
        self.bench.put("j", chunk, images=images, payload=payload.encode(), header=header, **changes)
        if deaths:
            self.bench.redis.hset(self.bench.keys.chunk("j", chunk), "deaths", deaths)

    def mark(self, chunk: str) -> str | None:
        """The image that is blamed if the worker dies now."""
        return self.bench.run(self.bench.ledger.chunk("j", chunk)).get("mark")

    def run(self, chunk: str) -> None:
        self.chunks.run({"v": 1, "job": "j", "chunk": chunk}, QUEUE)

    def start(self, chunk: str) -> Future[None]:
        return self.pool.submit(self.run, chunk)


@contextmanager
def open_workshop(bench: Bench) -> Iterator[Workshop]:
    """A workshop while the block runs; `build` makes its runner."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    workshop = Workshop(bench, loop)
    try:
        yield workshop
    finally:
        workshop.pool.shutdown(cancel_futures=True)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
