"""Chunks that a worker did not understand, or has no models for: looked at again by every worker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from pydantic import ValidationError

from classifleet.config import ErrorCode, MissingExtra, Payload, StorageError, StorageUnavailable
from classifleet.worker.reconciler.answers import answer
from classifleet.worker.reconciler.context import Chunk, Context, each

log = structlog.get_logger(__name__)
PAGE: Final = 256


class ParkedChunks:
    """Unparks what this process can do; what is cancelled or too late gets its records.

    A page of each queue a round, so that many parked chunks are gone through in turns.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._offsets: dict[str, int] = {}

    def round(self) -> None:
        """Look at a page of every queue.

        Raises:
            Unavailable: The rest is looked at later.
        """
        each(self._context.queues(), self._page)

    def _page(self, queue: str) -> None:
        context, runner, ledger = self._context, self._context.runner, self._context.ledger
        offset = self._offsets.get(queue, 0)
        chunks = runner.run(ledger.parked(queue, PAGE, offset))
        self._offsets[queue] = offset + len(chunks) if len(chunks) == PAGE else 0
        if not chunks:
            return
        hashes = runner.run_all([ledger.chunk(job, chunk) for job, chunk in chunks])
        names = sorted({job for job, _ in chunks})
        jobs = dict(zip(names, runner.run_all([ledger.job(job) for job in names]), strict=True))
        now_ms = context.now_ms()
        unparked: list[Chunk] = []
        for (job, chunk), held in zip(chunks, hashes, strict=True):
            if held.get("state") != "parked" or not jobs[job]:
                log.error("parked and not a chunk; dropped", job=job, chunk=chunk)
                unparked.append((job, chunk))
            elif code := _final(held, jobs[job], now_ms):
                self._answer(job, jobs[job], chunk, held, code)
            elif context.is_worker and understood(held) and not self._left_to_others(jobs[job], queue):
                unparked.append((job, chunk))
        self._unpark(queue, unparked)

    def _left_to_others(self, job: Mapping[str, str], queue: str) -> bool:
        return self._context.left_to_others(pinned(job), queue)

    def _answer(
        self, job: str, fields: Mapping[str, str], chunk: str, held: Mapping[str, str], code: ErrorCode
    ) -> None:
        if not self._context.answers(fields):
            return
        try:
            answer(self._context, job, fields, [(chunk, held)], code)
        except (StorageError, StorageUnavailable, MissingExtra) as error:
            log.error("parked chunk not answered; tried again later", job=job, chunk=chunk, error=str(error))

    def _unpark(self, queue: str, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        back = self._context.runner.run(self._context.ledger.unpark(queue, chunks))
        if back:
            log.info("parked chunks are understood here; queued again", queue=queue, chunks=len(back))
            self._context.publish(queue, back)


def pinned(job: Mapping[str, str]) -> list[str]:
    """The models of a job, by its fields, with the versions that it was pinned to."""
    try:
        names = [str(name) for name in json.loads(job.get("models", ""))]
    except (ValueError, TypeError):
        return []
    return [f"{name}@{job[f'pin:{name}']}" if f"pin:{name}" in job else name for name in names]


def understood(held: Mapping[str, str]) -> bool:
    """Whether this version can work on the payload."""
    try:
        Payload.model_validate_json(held.get("payload", ""))
    except ValidationError:
        return False
    return True


def _final(held: Mapping[str, str], job: Mapping[str, str], now_ms: int) -> ErrorCode | None:
    if "cancelled_at" in job:
        return ErrorCode.CANCELLED
    if float(held.get("deadline_at", "inf")) <= now_ms:
        return ErrorCode.DEADLINE_EXCEEDED
    return None
