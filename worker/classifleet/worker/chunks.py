"""One chunk from its wake-up call to its commit: what the Celery task does.

begin ─► (nothing to do: ack) | pipeline ─► sink part ─► commit, first wins ─► ack
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import stamina
import structlog
from pydantic import ValidationError

from classifleet.config import (
    ErrorCode,
    ImageError,
    Lane,
    LedgerUnavailable,
    Payload,
    Record,
    StorageError,
    StorageUnavailable,
)
from classifleet.config.payload import MESSAGE_VERSION, explain
from classifleet.ledger import Begin, Call, Commit, Lease, Ledger, SyncRunner
from classifleet.worker.instruments import (
    CHUNKS,
    CLASSIFICATIONS,
    DUPLICATES,
    IMAGES,
    INFLIGHT,
    QUEUE_WAIT,
    STAGE_DURATION,
)
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.records import Finished, failed_records, finish
from classifleet.worker.sink import Sinks, part_name

log = structlog.get_logger(__name__)
COMMIT_ATTEMPTS = 20
COMMIT_SECONDS = 120.0
T = TypeVar("T")


class ChunkRunner:
    """Carries out wake-up calls; called from many task threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        runner: SyncRunner,
        owner: str,
        lease_seconds: float,
        leases: LeaseKeeper,
        latest: Mapping[str, str],
        pipeline: Pipeline,
        loop: asyncio.AbstractEventLoop,
        sinks: Sinks,
    ) -> None:
        self._ledger = ledger
        self._runner = runner
        self._owner = owner
        self._lease_ms = int(lease_seconds * 1000)
        self._leases = leases
        self._latest = latest
        self._pipeline = pipeline
        self._loop = loop
        self._sinks = sinks

    def run(self, message: Mapping[str, Any], queue: str) -> None:
        """Carry out one wake-up call. Returns when the chunk is committed, or is not ours to do.

        Raises:
            LedgerUnavailable: Redis is away; the lease runs out and the chunk is given out again.
        """
        if not _is_message(message):
            log.error("not a message of ours", queue=queue, fields=sorted(map(str, message))[:8])
            CHUNKS.labels("garbage").inc()
            return
        job, chunk = message["job"], message["chunk"]
        lease = self._runner.run(
            self._ledger.begin(job, chunk, self._owner, lease_ms=self._lease_ms, latest=self._latest)
        )
        CHUNKS.labels(lease.outcome.value.lower()).inc()
        if lease.outcome not in (Begin.RUN, Begin.EXPIRED):
            log.debug("nothing to do", job=job, chunk=chunk, because=lease.outcome.value)
            return
        held = (job, chunk, lease.attempt)
        self._leases.add(held)
        try:
            self._work(job, chunk, lease, queue)
        finally:
            self._leases.remove(held)

    def _work(self, job: str, chunk: str, lease: Lease, queue: str) -> None:
        began = time.monotonic()
        QUEUE_WAIT.labels(queue).observe(lease.waited_ms / 1000)
        try:
            payload = Payload.model_validate_json(lease.payload)
        except ValidationError as error:
            # Written by a newer classifleet: the lease runs out and a capable worker gets it.
            log.error("payload not understood", job=job, chunk=chunk, error=explain(error))
            CHUNKS.labels("not_understood").inc()
            return
        INFLIGHT.inc(len(payload.items))
        try:
            outcome = self._commit(payload, lease, self._records(payload, lease, _lane(queue)), queue)
        except (StorageError, StorageUnavailable) as error:
            log.error("sink failed; chunk handed back", job=job, chunk=chunk, error=str(error))
            self._runner.run(self._ledger.hand_back(self._owner, [(job, chunk, lease.attempt)]))
            return
        finally:
            INFLIGHT.dec(len(payload.items))
        log.info(
            "chunk", job=job, chunk=chunk, images=len(payload.items), attempt=lease.attempt,
            outcome=outcome.value.lower(), seconds=round(time.monotonic() - began, 3),
        )  # fmt: skip

    def _records(self, payload: Payload, lease: Lease, lane: Lane) -> list[Record]:
        if lease.outcome is Begin.EXPIRED:
            late = ImageError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the image was queued")
            return failed_records(payload, late, attempt=lease.attempt, worker=self._owner)
        if payload.sink:
            try:
                self._sinks.require_allowed(payload.sink)
            except ImageError as error:
                return failed_records(payload, error, attempt=lease.attempt, worker=self._owner)
        future = asyncio.run_coroutine_threadsafe(self._pipeline.classify(payload, lease, lane), self._loop)
        return future.result()

    def _commit(self, payload: Payload, lease: Lease, records: list[Record], queue: str) -> Commit:
        if len(records) != len(payload.items):
            raise RuntimeError(f"{len(records)} records for {len(payload.items)} images")
        finished = finish(records)
        part = self._write_part(payload, lease, finished)
        start = time.monotonic()
        call = self._ledger.commit(
            payload.job,
            payload.chunk,
            lease.attempt,
            finished.tally,
            part=part,
            records=() if part else finished.records,
        )
        outcome, _ = self._patiently(call)
        STAGE_DURATION.labels("commit").observe(time.monotonic() - start)
        if outcome is Commit.COMMITTED:
            _count(records, queue)
        elif part and outcome is not Commit.REPEATED and payload.sink:
            DUPLICATES.inc()
            self._sinks.delete_part(payload.sink, payload.job, part)
        return outcome

    def _write_part(self, payload: Payload, lease: Lease, finished: Finished) -> str:
        """The part's name; empty when the records go to Redis (no sink, or one that is not allowed)."""
        if not payload.sink:
            return ""
        try:
            self._sinks.require_allowed(payload.sink)
        except ImageError:
            return ""
        start = time.monotonic()
        name = part_name(payload.chunk, lease.attempt)
        self._sinks.write_part(payload.sink, payload.job, name, (record for _, record in finished.records))
        STAGE_DURATION.labels("sink").observe(time.monotonic() - start)
        return name

    def _patiently(self, call: Call[T]) -> T:
        """Finished work is worth waiting for: the lease is renewed meanwhile, or another worker's commit wins."""
        for attempt in stamina.retry_context(on=LedgerUnavailable, attempts=COMMIT_ATTEMPTS, timeout=COMMIT_SECONDS):
            with attempt:
                return self._runner.run(call)
        raise AssertionError("unreachable: retry_context raises")


def _count(records: Sequence[Record], queue: str) -> None:
    outcomes = Counter(r["error"]["code"] if "error" in r else r["status"] for r in records)
    for outcome, count in outcomes.items():
        IMAGES.labels(queue, outcome).inc(count)
    answers = Counter(
        (name, a["error"]["code"] if "error" in a else "ok") for r in records for name, a in r["models"].items()
    )
    for (name, outcome), count in answers.items():
        CLASSIFICATIONS.labels(name, outcome).inc(count)


def _is_message(message: Mapping[str, Any]) -> bool:
    return (
        message.get("v") == MESSAGE_VERSION
        and isinstance(message.get("job"), str)
        and isinstance(message.get("chunk"), str)
    )


def _lane(queue: str) -> Lane:
    return "interactive" if queue.endswith(".interactive") else "bulk"
