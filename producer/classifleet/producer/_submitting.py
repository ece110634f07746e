"""The flows of submitting: park large images, put chunks into the ledger, publish; wait for room, or refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from classifleet.config import (
    IdConflict,
    InvalidRequest,
    JobAbandoned,
    LedgerFull,
    LedgerUnavailable,
    Message,
    Settings,
    UnknownJob,
    message,
)
from classifleet.config.claims import Claims
from classifleet.config.tracing import current_trace
from classifleet.ledger import FORGOTTEN_SECONDS, Call, Ledger, Parked, Put, PutReply, read_depth
from classifleet.producer._effects import Ask, Blocking, Flow, Pause, Publish
from classifleet.producer._request import FIRST_CHUNK, Blob, Chunk, Request
from classifleet.producer._room import BLOBS, lacks, queue_full, record_room

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 2.0
PARKED_SECONDS: Final = FORGOTTEN_SECONDS / 2  # then an image whose chunk still waits for room is parked anew
_MEMORY: Final = "memory"
_PARKED_LACKS: Final = {Parked.STORED: "", Parked.OVER_CAP: BLOBS, Parked.NO_MEMORY: _MEMORY}


@dataclass(slots=True)
class _Patience:
    """How long one waits for room, at most `seconds` (None: without end) since something last went forward."""

    clock: Callable[[], float]
    seconds: float | None
    pause: float = FIRST_PAUSE_SECONDS
    since: float | None = None

    def next_pause(self) -> float:
        """Seconds to wait now; 0 when the time is up."""
        now = self.clock()
        if self.since is None:
            self.since, self.pause = now, FIRST_PAUSE_SECONDS
        pause, self.pause = self.pause, min(LONGEST_PAUSE_SECONDS, 2 * self.pause)
        return pause if self.seconds is None else min(pause, max(0.0, self.since + self.seconds - now))

    def reset(self) -> None:
        """Something went forward."""
        self.since = None


@dataclass(frozen=True, slots=True)
class Submitting:
    """The flows of submitting, for one client process."""

    ledger: Ledger
    settings: Settings
    reply_to: str
    claims: Claims
    clock: Callable[[], float] = field(default=time.monotonic)

    def submit(self, request: Request, chunk: Chunk, wait_seconds: float = 0.0) -> Flow[None]:
        """A sealed job of one chunk: one round trip to the ledger, one to the broker."""
        yield from self._add(request, [chunk], _Patience(self.clock, wait_seconds), seal=True)

    def submit_chunks(
        self, request: Request, chunks: Sequence[Chunk], wait_seconds: float | None = None
    ) -> Flow[bool]:
        """Add chunks to an open job, waiting for room. False once the job is cancelled."""
        return (yield from self._add(request, chunks, _Patience(self.clock, wait_seconds)))

    def seal(self, request: Request, chunks: int, wait_seconds: float | None = None) -> Flow[None]:
        """No more than these chunks will come. Opens the job if there are none.

        Raises:
            LedgerUnavailable: Also if Redis has lost some of them; the job stays open.
        """
        patience = _Patience(self.clock, wait_seconds)
        header = request.header(self.reply_to)
        call = self.ledger.put(request.job, header=header, request=request.digest(), seal=True, expects=chunks)
        while True:
            try:
                [reply] = yield Ask([call])
            except LedgerFull:
                yield from self._wait(request, _MEMORY, patience)
            else:
                return _refuse(request.job, reply.outcome)

    def _add(
        self, request: Request, chunks: Sequence[Chunk], patience: _Patience, *, seal: bool = False
    ) -> Flow[bool]:
        self._require_fit(request, chunks)
        left, parked = list(chunks), 0  # the first `parked` of those left have their images parked
        again = 0  # of so many, they were, and are parked anew
        since = self.clock()
        while left:
            missing = ""
            while parked < len(left) and not (missing := (yield from self._park(request, left[parked]))):
                parked += 1
            ready, rest = left[:parked], left[parked:]
            replies = (yield from self._put_all(request, ready, seal=seal)) if ready else []
            yield from self._publish(request, ready, replies)
            if any(reply.outcome is Put.CANCELLED for reply in replies):
                return False
            waiting = [chunk for chunk, reply in zip(ready, replies, strict=True) if lacks(reply)]
            if len(waiting) < len(ready):
                patience.reset()
            left, parked = waiting + rest, len(waiting)
            if left:
                missing = next(filter(None, map(lacks, replies)), missing)
                again = min(max(again, parked), len(left))
                yield from self._wait(request, missing, patience, left[: again + 1])
                if self.clock() - since > PARKED_SECONDS:
                    since, parked = self.clock(), 0
        return True

    def _require_fit(self, request: Request, chunks: Sequence[Chunk]) -> None:
        limit = self.settings.queue_limit(request.queue)
        most = max((len(chunk.payload.items) for chunk in chunks), default=0)
        if 0 < limit < most:
            raise InvalidRequest(
                f"a chunk of {most} images never fits into {request.queue}, which takes {limit} "
                "(CLASSIFLEET_MAX_QUEUED_IMAGES): use a smaller chunk_size"
            )

    # --- the ledger -----------------------------------------------------------------------------------------------

    def _put_all(self, request: Request, chunks: Sequence[Chunk], *, seal: bool) -> Flow[list[PutReply]]:
        # With the job's first chunk, any of them may be the one that opens it: the first may be refused.
        opens = any(chunk.payload.chunk == FIRST_CHUNK for chunk in chunks)
        header = request.header(self.reply_to) if opens else None
        try:
            replies: list[PutReply] = yield Ask([self._put(request, chunk, header, seal=seal) for chunk in chunks])
        except LedgerFull:  # some may be in; to put those again is harmless
            return [PutReply(Put.FULL, _MEMORY)] * len(chunks)
        return replies

    def _put(self, request: Request, chunk: Chunk, header: Mapping[str, str] | None, *, seal: bool) -> Call[PutReply]:
        payload = chunk.payload
        return self.ledger.put(
            request.job,
            header=header,
            request=request.digest(),
            chunk=payload.chunk,
            images=len(payload.items),
            payload=payload.encode(),
            digest=payload.digest(),
            deadline_ms=request.deadline_ms(),
            window=self.settings.submission_window,
            seal=seal,
            limit=self.settings.queue_limit(request.queue),
            room=record_room(request, len(payload.items)),
            share=self.settings.max_memory_share,
            trace=current_trace(),
        )

    def _publish(self, request: Request, chunks: Sequence[Chunk], replies: Sequence[PutReply]) -> Flow[None]:
        messages: list[tuple[str, Message]] = [
            (request.queue, message(request.job, chunk.payload.chunk))
            for chunk, reply in zip(chunks, replies, strict=True)
            if reply.outcome is Put.QUEUED
        ]
        if messages:
            yield Publish(messages)
        for reply in replies:
            _refuse(request.job, reply.outcome)

    # --- large images ---------------------------------------------------------------------------------------------

    def _park(self, request: Request, chunk: Chunk) -> Flow[str]:
        """Store a chunk's large images before the ledger hears of it; what there was too little of."""
        job, name = request.job, chunk.payload.chunk
        if not chunk.blobs:
            return ""
        if not request.fresh:  # a repetition, perhaps; then they were stored the first time
            part, has_chunk = yield Ask([self.ledger.part(job, name), self.ledger.has_chunk(job, name)])
            if part is not None or has_chunk:
                return ""
        if self.claims.enabled:
            yield Blocking(partial(self.claims.put, job, name, {blob.sha256: blob.data for blob in chunk.blobs}))
            return ""
        try:
            stored: list[Parked] = yield Ask([self._put_blob(job, name, blob) for blob in chunk.blobs])
        except LedgerFull:
            return _MEMORY
        return next(filter(None, map(_PARKED_LACKS.__getitem__, stored)), "")

    def _put_blob(self, job: str, chunk: str, blob: Blob) -> Call[Parked]:
        return self.ledger.put_blob(
            job,
            chunk,
            blob.sha256,
            blob.data,
            ttl_ms=self.settings.blob_ttl_seconds * 1000,
            cap=self.settings.blob_max_total_bytes,
            share=self.settings.max_memory_share,
        )

    # --- no room --------------------------------------------------------------------------------------------------

    def _wait(self, request: Request, missing: str, patience: _Patience, parked: Sequence[Chunk] = ()) -> Flow[None]:
        """Wait for a moment, or give up; `parked` are chunks some of whose images may be parked.

        Raises:
            QueueFull: The time is up.
        """
        pause = patience.next_pause()
        if pause > 0:
            yield Pause(pause)
            return
        yield from self._take_back(request, parked)
        depth = read_depth((yield Ask(self.ledger.depth(request.queue))))
        raise queue_full(request, self.settings, missing, depth.queued_images, depth.done_rate)

    def _take_back(self, request: Request, chunks: Sequence[Chunk]) -> Flow[None]:
        """Large images of chunks that were refused would only take room."""
        for chunk in chunks:
            if not chunk.blobs:
                continue
            if not self.claims.enabled:
                hashes = [blob.sha256 for blob in chunk.blobs]
                yield Ask([self.ledger.take_back_blobs(request.job, chunk.payload.chunk, hashes)])
            elif request.fresh:  # else the same call may be on its way elsewhere, and have more luck
                yield Blocking(partial(self.claims.delete, chunk.payload))


def _refuse(job: str, outcome: Put) -> None:
    match outcome:
        case Put.CONFLICT:
            raise IdConflict(f"the id {job!r} already belongs to a different request; use another id")
        case Put.UNKNOWN:
            raise UnknownJob(f"job {job!r} was deleted while it was being submitted; submit it again")
        case Put.INCOMPLETE:
            raise LedgerUnavailable(
                f"Redis has lost images of job {job!r} that it had accepted (a restart or a failover): make the same "
                "call again with the same job_id, and it completes the job"
            )
        case Put.ABANDONED:
            raise JobAbandoned(
                f"job {job!r} was given up when its producer had been silent for CLASSIFLEET_OPEN_JOB_TTL_SECONDS; "
                "what it has is finished and can be read: submit the other images as a new job"
            )
        case _:
            return
