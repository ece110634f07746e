"""What a fleet's client does, written once as flows (see `_effects`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from classifleet.config import ResultExpired, ResultTimeout, UnknownJob
from classifleet.config.storage import Stores
from classifleet.ledger import Call, Part, QueueDepth, read_depth
from classifleet.producer._effects import Ask, Blocking, Flow, Listen
from classifleet.producer._request import FIRST_CHUNK
from classifleet.producer._submitting import Submitting
from classifleet.producer.result import Result

PAGE_CHUNKS: Final = 16
FIRST_LISTEN_SECONDS: Final = 0.1
LONGEST_LISTEN_SECONDS: Final = 1.0


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
        state: `open`, `sealed`, `done`, `cancelled`, or `abandoned`: its producer was silent for
            `open_job_ttl_seconds`, and what it had submitted until then is finished.
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
    requeued_from: str | None = None  # the job whose dead letters it tries again


@dataclass(slots=True)
class Cursor:
    """A reader's place in a job's results."""

    chunks_read: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Flows(Submitting):
    """The flows of one client process."""

    stores: Stores = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stores", Stores(self.settings))

    # --- reading ----------------------------------------------------------------------------------------------

    def done(self, job: str) -> Flow[bool]:
        """Whether the job has ended."""
        fields = yield from self._job(job)
        return "finished_at" in fields

    def wait(self, job: str, watch: Any, timeout: float | None, *also: Call[Any]) -> Flow[list[Any]]:
        """Wait for the job's end; its fields, and what else is asked for in the same round trip."""
        ends = None if timeout is None else self.clock() + timeout
        pause = FIRST_LISTEN_SECONDS
        while True:
            fields, *more = yield Ask([self.ledger.job(job), *also])
            if not fields:
                fields = yield from self._missing(job)
            elif "finished_at" in fields:
                return [fields, *more]
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
        fields, *answers = yield from self.wait(job, watch, timeout, *self._chunk(job, FIRST_CHUNK))
        results = yield from self._read(job, fields, answers)
        return results[0]

    def page(self, job: str, cursor: Cursor, watch: Any) -> Flow[list[Result]]:
        """The next results in order of finishing. Waits for some if `watch` is given; empty at the end."""
        pause = FIRST_LISTEN_SECONDS
        while True:
            fields, chunks = yield Ask([self.ledger.job(job), self.ledger.log(job, cursor.chunks_read, PAGE_CHUNKS)])
            if not fields:
                fields = yield from self._missing(job)
            if chunks:
                cursor.chunks_read += len(chunks)
                answers = yield Ask([call for chunk in chunks for call in self._chunk(job, chunk)])
                results = yield from self._read(job, fields, answers)
                return results
            if "finished_at" in fields or watch is None:
                cursor.ended = True
                return []
            yield Listen(watch, pause)
            pause = min(LONGEST_LISTEN_SECONDS, pause * 2)

    def _chunk(self, job: str, chunk: str) -> tuple[Call[Part | None], Call[dict[str, bytes]]]:
        """What to ask for a finished chunk: its commit, and its records, which are empty if they lie in a sink."""
        return self.ledger.part(job, chunk), self.ledger.records(job, chunk)

    def _read(self, job: str, fields: dict[str, str], answers: list[Any]) -> Flow[list[Result]]:
        """The results in the answers to `_chunk` of one or more chunks."""
        results: list[Result] = []
        for part, records in zip(answers[::2], answers[1::2], strict=True):
            lines = list(records.values())
            if part is not None and part.name:
                lines = yield Blocking(partial(self._read_part, fields["sink"], job, part.name))
            if part is None or len(lines) != part.images:
                raise ResultExpired(f"records of job {job} have been deleted")
            results.extend(map(Result.from_record, lines))
        return results

    def _read_part(self, sink: str, job: str, name: str) -> list[bytes]:
        try:
            return self.stores.open(sink).get(f"{job}/{name}").splitlines()
        except FileNotFoundError:
            raise ResultExpired(f"the part {name} of job {job} is no longer in {sink}") from None

    def progress(self, job: str) -> Flow[Progress]:
        """How far the job is."""
        fields, now = yield Ask([self.ledger.job(job), self.ledger.now()])
        if not fields:
            fields = yield from self._missing(job)
        return read_progress(fields, now)

    def cancel(self, job: str) -> Flow[bool]:
        """Cancel; false if the job had ended."""
        while True:
            [outcome] = yield Ask([self.ledger.cancel(job)])
            if outcome != "UNKNOWN":
                return bool(outcome == "CANCELLED")
            yield from self._missing(job)

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
            fields = yield from self._missing(job)
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
            return (yield from self._missing(job))
        known: dict[str, str] = fields
        return known

    def _missing(self, job: str) -> Flow[dict[str, str]]:
        """The fields of a job that was not there a moment ago, or why it is not there.

        Its creation is asked for first: whatever is made between the two questions is found by the second.
        """
        created, fields = yield Ask([self.ledger.created(job), self.ledger.job(job)])
        if fields:
            appeared: dict[str, str] = fields
            return appeared
        if created is not None:
            raise ResultExpired(f"job {job} was deleted when its time to live ended")
        raise UnknownJob(f"there is no job {job!r} in namespace {self.settings.namespace!r}")


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
        requeued_from=fields.get("requeued_from"),
    )
