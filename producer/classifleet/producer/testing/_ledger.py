"""The calls of a ledger that lives in memory: the names and answers of `Ledger`, without Redis behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from classifleet.ledger import Call, Discarded, Ledger, Parked, Part, PutReply
from classifleet.producer.testing._memory import Memory
from classifleet.producer.testing._state import MemoryChunk, now_ms

T = TypeVar("T")
IN_MEMORY: Final = "in memory"


def _call(answer: Callable[[], T]) -> Call[T]:
    return Call(IN_MEMORY, (), (), lambda _: answer())


@dataclass(frozen=True, slots=True)
class MemoryLedger(Ledger):
    """Makes the calls that a producer's flows make."""

    memory: Memory

    def run(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run calls, as the runners do for Redis.

        Raises:
            NotImplementedError: A call that only workers make.
        """
        for call in calls:
            if call.ask != IN_MEMORY:
                raise NotImplementedError(f"{call.ask} in memory")
        with self.memory.lock:
            return [call.read(None) for call in calls]

    def put(
        self,
        job: str,
        *,
        header: Mapping[str, str] | None,
        request: str,
        chunk: str = "",
        images: int = 0,
        payload: bytes = b"",
        digest: str = "",
        deadline_ms: int | None = None,
        window: int = 0,
        seal: bool = False,
        limit: int = 0,
        room: int = 0,
        share: float = 0.0,
        trace: str = "",
        expects: int | None = None,
    ) -> Call[PutReply]:
        """See `Ledger.put`. Its memory has no end."""
        given = (job, header, request, payload, deadline_ms, window, limit)
        return _call(lambda: self.memory.put(*given, seal=seal, expects=expects or 0))

    def put_blob(
        self, job: str, chunk: str, sha256: str, data: bytes, *, ttl_ms: int, cap: int, share: float = 0.0
    ) -> Call[Parked]:
        """See `Ledger.put_blob`."""

        def put() -> Parked:
            blobs = self.memory.blobs
            if (job, chunk, sha256) not in blobs and sum(map(len, blobs.values())) + len(data) > cap:
                return Parked.OVER_CAP
            blobs[job, chunk, sha256] = data
            return Parked.STORED

        return _call(put)

    def take_back_blobs(
        self, job: str, chunk: str, sha256s: Iterable[str], *, idle_seconds: int = 0, ttl_ms: int = 0
    ) -> Call[int]:
        """See `Ledger.take_back_blobs`."""
        hashes = tuple(sha256s)
        return _call(lambda: self.memory.take_back_blobs(job, chunk, hashes))

    def cancel(self, job: str) -> Call[str]:
        """See `Ledger.cancel`."""
        return _call(lambda: self.memory.cancel(job))

    def delete(self, job: str, *, page: int = 256) -> Call[int]:
        """See `Ledger.delete`."""
        return _call(lambda: self.memory.delete(job))

    def job(self, job: str) -> Call[dict[str, str]]:
        """See `Ledger.job`."""
        return _call(lambda: self.memory.jobs[job].fields() if job in self.memory.jobs else {})

    def jobs(self, offset: int, count: int) -> Call[list[str]]:
        """See `Ledger.jobs`."""
        return _call(lambda: list(reversed(self.memory.created))[offset : offset + count])

    def created(self, job: str) -> Call[float | None]:
        """See `Ledger.created`."""
        return _call(lambda: self.memory.created.get(job))

    def now(self) -> Call[int]:
        """See `Ledger.now`."""
        return _call(now_ms)

    def log(self, job: str, offset: int, count: int) -> Call[list[str]]:
        """See `Ledger.log`."""
        return _call(lambda: self.memory.jobs[job].log[offset : offset + count] if job in self.memory.jobs else [])

    def has_chunk(self, job: str, chunk: str) -> Call[bool]:
        """See `Ledger.has_chunk`."""
        return _call(lambda: (known := self._chunk(job, chunk)) is not None and known.part is None)

    def part(self, job: str, chunk: str) -> Call[Part | None]:
        """See `Ledger.part`."""
        return _call(lambda: known.part if (known := self._chunk(job, chunk)) else None)

    def records(self, job: str, chunk: str) -> Call[dict[str, bytes]]:
        """See `Ledger.records`."""
        return _call(lambda: known.records if (known := self._chunk(job, chunk)) else {})

    def dead_letters(self, offset: int, count: int) -> Call[list[str]]:
        """See `Ledger.dead_letters`. There are none: a test says why an image fails."""
        return _call(list)

    def dead_letter(self, key: str) -> Call[dict[str, str]]:
        """See `Ledger.dead_letter`."""
        return _call(dict)

    def discard(self, key: str) -> Call[Discarded]:
        """See `Ledger.discard`."""
        return _call(lambda: Discarded.UNKNOWN)

    def queues(self) -> Call[list[str]]:
        """See `Ledger.queues`."""
        return _call(lambda: sorted({job.header["queue"] for job in self.memory.jobs.values()}))

    def depth(self, queue: str) -> list[Call[Any]]:
        """See `Ledger.depth`."""

        def chunks(state: str) -> list[MemoryChunk]:
            jobs = [job for job in self.memory.jobs.values() if job.header["queue"] == queue]
            return [chunk for job in jobs for chunk in job.chunks.values() if chunk.state == state]

        def images() -> dict[str, int]:
            return {state: sum(len(c.images) for c in chunks(state)) for state in ("queued", "leased", "done")}

        return [
            _call(lambda: len(chunks("queued"))),
            _call(lambda: len(chunks("leased"))),
            _call(lambda: 0),
            _call(images),
            _call(dict),
            _call(lambda: min((c.queued_at for c in chunks("queued")), default=None)),
            self.now(),
        ]

    def _chunk(self, job: str, chunk: str) -> MemoryChunk | None:
        known = self.memory.jobs.get(job)
        return known.chunks.get(chunk) if known else None
