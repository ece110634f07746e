"""The ledger in memory: what the Lua scripts and their keys are in Redis, for the calls that a producer makes.

The producer's own flows run on it, so only these transitions are written twice. One script of calls runs against
both and is compared (`tests/integration/test_twin_parity.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from classifleet.config import ImageError, Payload
from classifleet.config.reference import decode_data_uri
from classifleet.ledger import Part, Put, PutReply
from classifleet.producer.testing._state import MemoryChunk, MemoryJob, Submission, now_ms

INTERACTIVE: Final = "interactive"
ATTEMPT: Final = 1


class Memory:
    """Everything that a fleet in memory knows. Its lock is held by whoever calls a method."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[str, MemoryJob] = {}
        self.created: dict[str, float] = {}
        self.blobs: dict[tuple[str, str, str], bytes] = {}
        self.queued: dict[tuple[str, str], None] = {}  # job and chunk, in order
        self.cancelled: list[str] = []  # jobs whose queued images still lack a record
        self.submitted: list[Submission] = []
        self._watchers: dict[str, list[Callable[[], object]]] = {}

    @contextmanager
    def watch(self, job: str, heard: Callable[[], object]) -> Iterator[None]:
        """Have `heard` called whenever something happens to the job."""
        with self.lock:
            self._watchers.setdefault(job, []).append(heard)
        try:
            yield
        finally:
            with self.lock:
                self._watchers[job].remove(heard)

    # --- what a producer calls --------------------------------------------------------------------------------

    def put(
        self,
        job_id: str,
        header: Mapping[str, str] | None,
        request: str,
        payload: bytes,
        deadline_ms: int | None,
        window: int,
        limit: int,
        *,
        seal: bool,
        expects: int,
    ) -> PutReply:
        """Open a job, add a chunk, seal it; see `_scripts.PUT`."""
        job = self.jobs.get(job_id)
        if job is None and header is None:
            return PutReply(Put.UNKNOWN)
        if job is not None and job.digest != request:
            return PutReply(Put.CONFLICT)
        parsed = Payload.model_validate_json(payload) if payload else None
        if parsed is None and seal and _lacks_chunks(job, expects):
            return PutReply(Put.INCOMPLETE)
        outcome = _judge(job, parsed, window)
        if outcome in (Put.CONFLICT, Put.CANCELLED, Put.WINDOW):
            return PutReply(outcome)
        new = parsed is not None and (job is None or parsed.chunk not in job.chunks)
        queue = job.header["queue"] if job else dict(header or {})["queue"]
        waiting = self._queued_images(queue)
        if new and parsed is not None and limit and waiting + len(parsed.items) > limit:
            return PutReply(Put.FULL, "queue", waiting, queue)
        if job is None:
            job = self.jobs[job_id] = MemoryJob(dict(header or {}), request, {"created_at": now_ms()})
            self.created[job_id] = now_ms()
        job.times["last_seen"] = now_ms()
        if parsed is not None and parsed.chunk not in job.chunks:
            self._add(job, parsed, deadline_ms)
        if seal and job.state == "open":
            job.state, job.times["sealed_at"] = "sealed", now_ms()
            _end_if_complete(job)
        return PutReply(outcome)

    def _queued_images(self, queue: str) -> int:
        names = [name for name in self.queued if self.jobs[name[0]].header["queue"] == queue]
        return sum(len(self.jobs[job].chunks[chunk].images) for job, chunk in names)

    def take_back_blobs(self, job_id: str, chunk: str, sha256s: Sequence[str]) -> int:
        """Drop parked images of a chunk that was refused; see `take_back_blobs.lua`."""
        job = self.jobs.get(job_id)
        if job is not None and chunk in job.chunks:
            return 0
        return sum(self.blobs.pop((job_id, chunk, sha256), None) is not None for sha256 in sha256s)

    def cancel(self, job_id: str) -> str:
        """Cancel; the records of queued images are for the fleet to write."""
        job = self.jobs.get(job_id)
        if job is None:
            return "UNKNOWN"
        if "finished_at" in job.times:
            return "FINISHED"
        job.state = "cancelled"
        job.times["cancelled_at"] = now_ms()
        self.cancelled.append(job_id)
        _end_if_complete(job)
        return "CANCELLED"

    def delete(self, job_id: str) -> int:
        """Forget a finished job."""
        job = self.jobs.get(job_id)
        if job is not None and "finished_at" not in job.times:
            return -1
        self.expire(job_id)
        self.created.pop(job_id, None)
        return 1

    # --- what a worker calls ----------------------------------------------------------------------------------

    def begin(self, of_job: str | None = None) -> tuple[MemoryJob, MemoryChunk] | None:
        """Take the next queued chunk, interactive ones first."""
        names = [name for name in self.queued if of_job in (None, name[0])]
        if not names:
            return None
        name = next((n for n in names if self.jobs[n[0]].header["lane"] == INTERACTIVE), names[0])
        del self.queued[name]
        job = self.jobs[name[0]]
        job.counts["queued"] -= 1
        job.times.setdefault("started_at", now_ms())
        chunk = job.chunks[name[1]]
        chunk.state = "leased"
        return job, chunk

    def hand_back(self, job: MemoryJob, chunk: MemoryChunk) -> None:
        """Return a chunk unused."""
        chunk.state = "queued"
        job.counts["queued"] += 1
        self.queued[chunk.payload.job, chunk.payload.chunk] = None

    def commit(
        self, job: MemoryJob, chunk: MemoryChunk, records: Mapping[str, bytes], outcomes: Sequence[str]
    ) -> None:
        """Finish a chunk; `outcomes` are `ok`, `partial` or an error code, one an image."""
        ok, partial = outcomes.count("ok"), outcomes.count("partial")
        failed = len(outcomes) - ok - partial
        chunk.state, chunk.records = "done", dict(records)
        chunk.part = Part(chunk.payload.chunk, ATTEMPT, ok, partial, failed, "")
        job.log.append(chunk.payload.chunk)
        job.counts.update(done=len(outcomes), ok=ok, partial=partial, failed=failed)
        job.codes.update(outcome for outcome in outcomes if outcome not in ("ok", "partial"))
        _end_if_complete(job)
        for heard in self._watchers.get(chunk.payload.job, ()):
            heard()

    def expire(self, job_id: str) -> None:
        """Forget a job as its time to live makes Redis forget it."""
        if self.jobs.pop(job_id, None) is not None:
            self.blobs = {key: data for key, data in self.blobs.items() if key[0] != job_id}
            self.queued = {key: None for key in self.queued if key[0] != job_id}

    def _add(self, job: MemoryJob, payload: Payload, deadline_ms: int | None) -> None:
        images = tuple(self._submissions(job, payload))
        deadline_at = None if deadline_ms is None else now_ms() + deadline_ms
        job.chunks[payload.chunk] = MemoryChunk(payload, payload.digest(), images, now_ms(), deadline_at)
        job.counts.update(accepted=len(images), queued=1)
        self.queued[payload.job, payload.chunk] = None
        self.submitted.extend(images)

    def _submissions(self, job: MemoryJob, payload: Payload) -> Iterator[Submission]:
        lane: Any = job.header["lane"]
        for item in payload.items:
            data = self.blobs.get((payload.job, payload.chunk, item.ref.partition(":")[2]))
            if item.ref[:5].lower() == "data:":
                with suppress(ImageError):  # it becomes the image's record
                    data = decode_data_uri(item.ref[5:], max_bytes=len(item.ref))
            yield Submission(
                job=payload.job,
                id=item.id,
                ref=item.ref,
                data=data,
                models=tuple(payload.models),
                meta=item.meta or {},
                lane=lane,
                options=payload.options,
                sink=payload.sink,
            )


def _judge(job: MemoryJob | None, payload: Payload | None, window: int) -> Put:
    """What becomes of a chunk, before anything is written."""
    if payload is None:
        return Put.SEALED
    known = job.chunks.get(payload.chunk) if job else None
    if known is not None:
        return Put(known.state.upper()) if known.digest == payload.digest() else Put.CONFLICT
    if job is None:
        return Put.QUEUED
    if job.state != "open":
        return Put.CANCELLED if job.state == "cancelled" else Put.CONFLICT
    return Put.WINDOW if job.counts["queued"] >= window else Put.QUEUED


def _lacks_chunks(job: MemoryJob | None, expects: int) -> bool:
    return len(job.chunks) < expects and job.state != "cancelled" if job else expects > 0


def _end_if_complete(job: MemoryJob) -> None:
    if job.state == "open" or job.counts["accepted"] != job.counts["done"]:
        return
    job.times["finished_at"] = now_ms()
    if job.state != "cancelled":
        job.state = "done"
