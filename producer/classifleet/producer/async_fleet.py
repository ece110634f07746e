"""`AsyncFleet`: the surface of `Fleet` on an event loop, sharing its logic."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, Unpack

from classifleet.config import Keys, Settings
from classifleet.config.claims import Claims
from classifleet.ledger import Ledger, QueueDepth
from classifleet.producer import _dead_letters
from classifleet.producer._async_engine import AsyncEngine
from classifleet.producer._dead_letters import Requeued
from classifleet.producer._flows import Cursor, Flows, JobInfo, Progress
from classifleet.producer._letters import DeadLetter, make_wanted
from classifleet.producer._request import (
    Chunker,
    Ref,
    Request,
    RequestOptions,
    SubmitItem,
    make_chunk,
    make_request,
    new_id,
)
from classifleet.producer.result import Result


class AsyncFleet:
    """A connection to a fleet for asyncio. Arguments, results and errors are those of `Fleet`.

    One object may serve several event loops. Cancelling an await never cancels a job.
    """

    def __init__(self, url: str | None = None, **settings: Any) -> None:
        self.settings = Settings.load(broker_url=url, **settings)
        keys = Keys(self.settings.namespace)
        client_id = secrets.token_hex(8)
        self._flows = Flows(Ledger(keys), self.settings, client_id, Claims(self.settings))
        self.settings.ledger_url()
        self._engine = AsyncEngine(self.settings, keys.reply(client_id))

    async def submit(
        self,
        ref: Ref,
        *,
        models: str | Sequence[str],
        id: str | None = None,  # noqa: A002 - the field's name everywhere
        meta: Mapping[str, str] | None = None,
        wait_seconds: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> AsyncHandle:
        """Enqueue one image; see `Fleet.submit`."""
        request = make_request(self.settings, job=id, models=models, lane="interactive", options=options)
        chunk = await self._engine.in_thread(make_chunk, request, 0, [(0, (request.job, ref, meta))], self.settings)
        await self._engine.drive(self._flows.submit(request, chunk, wait_seconds))
        return self.handle(request.job)

    async def submit_many(
        self,
        items: Iterable[SubmitItem] | AsyncIterable[SubmitItem],
        *,
        models: str | Sequence[str],
        job_id: str | None = None,
        sink: str | None = None,
        chunk_size: int | None = None,
        wait_seconds: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncJob:
        """Enqueue any number of images from an iterable or an async iterable; see `Fleet.submit_many`."""
        request = make_request(self.settings, job=job_id, models=models, lane="bulk", options=options, sink=sink)
        chunker = Chunker(request, self.settings, chunk_size)
        async for item in _aiter(items):
            if (group := chunker.add(item)) and not await self._submit_group(request, chunker, group, wait_seconds):
                return self.job(request.job)
        if (group := chunker.rest()) and not await self._submit_group(request, chunker, group, wait_seconds):
            return self.job(request.job)
        await self._engine.drive(self._flows.seal(request, chunker.chunks, wait_seconds))
        return self.job(request.job)

    async def _submit_group(
        self, request: Request, chunker: Chunker, group: Sequence[SubmitItem], wait_seconds: float | None
    ) -> bool:
        chunks = await self._engine.in_thread(chunker.make, group)
        return await self._engine.drive(self._flows.submit_chunks(request, chunks, wait_seconds))

    def handle(self, id: str) -> AsyncHandle:  # noqa: A002 - the field's name everywhere
        """Reattach to a submitted image; see `Fleet.handle`."""
        return AsyncHandle(self, id)

    def job(self, job_id: str) -> AsyncJob:
        """Reattach to a job; see `Fleet.job`."""
        return AsyncJob(self, job_id)

    async def jobs(self, count: int = 100) -> list[JobInfo]:
        """The newest jobs."""
        return await self._engine.drive(self._flows.jobs(count))

    async def queues(self) -> dict[str, QueueDepth]:
        """Every queue's depth, in chunks and images."""
        return await self._engine.drive(self._flows.depths())

    async def dead_letters(
        self,
        *,
        job: str | None = None,
        code: str | None = None,
        model: str | None = None,
        since: timedelta | datetime | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """Images that failed for a reason of ours, newest first; see `Fleet.dead_letters`."""
        wanted = make_wanted(job=job, code=code, model=model, since=since)
        return await self._engine.drive(_dead_letters.find(self._flows.ledger, wanted, limit))

    async def requeue(self, letters: Iterable[DeadLetter], *, wait_seconds: float | None = 0.0) -> Requeued:
        """Try images again: those of one job as one new job, with the same request; see `Fleet.requeue`."""
        return await self._engine.drive(_dead_letters.requeue(self._flows, letters, wait_seconds))

    async def discard(self, letters: Iterable[DeadLetter]) -> int:
        """Drop letters and the images that were kept for them; how many were still there."""
        return await self._engine.drive(_dead_letters.discard(self._flows, letters))

    @staticmethod
    def new_id() -> str:
        """A new id; see `Fleet.new_id`."""
        return new_id()

    async def close(self) -> None:
        """Close the running loop's sockets. Jobs go on."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncHandle:
    """One submitted image; see `Handle`."""

    __slots__ = ("_fleet", "id")

    def __init__(self, fleet: AsyncFleet, id: str) -> None:  # noqa: A002 - the field's name everywhere
        self._fleet = fleet
        self.id = id

    async def done(self) -> bool:
        """Whether the record is there."""
        return await self._fleet._engine.drive(self._fleet._flows.done(self.id))

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the record; see `Handle.result`."""
        async with self._fleet._engine.watch(self.id) as watch:
            return await self._fleet._engine.drive(self._fleet._flows.result(self.id, watch, timeout))

    async def cancel(self) -> bool:
        """Cancel; false if it was done."""
        return await self._fleet._engine.drive(self._fleet._flows.cancel(self.id))

    def __repr__(self) -> str:
        return f"AsyncHandle({self.id!r})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A pickled handle is its id."""
        return (str, (self.id,))


class AsyncJob:
    """Any number of submitted images; see `Job`."""

    __slots__ = ("_fleet", "id")

    def __init__(self, fleet: AsyncFleet, id: str) -> None:  # noqa: A002 - the field's name everywhere
        self._fleet = fleet
        self.id = id

    async def progress(self) -> Progress:
        """How far it is."""
        return await self._fleet._engine.drive(self._fleet._flows.progress(self.id))

    async def info(self) -> JobInfo:
        """What was asked for, and how far it is."""
        return await self._fleet._engine.drive(self._fleet._flows.info(self.id))

    async def wait(self, timeout: float | None = None) -> Progress:
        """Wait until every image has its record; see `Job.wait`."""
        async with self._fleet._engine.watch(self.id) as watch:
            await self._fleet._engine.drive(self._fleet._flows.wait(self.id, watch, timeout))
        return await self.progress()

    async def results(self, *, follow: bool = True) -> AsyncIterator[Result]:
        """Every record, in the order of finishing; see `Job.results`."""
        cursor = Cursor()
        while not cursor.ended:
            if follow:
                async with self._fleet._engine.watch(self.id) as watch:
                    page = await self._fleet._engine.drive(self._fleet._flows.page(self.id, cursor, watch))
            else:
                page = await self._fleet._engine.drive(self._fleet._flows.page(self.id, cursor, None))
            for result in page:
                yield result

    async def cancel(self) -> bool:
        """Cancel what is not at work yet; see `Job.cancel`."""
        return await self._fleet._engine.drive(self._fleet._flows.cancel(self.id))

    async def delete(self) -> bool:
        """Delete the records and the job; see `Job.delete`."""
        return await self._fleet._engine.drive(self._fleet._flows.delete(self.id))

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A pickled job is its id."""
        return (str, (self.id,))


async def _aiter(items: Iterable[SubmitItem] | AsyncIterable[SubmitItem]) -> AsyncIterator[SubmitItem]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
