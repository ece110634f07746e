"""`Fleet`: enqueue images from any thread or process and read their results, from there or from elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, Unpack

from classifleet.config import Keys, Settings
from classifleet.config.claims import Claims
from classifleet.ledger import Ledger, QueueDepth
from classifleet.producer import _dead_letters
from classifleet.producer._dead_letters import Requeued
from classifleet.producer._engine import SyncEngine
from classifleet.producer._flows import Cursor, Flows, JobInfo, Progress
from classifleet.producer._letters import DeadLetter, make_wanted
from classifleet.producer._request import (
    Chunker,
    Ref,
    RequestOptions,
    SubmitItem,
    make_chunk,
    make_request,
    new_id,
)
from classifleet.producer.result import Result


class Fleet:
    """A connection to a fleet. Cheap to make, safe to share between threads and to keep across a fork.

    Nothing is connected before the first call. `with Fleet(url) as fleet:` closes the sockets at the end.

    Args:
        url: The broker, `redis://host:6379/0` for example. Default: `CLASSIFLEET_BROKER_URL`.
        settings: Any other setting by name, `connect_timeout_seconds=2` for example.

    Raises:
        SettingsError: A setting is unknown or wrong, or no broker is configured.
    """

    def __init__(self, url: str | None = None, **settings: Any) -> None:
        self.settings = Settings.load(broker_url=url, **settings)
        keys = Keys(self.settings.namespace)
        client_id = secrets.token_hex(8)
        self._flows = Flows(Ledger(keys), self.settings, client_id, Claims(self.settings))
        self.settings.ledger_url()
        self._engine = SyncEngine(self.settings, keys.reply(client_id))

    def submit(
        self,
        ref: Ref,
        *,
        models: str | Sequence[str],
        id: str | None = None,  # noqa: A002 - the field's name everywhere
        meta: Mapping[str, str] | None = None,
        wait_seconds: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> Handle:
        """Enqueue one image. Returns once the ledger has it: from then on it gets exactly one record.

        Args:
            ref: `https://…`, `s3://bucket/key`, `file://…`, `data:…`, the bytes themselves, or a `Path` to read here.
            models: One or more models, `name` or `name@version`.
            id: Names the job; the same call with the same id again is the same job. Default: a new id.
            meta: At most 16 short strings that come back with the result.
            wait_seconds: How long to wait for room when the queue or Redis is at its limit.
            **options: top_k, scores, threshold, deadline, lane: see `RequestOptions`.

        Raises:
            InvalidRequest: An argument is wrong; `IdConflict` if the id belongs to another request.
            QueueFull: There was no room within `wait_seconds`; nothing was taken. `retry_after_seconds` says when to
                try again.
            LedgerUnavailable, BrokerUnavailable: Within the connect timeout; repeat it with the same id.
            NotReplicated: Too few replicas have it (setting `durability`); repeat it with the same id.
            StorageError, StorageUnavailable: The claim store did not take a large image.
        """
        request = make_request(self.settings, job=id, models=models, lane="interactive", options=options)
        chunk = make_chunk(request, 0, [(0, (request.job, ref, meta))], self.settings)
        self._engine.drive(self._flows.submit(request, chunk, wait_seconds))
        return self.handle(request.job)

    def submit_many(
        self,
        items: Iterable[SubmitItem],
        *,
        models: str | Sequence[str],
        job_id: str | None = None,
        sink: str | None = None,
        chunk_size: int | None = None,
        wait_seconds: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Job:
        """Enqueue any number of images, lazily and in constant memory; returns when the last one is in the ledger.

        While the job has `submission_window` chunks queued, or the queue or Redis is at its limit, this waits. If it
        is interrupted, call it again with the same `job_id` and the same items: what is known already costs almost
        nothing and is not done twice. What is in memory at one time is 8 MB of items, or the images of one chunk.

        Args:
            items: References, `(id, reference)` or `(id, reference, meta)`; the default id is the position.
            models: One or more models, `name` or `name@version`.
            job_id: Names the job.
            sink: `s3://bucket/prefix` or `file:///folder` that the workers write to; default: records in Redis.
            chunk_size: Images per message. Default: `CLASSIFLEET_CHUNK_SIZE`.
            wait_seconds: How long to wait for room at a time. Default: without end.
            **options: top_k, scores, threshold, deadline, lane: see `RequestOptions`.

        Raises:
            QueueFull: For `wait_seconds` there was no room for the next chunk. The job stays open and can be resumed.
            InvalidRequest, LedgerUnavailable, BrokerUnavailable, StorageError, StorageUnavailable: See `submit`. Also
                then it can be resumed; so it can when Redis lost images meanwhile (LedgerUnavailable).
            JobAbandoned: An earlier call was cut off so long ago (`open_job_ttl_seconds`) that the job was ended.
        """
        request = make_request(self.settings, job=job_id, models=models, lane="bulk", options=options, sink=sink)
        chunker = Chunker(request, self.settings, chunk_size)
        for group in chunker.groups(items):
            if not self._engine.drive(self._flows.submit_chunks(request, group, wait_seconds)):
                return self.job(request.job)
        self._engine.drive(self._flows.seal(request, chunker.chunks, wait_seconds))
        return self.job(request.job)

    def handle(self, id: str) -> Handle:  # noqa: A002 - the field's name everywhere
        """Reattach to a submitted image, from any process. Unknown ids raise `UnknownJob` at the first use."""
        return Handle(self, id)

    def job(self, job_id: str) -> Job:
        """Reattach to a job, from any process. Unknown ids raise `UnknownJob` at the first use."""
        return Job(self, job_id)

    def jobs(self, count: int = 100) -> list[JobInfo]:
        """The newest jobs."""
        return self._engine.drive(self._flows.jobs(count))

    def queues(self) -> dict[str, QueueDepth]:
        """Every queue's depth, in chunks and images."""
        return self._engine.drive(self._flows.depths())

    def dead_letters(
        self,
        *,
        job: str | None = None,
        code: str | None = None,
        model: str | None = None,
        since: timedelta | datetime | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """Images that failed for a reason of ours, newest first; all arguments narrow the choice.

        Args:
            job: Of this job.
            code: With this error code.
            model: For this model, `name` or `name@version`.
            since: Not older than this, or than from this time on (aware).
            limit: So many at most.
        """
        wanted = make_wanted(job=job, code=code, model=model, since=since)
        return self._engine.drive(_dead_letters.find(self._flows.ledger, wanted, limit))

    def requeue(self, letters: Iterable[DeadLetter], *, wait_seconds: float | None = 0.0) -> Requeued:
        """Try images again: those of one job as one new job, with the same request.

        The new job's id follows from the letters, so that repeating the call is harmless. The letters stay, with a
        note of the job, and are not sent a second time.

        Args:
            letters: From `dead_letters`.
            wait_seconds: How long to wait for room at a time. None: without end.

        Raises:
            QueueFull: For `wait_seconds` there was no room. Some may be sent: repeat it, with the same letters.
            LedgerUnavailable, BrokerUnavailable: Repeat it.
        """
        return self._engine.drive(_dead_letters.requeue(self._flows, letters, wait_seconds))

    def discard(self, letters: Iterable[DeadLetter]) -> int:
        """Drop letters and the images that were kept for them; how many were still there."""
        return self._engine.drive(_dead_letters.discard(self._flows, letters))

    @staticmethod
    def new_id() -> str:
        """A new id, for callers that must know it before they submit (inside a transaction, say)."""
        return new_id()

    def close(self) -> None:
        """Close the sockets. Jobs go on."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Handle:
    """One submitted image. Pickles to its id."""

    __slots__ = ("_fleet", "id")

    def __init__(self, fleet: Fleet, id: str) -> None:  # noqa: A002 - the field's name everywhere
        self._fleet = fleet
        self.id = id

    def done(self) -> bool:
        """Whether the record is there."""
        return self._fleet._engine.drive(self._fleet._flows.done(self.id))

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the record, `timeout` seconds at most. An image's error is in the result and is not raised.

        Raises:
            ResultTimeout: Not yet; the work goes on.
            UnknownJob, ResultExpired: There is no such image, or its record was deleted.
        """
        with self._fleet._engine.watch(self.id) as watch:
            return self._fleet._engine.drive(self._fleet._flows.result(self.id, watch, timeout))

    def cancel(self) -> bool:
        """Cancel; false if it was done."""
        return self._fleet._engine.drive(self._fleet._flows.cancel(self.id))

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A pickled handle is its id; `fleet.handle(id)` makes it a handle again."""
        return (str, (self.id,))


class Job:
    """Any number of submitted images. Pickles to its id."""

    __slots__ = ("_fleet", "id")

    def __init__(self, fleet: Fleet, id: str) -> None:  # noqa: A002 - the field's name everywhere
        self._fleet = fleet
        self.id = id

    def progress(self) -> Progress:
        """How far it is."""
        return self._fleet._engine.drive(self._fleet._flows.progress(self.id))

    def info(self) -> JobInfo:
        """What was asked for, and how far it is."""
        return self._fleet._engine.drive(self._fleet._flows.info(self.id))

    def wait(self, timeout: float | None = None) -> Progress:
        """Wait until every image has its record, `timeout` seconds at most.

        Raises:
            ResultTimeout: Not yet; the work goes on.
        """
        with self._fleet._engine.watch(self.id) as watch:
            self._fleet._engine.drive(self._fleet._flows.wait(self.id, watch, timeout))
        return self.progress()

    def results(self, *, follow: bool = True) -> Iterator[Result]:
        """Every record, in the order of finishing, in constant memory.

        Args:
            follow: Wait for those that are still to come; else stop at the last one that is there.
        """
        cursor = Cursor()
        while not cursor.ended:
            if follow:
                with self._fleet._engine.watch(self.id) as watch:
                    page = self._fleet._engine.drive(self._fleet._flows.page(self.id, cursor, watch))
            else:
                page = self._fleet._engine.drive(self._fleet._flows.page(self.id, cursor, None))
            yield from page

    def cancel(self) -> bool:
        """Cancel what is not at work yet: those images get a record with `cancelled`. False if the job had ended."""
        return self._fleet._engine.drive(self._fleet._flows.cancel(self.id))

    def delete(self) -> bool:
        """Delete the records and the job from Redis (a sink keeps its objects); false if the job still runs."""
        return self._fleet._engine.drive(self._fleet._flows.delete(self.id))

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """A pickled job is its id; `fleet.job(id)` makes it a job again."""
        return (str, (self.id,))
