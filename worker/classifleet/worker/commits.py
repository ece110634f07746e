"""From a chunk's records to the commit that makes them final.

records ─► part in the sink ─► commit with dead letters, first wins ─► counted
Finished records are worth waiting for: while Redis or the sink is away they are kept, and their lease is renewed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from classifleet.config import (
    ErrorCode,
    ImageError,
    Lane,
    LedgerUnavailable,
    NotReplicated,
    Payload,
    Record,
    Settings,
    StorageError,
    StorageUnavailable,
)
from classifleet.config.claims import Claims
from classifleet.ledger import Call, Commit, Lease, Ledger, SyncRunner
from classifleet.worker.instruments import (
    CLASSIFICATIONS,
    DEAD_LETTERS,
    DUPLICATES,
    IMAGES,
    STAGE_DURATION,
    observe,
)
from classifleet.worker.letters import dead_letters
from classifleet.worker.outages import Interrupted, Outages, patiently
from classifleet.worker.records import Finished, finish
from classifleet.worker.sink import GAP_SECONDS, Sinks, part_name
from classifleet.worker.tracing import ChunkTrace

log = structlog.get_logger(__name__)
UNKNOWN_MODEL: Final = "unknown"
_SINK_ERRORS: Final = (StorageError, StorageUnavailable)


class NoPlace(StorageUnavailable):
    """The sink is away, and as many chunks wait for it as may."""


class SinkGivenUp(StorageError):
    """The sink has taken nothing of the job for `sink_patience_seconds`."""


class Committer:
    """Writes and commits the records of chunks. Safe across threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        runner: SyncRunner,
        sinks: Sinks,
        outages: Outages,
        claims: Claims,
        settings: Settings,
        interrupt: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._runner = runner
        self._sinks = sinks
        self._outages = outages
        self._claims = claims
        self._keep_seconds = settings.keep_results_seconds
        self._patience_seconds = settings.sink_patience_seconds
        self._letters_ttl_ms = settings.dead_letter_ttl_seconds * 1000
        self._letters_most = settings.dead_letters_max
        self._interrupt = interrupt
        self._sinks_away: set[str] = set()
        self._for_sinks = threading.BoundedSemaphore(max(1, settings.chunks_in_flight // 2))

    def require_place(self, payload: Payload) -> None:
        """Before a chunk is worked on: would its records have a place to wait for their sink?

        Raises:
            NoPlace: The sink is away, and as many wait for it as may.
        """
        if payload.sink in self._sinks_away:
            with self._a_place_to_wait():
                return

    def commit(
        self,
        payload: Payload,
        lease: Lease,
        records: list[Record],
        queue: str,
        lane: Lane,
        *,
        aside: bool = False,
        trace: ChunkTrace | None = None,
    ) -> Commit:
        """Make the records final, unless another attempt was first; `aside` in Redis, whatever the sink.

        Raises:
            SinkGivenUp: No part could be written, and the job waits no longer for that.
            StorageError, StorageUnavailable: No part could be written.
            LedgerUnavailable: Redis did not come back in time.
            NotReplicated: It is done, but the replicas did not come back in time, or the process is ending.
            Interrupted: The process is ending.
        """
        if len(records) != len(payload.items):
            raise RuntimeError(f"{len(records)} records for {len(payload.items)} images")
        finished = finish(records)
        part = "" if aside else self._write_part(payload, lease, finished, trace)
        dead = dead_letters(payload, records, lane)
        start = time.monotonic()
        call = self._ledger.commit(
            payload.job,
            payload.chunk,
            lease.attempt,
            finished.tally,
            part=part,
            records=() if part else finished.records,
            dead=dead,
            dead_ttl_ms=self._letters_ttl_ms,
            dead_most=self._letters_most,
            digest=lease.digest,
            grant=lease.grant,
        )
        outcome = self._until_written(call)
        _stage("commit", start, trace)
        if outcome in (Commit.COMMITTED, Commit.REPEATED):
            self._claims.delete(payload, keep={letter.ref for letter in dead})
            _count(records, queue)
            for letter in dead:
                DEAD_LETTERS.labels(letter.code).inc()
        elif part and outcome is Commit.LATE:  # of a job that is gone the part may be the one that its manifest names
            self._delete_part(payload, part)
        return outcome

    def _until_written(self, call: Call[tuple[Commit, bool]]) -> Commit:
        """What became of the commit, once it is on as many replicas as it must be; the last try says `REPEATED`."""
        alone: list[NotReplicated] = []

        def run() -> Commit:
            try:
                return self._runner.run(call)[0]
            except NotReplicated as error:
                alone.append(error)
                raise

        try:
            return patiently(run, on=LedgerUnavailable, seconds=self._keep_seconds, interrupt=self._interrupt)
        except Interrupted:
            if alone:
                raise alone[-1] from None
            raise

    def _write_part(self, payload: Payload, lease: Lease, finished: Finished, trace: ChunkTrace | None) -> str:
        """The part's name; empty when the records go to Redis (no sink, or one that is not allowed)."""
        sink = payload.sink
        if not sink:
            return ""
        try:
            self._sinks.require_allowed(sink)
        except ImageError:
            return ""
        start = time.monotonic()
        name = part_name(payload.chunk, lease.attempt, lease.grant)
        encoded = [record for _, record in finished.records]

        def write() -> None:
            self._sinks.write_part(sink, payload.job, name, encoded)

        try:
            write()
        except _SINK_ERRORS as error:  # one that refuses may be set right, as one that is away may come back
            self._sinks_away.add(sink)
            self._outages.failed("sink", error)
            self._require_patience(payload, error)
            with self._a_place_to_wait():
                patiently(write, on=_SINK_ERRORS, seconds=self._keep_seconds, interrupt=self._interrupt)
        self._sinks_away.discard(sink)
        if not self._sinks_away:  # another one that works says nothing of those that do not
            self._outages.works("sink")
        _stage("sink", start, trace)
        return name

    def _require_patience(self, payload: Payload, error: Exception) -> None:
        gap_ms = int(max(GAP_SECONDS, 4 * self._keep_seconds) * 1000)
        try:
            failed_ms = self._runner.run(self._ledger.sink_failed(payload.job, payload.chunk, gap_ms=gap_ms))
        except LedgerUnavailable:  # the commit would not come through either
            return
        if failed_ms >= self._patience_seconds * 1000:
            raise SinkGivenUp(
                f"the sink {payload.sink} has taken no records for {failed_ms / 1000:.0f} s: {error}"
            ) from error

    @contextmanager
    def _a_place_to_wait(self) -> Iterator[None]:
        """At most half of the chunks wait for a sink, so that jobs without one, or with another, go on."""
        if not self._for_sinks.acquire(blocking=False):
            raise NoPlace("the sink is away, and many chunks wait for it already")
        try:
            yield
        finally:
            self._for_sinks.release()

    def _delete_part(self, payload: Payload, part: str) -> None:
        DUPLICATES.inc()
        try:
            self._sinks.delete_part(payload.sink or "", payload.job, part)
        except (StorageError, StorageUnavailable) as error:  # the finaliser deletes what no manifest names
            log.debug("part not deleted", job=payload.job, part=part, error=str(error))


def _stage(name: str, start: float, trace: ChunkTrace | None) -> None:
    observe(STAGE_DURATION.labels(name), time.monotonic() - start, "" if trace is None else trace.trace_id)
    if trace is not None:
        trace.stage(name, start)


def _count(records: Sequence[Record], queue: str) -> None:
    outcomes = Counter(r["error"]["code"] if "error" in r else r["status"] for r in records)
    for outcome, count in outcomes.items():
        IMAGES.labels(queue, outcome).inc(count)
    answers = Counter(
        (name, a["error"]["code"] if "error" in a else "ok") for r in records for name, a in r["models"].items()
    )
    for (name, outcome), count in answers.items():
        known = outcome != ErrorCode.MODEL_NOT_FOUND  # else any name that somebody asked for would be a series
        CLASSIFICATIONS.labels(name if known else UNKNOWN_MODEL, outcome).inc(count)
