"""What a fleet's client does, written once as flows (see `_effects`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from classifleet.config import (
    IdConflict,
    Message,
    QueueFull,
    ResultExpired,
    ResultTimeout,
    Settings,
    UnknownJob,
    message,
)
from classifleet.config.storage import open_store
from classifleet.ledger import Call, Ledger, Part, Put, QueueDepth, read_depth
from classifleet.producer._effects import Ask, Blocking, Flow, Listen, Pause, Publish
from classifleet.producer._request import Blob, Chunk, Request
from classifleet.producer.result import Result

PAGE_CHUNKS: Final = 16
FIRST_LISTEN_SECONDS: Final = 0.1
LONGEST_LISTEN_SECONDS: Final = 1.0
WINDOW_PAUSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. Counts are images.

    Attributes:
        total: Images of the job; None until its producer has submitted the last one.
        accepted: Images in the ledger.
        done: Images with a record; the sum of ok, partial and failed.
        partial: Images that some but not all models answered.
        by_code: Failed images by error code.
        rate: Images per second since the first one was begun.
        eta_seconds: Seconds left at that rate; None when nothing is done, or the total is not known.
        state: `open`, `sealed`, `done` or `cancelled`.
        finished: Every record is written and, with a sink, its manifest too.
    """

    total: int | None
    accepted: int
    done: int
    ok: int
    partial: int
    failed: int
    by_code: dict[str, int]
    rate: float
    eta_seconds: float | None
    state: str
    finished: bool


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as `jobs list` shows it. Times are seconds since the epoch, by the ledger's clock."""

    id: str
    models: tuple[str, ...]
    queue: str
    sink: str | None
    created_at: float
    last_seen: float
    progress: Progress


@dataclass(slots=True)
class Cursor:
    """A reader's place in a job's results."""

    chunks_read: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows of one client process."""

    ledger: Ledger
    settings: Settings
    reply_to: str
    clock: Callable[[], float] = field(default=time.monotonic)

    # --- submitting -------------------------------------------------------------------------------------------

    def submit(self, request: Request, chunk: Chunk) -> Flow[None]:
        """A sealed job of one chunk: one round trip to the ledger, one to the broker."""
        if not (yield from self._park(chunk)):
            raise QueueFull("the images parked in Redis are at CLASSIFLEET_BLOB_MAX_TOTAL_BYTES; try again later")
        [outcome] = yield Ask([self._put(request, chunk, seal=True)])
        yield from self._publish(request, [(chunk, outcome)])

    def submit_chunks(self, request: Request, chunks: Sequence[Chunk]) -> Flow[bool]:
        """Add chunks to an open job, waiting while its window is full. False once the job is cancelled."""
        left, parked = list(chunks), 0  # the first `parked` of those left have their images in Redis
        while left:
            while parked < len(left) and (yield from self._park(left[parked])):
                parked += 1
            ready, rest = left[:parked], left[parked:]
            outcomes = (yield Ask([self._put(request, chunk) for chunk in ready])) if ready else []
            yield from self._publish(request, list(zip(ready, outcomes, strict=True)))
            if Put.CANCELLED in outcomes:
                return False
            waiting = [chunk for chunk, outcome in zip(ready, outcomes, strict=True) if outcome is Put.WINDOW]
            left, parked = waiting + rest, len(waiting)
            if left:
                yield Pause(WINDOW_PAUSE_SECONDS)
        return True

    def seal(self, request: Request) -> Flow[None]:
        """No more chunks will come. Opens the job if it had none."""
        [outcome] = yield Ask(
            [self.ledger.put(request.job, header=request.header(self.reply_to), request=request.digest(), seal=True)]
        )
        _refuse(request.job, outcome)

    def _put(self, request: Request, chunk: Chunk, *, seal: bool = False) -> Call[Put]:
        payload = chunk.payload
        first = payload.chunk == f"{0:08d}"
        return self.ledger.put(
            request.job,
            header=request.header(self.reply_to) if first else None,
            request=request.digest(),
            chunk=payload.chunk,
            images=len(payload.items),
            payload=payload.encode(),
            digest=payload.digest(),
            deadline_ms=request.deadline_ms(),
            window=self.settings.submission_window,
            seal=seal,
        )

    def _park(self, chunk: Chunk) -> Flow[bool]:
        if not chunk.blobs:
            return True
        stored = yield Ask([self._put_blob(chunk, blob) for blob in chunk.blobs])
        return all(stored)

    def _put_blob(self, chunk: Chunk, blob: Blob) -> Call[bool]:
        return self.ledger.put_blob(
            chunk.payload.job,
            chunk.payload.chunk,
            blob.sha256,
            blob.data,
            ttl_ms=self.settings.blob_ttl_seconds * 1000,
            cap=self.settings.blob_max_total_bytes,
        )

    def _publish(self, request: Request, outcomes: Sequence[tuple[Chunk, Put]]) -> Flow[None]:
        messages: list[tuple[str, Message]] = []
        for chunk, outcome in outcomes:
            _refuse(request.job, outcome)
            if outcome is Put.QUEUED:
                messages.append((request.queue, message(request.job, chunk.payload.chunk)))
        if messages:
            yield Publish(messages)

    # --- reading ----------------------------------------------------------------------------------------------

    def done(self, job: str) -> Flow[bool]:
        """Whether the job has ended."""
        fields = yield from self._job(job)
        return "finished_at" in fields

    def wait(self, job: str, watch: Any, timeout: float | None) -> Flow[dict[str, str]]:
        """Wait for the job's end; its fields."""
        ends = None if timeout is None else self.clock() + timeout
        pause = FIRST_LISTEN_SECONDS
        while True:
            fields = yield from self._job(job)
            if "finished_at" in fields:
                return fields
            left = pause if ends is None else min(pause, ends - self.clock())
            if left <= 0:
                raise ResultTimeout(
                    f"job {job} is not finished after {timeout} s ({fields['done']} of {fields['accepted']} images "
                    "are); it goes on, and can be waited for again"
                )
            yield Listen(watch, left)
            pause = min(LONGEST_LISTEN_SECONDS, pause * 2)

    def result(self, job: str, watch: Any, timeout: float | None) -> Flow[Result]:
        """The record of a job of one image."""
        yield from self.wait(job, watch, timeout)
        results = yield from self.page(job, Cursor(), watch=None)
        if not results:
            raise ResultExpired(f"the record of {job} has been deleted")
        return results[0]

    def page(self, job: str, cursor: Cursor, watch: Any) -> Flow[list[Result]]:
        """The next results in order of finishing. Waits for some if `watch` is given; empty at the end."""
        pause = FIRST_LISTEN_SECONDS
        while True:
            fields, chunks = yield Ask([self.ledger.job(job), self.ledger.log(job, cursor.chunks_read, PAGE_CHUNKS)])
            if not fields:
                yield from self._missing(job)
            if chunks:
                cursor.chunks_read += len(chunks)
                results = yield from self._read(job, fields, chunks)
                return results
            if "finished_at" in fields or watch is None:
                cursor.ended = True
                return []
            yield Listen(watch, pause)
            pause = min(LONGEST_LISTEN_SECONDS, pause * 2)

    def _read(self, job: str, fields: dict[str, str], chunks: list[str]) -> Flow[list[Result]]:
        parts: list[Part | None] = yield Ask([self.ledger.part(job, chunk) for chunk in chunks])
        results: list[Result] = []
        for chunk, part in zip(chunks, parts, strict=True):
            if part is not None and part.name:
                lines = yield Blocking(partial(self._read_part, fields["sink"], job, part.name))
            else:
                [records] = yield Ask([self.ledger.records(job, chunk)])
                lines = list(records.values())
            if part is None or len(lines) != part.images:
                raise ResultExpired(f"records of job {job} have been deleted")
            results.extend(map(Result.from_record, lines))
        return results

    def _read_part(self, sink: str, job: str, name: str) -> list[bytes]:
        try:
            return open_store(sink, self.settings).get(f"{job}/{name}").splitlines()
        except FileNotFoundError:
            raise ResultExpired(f"the part {name} of job {job} is no longer in {sink}") from None

    def progress(self, job: str) -> Flow[Progress]:
        """How far the job is."""
        fields, now = yield Ask([self.ledger.job(job), self.ledger.now()])
        if not fields:
            yield from self._missing(job)
        return read_progress(fields, now)

    def cancel(self, job: str) -> Flow[bool]:
        """Cancel; false if the job had ended."""
        [outcome] = yield Ask([self.ledger.cancel(job)])
        if outcome == "UNKNOWN":
            yield from self._missing(job)
        return bool(outcome == "CANCELLED")

    def delete(self, job: str) -> Flow[bool]:
        """Delete the records and the job, page by page; false if it still runs."""
        yield from self._job(job)
        while True:
            [gone] = yield Ask([self.ledger.delete(job)])
            if gone:
                return bool(gone == 1)

    def jobs(self, count: int) -> Flow[list[JobInfo]]:
        """The newest jobs."""
        [ids, now] = yield Ask([self.ledger.jobs(0, count), self.ledger.now()])
        hashes = (yield Ask([self.ledger.job(job) for job in ids])) if ids else []
        return [_read_info(job, fields, now) for job, fields in zip(ids, hashes, strict=True) if fields]

    def info(self, job: str) -> Flow[JobInfo]:
        """One job."""
        fields, now = yield Ask([self.ledger.job(job), self.ledger.now()])
        if not fields:
            yield from self._missing(job)
        return _read_info(job, fields, now)

    def depths(self) -> Flow[dict[str, QueueDepth]]:
        """Every queue's depth."""
        [names] = yield Ask([self.ledger.queues()])
        depths = {}
        for name in names:
            depths[name] = read_depth((yield Ask(self.ledger.depth(name))))
        return depths

    def _job(self, job: str) -> Flow[dict[str, str]]:
        [fields] = yield Ask([self.ledger.job(job)])
        if not fields:
            yield from self._missing(job)
        known: dict[str, str] = fields
        return known

    def _missing(self, job: str) -> Flow[None]:
        [created] = yield Ask([self.ledger.created(job)])
        if created is not None:
            raise ResultExpired(f"job {job} was deleted when its time to live ended")
        raise UnknownJob(f"there is no job {job!r} in namespace {self.settings.namespace!r}")


def _refuse(job: str, outcome: Put) -> None:
    match outcome:
        case Put.CONFLICT:
            raise IdConflict(f"the id {job!r} already belongs to a different request; use another id")
        case Put.UNKNOWN:
            raise UnknownJob(f"job {job!r} was deleted while it was being submitted; submit it again")
        case _:
            return


def read_progress(fields: dict[str, str], now_ms: float) -> Progress:
    """A job's fields as `Progress`; `now_ms` is the ledger's clock."""
    done, accepted = int(fields["done"]), int(fields["accepted"])
    total = None if fields["state"] == "open" else accepted
    ends = float(fields.get("finished_at", now_ms))
    seconds = max(0.001, (ends - float(fields["started_at"])) / 1000) if "started_at" in fields else 0.0
    rate = done / seconds if seconds else 0.0
    return Progress(
        total=total,
        accepted=accepted,
        done=done,
        ok=int(fields["ok"]),
        partial=int(fields["partial"]),
        failed=int(fields["failed"]),
        by_code={name[5:]: int(count) for name, count in sorted(fields.items()) if name.startswith("code:")},
        rate=rate,
        eta_seconds=(total - done) / rate if rate and total is not None else None,
        state=fields["state"],
        finished="finished_at" in fields,
    )


def _read_info(job: str, fields: dict[str, str], now_ms: float) -> JobInfo:
    return JobInfo(
        id=job,
        models=tuple(json.loads(fields["models"])),
        queue=fields["queue"],
        sink=fields.get("sink"),
        created_at=float(fields["created_at"]) / 1000,
        last_seen=float(fields["last_seen"]) / 1000,
        progress=read_progress(fields, now_ms),
    )
