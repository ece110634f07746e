"""The ends of jobs: records of what was cancelled, manifests, times to live.

Everything can be repeated: what a process that ended had begun, the next one goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog

from classifleet.config import ClassifleetError, ErrorCode, LedgerUnavailable, StorageError, StorageUnavailable
from classifleet.ledger import Part
from classifleet.worker.reconciler.answers import NEEDED, answer
from classifleet.worker.reconciler.context import Context, Duty

log = structlog.get_logger(__name__)
PAGE: Final = 256
CANCEL_PAGE: Final = 128
CANCEL_SLICE: Final = 16  # chunks that one thread reads, answers and commits at a time
CANCEL_THREADS: Final = 2  # one makes records while the other waits for Redis; more are in each other's way
S3_THREADS: Final = 8  # a bucket is waited for at each part
LOOK_AGAIN_MS: Final = 2_000  # chunks of a cancelled job are at work: their commits come, or their leases run out
TRY_AGAIN_MS: Final = 30_000  # the sink refused; other jobs do not wait behind this one


class Finaliser:
    """Ends the jobs with a sink, or those without: two duties, since not every process can write to a sink."""

    def __init__(self, context: Context, *, with_sink: bool) -> None:
        self._context = context
        self._with_sink = with_sink
        self._duty = Duty(context, "finaliser-sink" if with_sink else "finaliser")

    def round(self) -> bool:
        """Look at every job that waits; false if another process has the duty.

        Raises:
            LedgerUnavailable: Redis is away.
            Interrupted: The process is ending.
        """
        context = self._context
        if not self._duty.hold():
            return False
        now_ms, others = context.now_ms(), 0
        while jobs := context.runner.run(context.ledger.finalisable(PAGE, now_ms, others)):
            self._duty.keep()
            mine = self._mine(jobs)
            others += len(jobs) - len(mine)  # they stay where they are, until the other duty has looked
            for job in mine:
                self._duty.keep()
                self._try(job, context.runner.run(context.ledger.job(job)))
        return True

    def _mine(self, jobs: Sequence[str]) -> list[str]:
        hashes = self._context.runner.run_all([self._context.ledger.job(job) for job in jobs])
        return [job for job, fields in zip(jobs, hashes, strict=True) if ("sink" in fields) == self._with_sink]

    def _try(self, job: str, fields: dict[str, str]) -> None:
        try:
            again_ms = 0 if self._end(job, fields) else LOOK_AGAIN_MS
        except LedgerUnavailable:
            raise
        except ClassifleetError as error:
            log.error("job not ended; tried again later", job=job, error=str(error))
            again_ms = TRY_AGAIN_MS
        if again_ms:
            self._context.runner.run(self._context.ledger.defer(job, self._context.now_ms() + again_ms))

    def _end(self, job: str, fields: dict[str, str]) -> bool:
        """Whether there is nothing more to do."""
        run, ledger = self._context.runner.run, self._context.ledger
        if not fields or "finished_at" in fields or fields["state"] == "open":
            run(ledger.finish(job))
            return True
        if fields["state"] == "cancelled":
            self._answer_cancelled(job, fields)
            fields = run(ledger.job(job))
        if not fields or fields["done"] != fields["accepted"]:
            return False
        parts = list(self._parts(job, int(fields["ttl_seconds"])))
        if written := [part for part in parts if part.name]:
            self._write_manifest(job, fields, written)
        ended = run(ledger.finish(job, int(fields["done"])))
        if ended:
            log.info("job ended", job=job, state=fields["state"], images=int(fields["done"]))
        return ended

    def _parts(self, job: str, ttl_seconds: int) -> Iterator[Part]:
        """The winning commits; the time to live of records in Redis starts on the way."""
        runner, ledger = self._context.runner, self._context.ledger
        offset = 0
        while chunks := runner.run(ledger.log(job, offset, PAGE)):
            offset += len(chunks)
            self._duty.keep()
            parts = [part for part in runner.run_all([ledger.part(job, chunk) for chunk in chunks]) if part]
            in_redis = [part.chunk for part in parts if not part.name]
            runner.run_all([ledger.expire_records(job, chunk, ttl_seconds) for chunk in in_redis])
            yield from parts

    def _write_manifest(self, job: str, fields: dict[str, str], parts: list[Part]) -> None:
        sinks, sink = self._context.sinks, fields["sink"]
        self._duty.keep()  # after a long pause another process may have ended the job, and its id be another job's
        try:
            sinks.write_manifest(sink, job, summary(fields), parts)
        except (StorageError, StorageUnavailable) as error:
            if not self._context.gives_up_sink(job):
                raise
            log.error("sink given up; the job ends without a manifest", job=job, sink=sink, error=str(error))
            return
        self._duty.keep()
        winners = {part.name for part in parts}
        try:
            orphans = [name for name in sinks.part_names(sink, job) if name not in winners]
            self._duty.keep()
            for name in orphans:
                sinks.delete_part(sink, job, name)
        except (StorageError, StorageUnavailable) as error:
            log.warning("parts that lost stay where they are; no reader follows them", job=job, error=str(error))
            return
        if orphans:
            log.info("parts that lost deleted", job=job, parts=len(orphans))

    def _answer_cancelled(self, job: str, fields: dict[str, str]) -> None:
        """Give every image that is still queued its record."""
        runner, ledger = self._context.runner, self._context.ledger
        offset, before = 0, None
        with ExitStack() as stack:
            threads = S3_THREADS if fields.get("sink", "").startswith("s3:") else CANCEL_THREADS
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="classifleet-cancelled"))
            stack.callback(pool.shutdown, cancel_futures=True)
            while (chunks := runner.run(ledger.pending(job, offset, CANCEL_PAGE))) and chunks != before:
                self._duty.keep()
                before = chunks
                slices = [chunks[start : start + CANCEL_SLICE] for start in range(0, len(chunks), CANCEL_SLICE)]
                answered = sum(pool.map(partial(self._answer_queued, job, fields), slices))
                offset += len(chunks) - answered

    def _answer_queued(self, job: str, fields: dict[str, str], chunks: Sequence[str]) -> int:
        """How many of the chunks there still were."""
        runner, ledger = self._context.runner, self._context.ledger
        found = runner.run_all([ledger.chunk(job, chunk, *NEEDED) for chunk in chunks])
        queued = [(chunk, held) for chunk, held in zip(chunks, found, strict=True) if "n" in held]
        answer(self._context, job, fields, queued, ErrorCode.CANCELLED)
        return len(queued)


def summary(fields: dict[str, str]) -> dict[str, Any]:
    """What the manifest says of the job as a whole."""
    return {
        "state": "done" if fields["state"] == "sealed" else fields["state"],
        "models": json.loads(fields["models"]),
        "versions": {name[4:]: version for name, version in fields.items() if name.startswith("pin:")},
        "options": json.loads(fields["options"]),
        "images": {name: int(fields[name]) for name in ("accepted", "ok", "partial", "failed")},
        "by_code": {name[5:]: int(count) for name, count in fields.items() if name.startswith("code:")},
        "created_at": _iso(float(fields["created_at"])),
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _iso(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
