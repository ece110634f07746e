"""One chunk from its wake-up call to its commit: what the Celery task does.

begin ─► (nothing to do: ack) | gate ─► pipeline ─► commit (see `commits.py`) ─► ack
whatever stands in the way ─► handed back to the queue; only a lost device counts as a death
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from celery.exceptions import Reject
from pydantic import ValidationError

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
from classifleet.config.payload import explain
from classifleet.ledger import Begin, Call, Commit, Lease, Ledger, SyncRunner
from classifleet.worker.commits import Committer, NoPlace, SinkGivenUp
from classifleet.worker.gate import Gate, GateClosed, Turn
from classifleet.worker.inflight import InFlight
from classifleet.worker.instruments import CHUNKS, HANDED_BACK, INFLIGHT, QUEUE_WAIT, observe
from classifleet.worker.leases import Held, LeaseKeeper
from classifleet.worker.lending import Lends, Loads, ModelAway
from classifleet.worker.logs import log_chunk
from classifleet.worker.outages import Interrupted, patiently
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.records import failed_records
from classifleet.worker.sink import Sinks
from classifleet.worker.suspects import GIVE_UP_DEATHS, PATIENT_DEATHS, SUSPECT_DEATHS, Marks, given_up
from classifleet.worker.tracing import ChunkTrace, Tracing
from classifleet.worker.wakeups import is_message, lane_of

log = structlog.get_logger(__name__)
T = TypeVar("T")
GIVE_UP_FAILURES: Final = 5
"""A chunk that has failed as a whole so often is answered with `internal`, rather than tried for ever."""
REFUSE_SECONDS: Final = 2.0  # that a refused wake-up call waits for the consumer to stop, or it would come right back


class LeaseLost(Exception):
    """Another worker has the chunk."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A chunk that was granted to this process."""

    payload: Payload
    lease: Lease
    queue: str
    lane: Lane
    trace: ChunkTrace | None = None

    @property
    def held(self) -> Held:
        return self.lease.job, self.lease.chunk, self.lease.attempt


class ChunkRunner:
    """Carries out wake-up calls; called from many task threads."""

    def __init__(
        self,
        *,
        settings: Settings,
        ledger: Ledger,
        runner: SyncRunner,
        owner: str,
        leases: LeaseKeeper,
        lender: Lends,
        pipeline: Pipeline,
        loop: asyncio.AbstractEventLoop,
        sinks: Sinks,
        committer: Committer,
        interrupt: threading.Event,
        tracing: Tracing | None = None,
    ) -> None:
        self._ledger = ledger
        self._runner = runner
        self._owner = owner
        self._lease_ms = int(settings.lease_seconds * 1000)
        self._chunk_seconds = settings.chunk_timeout_seconds
        self._keep_seconds = settings.keep_results_seconds
        self._leases = leases
        self._lender = lender
        self._pipeline = pipeline
        self._loop = loop
        self._sinks = sinks
        self._committer = committer
        self._interrupt = interrupt
        self._tracing = tracing
        self._gate = Gate()
        self.marks = Marks(self._tell)
        self._refusing = threading.Event()
        self._stopped = threading.Event()
        self._running: set[Future[Any]] = set()
        self.in_flight = InFlight()

    def refuse(self) -> None:
        """Begin nothing more: wake-up calls go back to the broker."""
        self._refusing.set()

    def reserving_stopped(self) -> None:
        """No more wake-up calls come: what was refused may go back."""
        self._stopped.set()

    def abort(self) -> None:
        """Hand back what is at work; commits that are on their way still end."""
        self.refuse()
        self._stopped.set()
        self._interrupt.set()
        self._gate.close()
        for future in list(self._running):
            future.cancel()

    def run(self, message: Mapping[str, Any], queue: str) -> None:
        """Carry out one wake-up call. Returns when the chunk is committed, or is not ours to do.

        Raises:
            Reject: The process is ending, or Redis is away: the message goes back to the broker.
        """
        if not is_message(message):
            log.error("not a message of ours", queue=queue, fields=sorted(map(str, message))[:8])
            CHUNKS.labels("garbage").inc()
            return
        with self.in_flight.one():  # counted before it looks, so that no drain misses it
            if self._refusing.is_set():
                self._stopped.wait(REFUSE_SECONDS)
                raise Reject("the worker is ending", requeue=True)
            self._run(message, queue)

    def _run(self, message: Mapping[str, Any], queue: str) -> None:
        try:
            lease = self._begin(message["job"], message["chunk"], queue)
        except (LedgerUnavailable, Interrupted) as error:
            raise Reject(str(error), requeue=True) from error
        CHUNKS.labels(lease.outcome.value.lower()).inc()
        if lease.outcome not in (Begin.RUN, Begin.EXPIRED):
            log.debug("nothing to do", job=message["job"], chunk=message["chunk"], because=lease.outcome.value)
            return
        held = lease.job, lease.chunk, lease.attempt
        self._leases.add(held)  # whatever comes next may take long, and a drain must know of it
        try:
            self._granted(lease, queue)
        finally:
            self._leases.remove(held)

    def _granted(self, lease: Lease, queue: str) -> None:
        try:
            payload = Payload.model_validate_json(lease.payload)
        except ValidationError as error:  # written by a newer classifleet
            log.warning("payload not understood; parked", job=lease.job, chunk=lease.chunk, error=explain(error))
            self._park(lease, "not_understood")
            return
        if lease.outcome is Begin.RUN and self._left_to_others(lease, queue):
            return
        trace = None if self._tracing is None else self._tracing.chunk(lease, queue, len(payload.items))
        work = _Work(payload, lease, queue, lane_of(queue), trace)
        INFLIGHT.inc(len(payload.items))
        try:
            self._work(work)
        finally:
            if trace is not None:
                trace.end()
            INFLIGHT.dec(len(payload.items))

    def _begin(self, job: str, chunk: str, queue: str) -> Lease:
        grant = uuid.uuid4().hex
        call = self._ledger.begin(
            job,
            chunk,
            self._owner,
            lease_ms=self._lease_ms,
            latest=self._lender.offers(),
            queue=queue,
            grant=grant,
        )
        try:
            return self._patiently(call)
        except Exception:  # it may have been granted, and the answer lost, or garbage
            self._revoke(queue, grant)
            raise

    def _revoke(self, queue: str, grant: str) -> None:
        """Nobody died: no lease may stay behind that runs out."""
        try:
            self._runner.run(self._ledger.revoke(queue, grant, keep_ms=self._lease_ms))
        except LedgerUnavailable as error:
            log.warning("not known whether a chunk was granted; its lease runs out", queue=queue, error=str(error))

    def _patiently(self, call: Call[T]) -> T:
        return patiently(
            lambda: self._runner.run(call),
            on=LedgerUnavailable,
            seconds=self._keep_seconds,
            interrupt=self._interrupt,
        )

    def _left_to_others(self, lease: Lease, queue: str) -> bool:
        """Put a chunk aside whose models this worker lacks, and another has."""
        try:
            left = self._lender.left_to_others(lease.models, queue)
            if not left and self._lender.offers().keys().isdisjoint(lease.models):
                return False
        except LedgerUnavailable:
            left = False
        if not left:  # not known what others have, or since just now a version can be pinned
            self._leases.give_back((lease.job, lease.chunk, lease.attempt))
            return True
        log.info("left to workers with its models; parked", job=lease.job, chunk=lease.chunk, models=lease.models)
        self._park(lease, "elsewhere")
        return True

    def _park(self, lease: Lease, reason: str) -> None:
        """Not for this worker: it waits for one that can do it."""
        CHUNKS.labels(reason).inc()
        self._leases.remove((lease.job, lease.chunk, lease.attempt))
        try:
            self._runner.run(self._ledger.park(lease.job, lease.chunk, self._owner, lease.attempt))
        except LedgerUnavailable:
            self._leases.give_back((lease.job, lease.chunk, lease.attempt))

    def _work(self, work: _Work) -> None:
        began = time.monotonic()
        trace_id = "" if work.trace is None else work.trace.trace_id
        observe(QUEUE_WAIT.labels(work.queue), work.lease.waited_ms / 1000, trace_id)
        try:
            records = self._records(work)
            outcome = self._commit(work, records)
        except (Interrupted, CancelledError, GateClosed) as error:
            self._hand_back(work, "drain" if self._interrupt.is_set() else "gate", error)
            if self._interrupt.is_set():
                raise Reject("the worker is ending", requeue=True) from error
        except ModelAway as error:
            if not self._left_to_others(work.lease, work.queue):
                self._hand_back(work, "models", error)
        except SinkGivenUp as error:
            self._answer(work, "sink", ImageError(ErrorCode.INTERNAL, str(error)), aside=True)
        except (StorageError, StorageUnavailable) as error:
            self._hand_back(work, "sink", error)
        except NotReplicated as error:
            self._leave(work, error)
        except LedgerUnavailable as error:
            self._hand_back(work, "ledger", error)
        except LeaseLost:
            log.warning("lease lost; the chunk is left to its new holder", job=work.lease.job, chunk=work.lease.chunk)
        except Exception as error:  # the last line of defence between one chunk and its neighbours
            log.exception("chunk failed", job=work.lease.job, chunk=work.lease.chunk, attempt=work.lease.attempt)
            self._give_up(work, "timeout" if isinstance(error, TimeoutError) else "defect", error)
        else:
            log_chunk(work.lease, work.queue, records, outcome.value.lower(), time.monotonic() - began)

    def _commit(self, work: _Work, records: list[Record], *, aside: bool = False) -> Commit:
        outcome = self._committer.commit(
            work.payload, work.lease, records, work.queue, work.lane, aside=aside, trace=work.trace
        )
        if work.trace is not None:
            work.trace.outcome = outcome.value.lower()
        return outcome

    def _leave(self, work: _Work, error: NotReplicated) -> None:
        """It is done on the primary. If a failover forgets that, the chunk is handed back, and else nothing is."""
        log.warning("done, but not on enough replicas", job=work.lease.job, chunk=work.lease.chunk, error=str(error))
        self._leases.give_back(work.held)

    def _hand_back(self, work: _Work, reason: str, error: BaseException) -> None:
        job, chunk, attempt = work.held
        write = log.debug if isinstance(error, NoPlace) else log.warning  # there may be thousands
        write("handed back", job=job, chunk=chunk, attempt=attempt, because=reason, error=str(error))
        HANDED_BACK.labels(reason).inc()
        if work.trace is not None:
            work.trace.outcome = "handed back"
        self._leases.give_back(work.held)

    def _give_up(self, work: _Work, reason: str, error: Exception) -> None:
        """Hand a chunk back that failed as a whole, or answer it at last."""
        job, chunk, attempt = work.held
        try:
            failures = self._runner.run(self._ledger.failed(job, chunk, self._owner, attempt))
        except LedgerUnavailable:
            failures = 0
        if failures < GIVE_UP_FAILURES:
            self._hand_back(work, reason, error)
            return
        what = f"its chunk failed {failures} times: {type(error).__name__}"
        self._answer(work, reason, ImageError(ErrorCode.INTERNAL, what))

    def _answer(self, work: _Work, reason: str, error: ImageError, *, aside: bool = False) -> None:
        """The same error for all its images, or, if that cannot be written either, another attempt."""
        log.error("given up", job=work.lease.job, chunk=work.lease.chunk, because=reason, error=str(error))
        records = self._failed(work, error)
        try:
            self._commit(work, records, aside=aside)
        except NotReplicated as alone:
            self._leave(work, alone)
        except SinkGivenUp:
            self._answer(work, "sink", error, aside=True)
        except Exception as second:
            log.exception("chunk not answered", job=work.lease.job, chunk=work.lease.chunk)
            self._hand_back(work, reason, second)

    def _records(self, work: _Work) -> list[Record]:
        if work.lease.outcome is Begin.EXPIRED:
            late = ImageError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the image was queued")
            return self._failed(work, late)
        if work.payload.sink:
            try:
                self._sinks.require_allowed(work.payload.sink)
            except ImageError as error:
                return self._failed(work, error)
            self._committer.require_place(work.payload)
        if work.lease.deaths >= GIVE_UP_DEATHS:
            log.error("given up", job=work.lease.job, chunk=work.lease.chunk, deaths=work.lease.deaths)
            return given_up(work.payload, work.lease, self._owner)
        with self._lender.lent(work.lease.models) as loads:
            if loads:
                work, records = self._with_models(work, loads)
                if records:
                    return records
            if work.lease.deaths >= SUSPECT_DEATHS:
                with self._gate.alone(self._chunk_seconds) as turn:
                    return self._classify(work, turn)
            with self._gate.shared(work.lane, self._chunk_seconds):
                return self._classify(work, None)

    def _failed(self, work: _Work, error: ImageError) -> list[Record]:
        return failed_records(work.payload, error, attempt=work.lease.attempt, worker=self._owner)

    def _with_models(self, work: _Work, loads: Loads) -> tuple[_Work, list[Record]]:
        """Wait for the models before the gate: behind it others would wait as well."""
        try:
            lease, records = self._on_loop(self._lender.bring(work.payload, work.lease, work.lane, loads), Turn())
        except ModelAway as away:
            again = away.later and work.lease.attempt < GIVE_UP_FAILURES
            if again or self._lender.left_to_others(work.lease.models, work.queue):
                raise
            return work, []  # answered, with those of its models that are here
        return replace(work, lease=lease), records

    def _classify(self, work: _Work, turn: Turn | None) -> list[Record]:
        mark = partial(self._mark_aside, work, turn) if turn else None
        if turn:
            log.warning("suspect chunk, alone", job=work.lease.job, chunk=work.lease.chunk, deaths=work.lease.deaths)
        classified = self._pipeline.classify(work.payload, work.lease, work.lane, mark=mark, trace=work.trace)
        return self._on_loop(classified, turn or Turn())

    def _on_loop(self, work: Coroutine[Any, Any, T], turn: Turn) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(future)
        try:
            if self._interrupt.is_set():  # `abort` may have looked before the future was there
                future.cancel()
            return self._outcome(future, turn)
        finally:
            self._running.discard(future)
            future.cancel()

    def _outcome(self, future: Future[T], turn: Turn) -> T:
        """Wait while it goes on: an ordinary chunk has one clock, a suspect one begins anew with each image."""
        while not future.done():
            left = self._chunk_seconds - turn.still_seconds()
            if left <= 0:
                raise TimeoutError(f"nothing was done for {self._chunk_seconds:g} s")
            wait((future,), left)
        return future.result()

    async def _mark_aside(self, work: _Work, turn: Turn, image: str) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._mark, work, turn, image)

    def _mark(self, work: _Work, turn: Turn, image: str) -> None:
        """Say which image is touched next, once the chunk is alone indeed; let others pass before it is."""
        turn.progress()
        self.in_flight.progress()
        if self._gate.interactive_waits():
            self._put_mark(work, "")
            self._gate.let_pass(turn, self._chunk_seconds)
            self.in_flight.progress()
        if image:
            self._pipeline.wait_idle()
            if work.lease.deaths >= PATIENT_DEATHS:
                self.marks.wait_alone()
        self._put_mark(work, image)

    def _put_mark(self, work: _Work, image: str) -> None:
        if not self.marks.put(work.held, image):
            raise LeaseLost

    def _tell(self, held: Held, image: str) -> bool:
        job, chunk, attempt = held
        return self._patiently(self._ledger.mark(job, chunk, self._owner, attempt, image))
