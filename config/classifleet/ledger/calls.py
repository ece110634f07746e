"""The ledger's operations as values: what to ask of Redis and how to read the answer, but not how to wait for it.

A `Call` is run by `SyncRunner` or `AsyncRunner` (see `runner.py`), so that the protocol is written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from classifleet.config.keys import Keys
from classifleet.ledger import _scripts
from classifleet.ledger._scripts import Script

T = TypeVar("T")
MANUAL_ATTEMPT: Final = 0  # commits that no worker made: the finaliser's records of a cancelled job


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One question to Redis: a script or a plain command, its arguments, and the reading of its answer."""

    ask: Script | str
    keys: tuple[str, ...]
    args: tuple[Any, ...]
    read: Callable[[Any], T]


class Put(StrEnum):
    """What became of a chunk that a producer put."""

    QUEUED = "QUEUED"  # new, or already waiting: publish it
    LEASED = "LEASED"  # already at work
    DONE = "DONE"  # already finished
    SEALED = "SEALED"  # no chunk was given; the job was opened or sealed
    WINDOW = "WINDOW"  # the job has too many queued chunks: wait
    CONFLICT = "CONFLICT"  # the id belongs to a different request
    CANCELLED = "CANCELLED"  # the job was cancelled: nothing is taken
    UNKNOWN = "UNKNOWN"  # the job is gone


class Begin(StrEnum):
    """What a worker may do with a chunk that it was woken for."""

    RUN = "RUN"
    EXPIRED = "EXPIRED"  # leased like RUN, but its deadline has passed: answer without work
    JOIN = "JOIN"  # this process is at it already
    HELD = "HELD"  # another process is at it
    DONE = "DONE"
    CANCELLED = "CANCELLED"
    GONE = "GONE"  # the ledger does not know it (deleted or expired)


class Commit(StrEnum):
    """What became of a commit."""

    COMMITTED = "COMMITTED"
    REPEATED = "REPEATED"  # this very attempt had committed; the answer was lost on the way
    LATE = "LATE"  # another attempt won
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class Lease:
    """A chunk as `begin` hands it out. Times in milliseconds; `models` has versions where they are pinned."""

    outcome: Begin
    payload: bytes = b""
    attempt: int = 0
    deaths: int = 0
    waited_ms: int = 0
    left_ms: int | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tally:
    """Outcomes of a chunk's images."""

    ok: int = 0
    partial: int = 0
    failed: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """The winning commit of one chunk. `name` is its part in the sink, or empty when the records are in Redis."""

    chunk: str
    attempt: int
    ok: int
    partial: int
    failed: int
    name: str

    @property
    def images(self) -> int:
        """How many records it has."""
        return self.ok + self.partial + self.failed


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A queue's chunks and images by state, and the age in seconds of its oldest queued chunk."""

    queued_chunks: int
    leased_chunks: int
    queued_images: int
    leased_images: int
    done_images: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """Builds the calls of one namespace."""

    keys: Keys

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
    ) -> Call[Put]:
        """Open a job (with a header), add a chunk to it, seal it: any of the three, in this order, atomically."""
        return self._script(
            _scripts.PUT,
            (
                job,
                json.dumps(header) if header else "",
                request,
                chunk,
                images,
                payload,
                digest,
                "" if deadline_ms is None else deadline_ms,
                window,
                int(seal),
            ),
            lambda reply: Put(reply[0].decode()),
        )

    def put_blob(self, job: str, chunk: str, sha256: str, data: bytes, *, ttl_ms: int, cap: int) -> Call[bool]:
        """Park an image; false if all parked images together would exceed `cap` bytes."""
        return self._script(_scripts.PUT_BLOB, (job, chunk, sha256, data, ttl_ms, cap), bool)

    def get_blob(self, job: str, chunk: str, sha256: str) -> Call[bytes | None]:
        """A parked image."""
        return self._command("GET", self.keys.blob(job, chunk, sha256), lambda reply: reply)

    def begin(self, job: str, chunk: str, owner: str, *, lease_ms: int, latest: Mapping[str, str]) -> Call[Lease]:
        """Ask for a chunk; `latest` pins the versions of unversioned models at the job's first `begin`."""
        return self._script(_scripts.BEGIN, (job, chunk, owner, lease_ms, json.dumps(latest)), _read_lease)

    def renew(self, owner: str, leases: Sequence[tuple[str, str, int]], *, lease_ms: int) -> Call[list[bool]]:
        """Prolong leases given as (job, chunk, attempt); false where one is no longer held."""
        return self._script(_scripts.RENEW, (owner, lease_ms, *_flat(leases)), lambda reply: [bool(r) for r in reply])

    def commit(
        self,
        job: str,
        chunk: str,
        attempt: int,
        tally: Tally,
        *,
        part: str = "",
        records: Iterable[tuple[str, bytes]] = (),
    ) -> Call[tuple[Commit, bool]]:
        """Finish a chunk: the first commit wins. The flag says that the job now waits for its finaliser."""
        flat: list[Any] = [value for pair in records for value in pair]
        head = (job, chunk, attempt, tally.ok, tally.partial, tally.failed, json.dumps(dict(tally.codes)), part)
        return self._script(_scripts.COMMIT, (*head, *flat), lambda reply: (Commit(reply[0].decode()), bool(reply[1])))

    def hand_back(self, owner: str, leases: Sequence[tuple[str, str, int]]) -> Call[list[tuple[str, str]]]:
        """Return leases unused; nobody died. The answer lists the chunks to publish again."""
        return self._script(_scripts.HAND_BACK, (owner, *_flat(leases)), _read_members)

    def expire_leases(self, queue: str, *, limit: int) -> Call[list[tuple[str, str]]]:
        """Queue again what a silent worker held. The answer lists the chunks to publish again."""
        return self._script(_scripts.EXPIRE_LEASES, (queue, limit), _read_members)

    def oldest_queued(self, queue: str, older_than_ms: int, count: int) -> Call[list[tuple[str, str]]]:
        """The oldest queued chunks that have been queued since before a time on the ledger's clock."""
        return self._command(
            "ZRANGEBYSCORE", self.keys.queue(queue, "queued"), _read_members, "-inf", older_than_ms, "LIMIT", 0, count
        )

    def cancel(self, job: str) -> Call[str]:
        """Cancel a job: `CANCELLED`, `FINISHED` or `UNKNOWN`."""
        return self._script(_scripts.CANCEL, (job,), bytes.decode)

    def finish(self, job: str) -> Call[bool]:
        """End a job whose images are all done, and start its time to live."""
        return self._script(_scripts.FINISH, (job,), bool)

    def delete(self, job: str, *, page: int = 256) -> Call[int]:
        """Delete a page of a finished job: 1 when it is gone, 0 while there is more, -1 when it still runs."""
        return self._script(_scripts.DELETE, (job, page), int)

    def hold(self, duty: str, owner: str, *, lease_ms: int) -> Call[bool]:
        """Take or keep a fleet-wide duty."""
        return self._script(_scripts.HOLD, (duty, owner, lease_ms), bool)

    def job(self, job: str) -> Call[dict[str, str]]:
        """A job's fields; empty if there is no such job."""
        return self._command("HGETALL", self.keys.job(job), _read_map)

    def jobs(self, offset: int, count: int) -> Call[list[str]]:
        """Job ids, newest first."""
        return self._command("ZREVRANGE", self.keys.shared("jobs"), _read_strings, offset, offset + count - 1)

    def created(self, job: str) -> Call[float | None]:
        """When the job was made, in milliseconds; known for a while after the job itself has expired."""
        return self._command("ZSCORE", self.keys.shared("jobs"), lambda reply: reply, job)

    def now(self) -> Call[int]:
        """The ledger's clock, in milliseconds."""
        return Call("TIME", (), (), _read_time)

    def forget_job(self, job: str) -> Call[int]:
        """Drop the id of a job that has expired from the list of jobs."""
        return self._command("ZREM", self.keys.shared("jobs"), int, job)

    def queues(self) -> Call[list[str]]:
        """Names of all queues that ever had a chunk."""
        return self._command("SMEMBERS", self.keys.shared("queues"), lambda reply: sorted(_read_strings(reply)))

    def finalisable(self, count: int) -> Call[list[str]]:
        """Jobs that wait for their finaliser, oldest first."""
        return self._command("ZRANGE", self.keys.shared("finalise"), _read_strings, 0, count - 1)

    def pending(self, job: str, offset: int, count: int) -> Call[list[str]]:
        """Chunks of a job without a final answer."""
        return self._command("ZRANGE", self.keys.pending(job), _read_strings, offset, offset + count - 1)

    def chunk(self, job: str, chunk: str) -> Call[dict[str, str]]:
        """An unfinished chunk's fields; empty when it is finished or unknown."""
        return self._command("HGETALL", self.keys.chunk(job, chunk), _read_map)

    def log(self, job: str, offset: int, count: int) -> Call[list[str]]:
        """Finished chunks of a job in the order in which they finished."""
        return self._command("LRANGE", self.keys.log(job), _read_strings, offset, offset + count - 1)

    def part(self, job: str, chunk: str) -> Call[Part | None]:
        """The winning commit of a chunk."""
        return self._command("HGET", self.keys.parts(job), lambda reply: _read_part(chunk, reply), chunk)

    def records(self, job: str, chunk: str) -> Call[dict[str, bytes]]:
        """A chunk's records as JSON, by image id; empty when they expired or lie in a sink."""
        return self._command(
            "HGETALL", self.keys.records(job, chunk), lambda reply: {k.decode(): v for k, v in reply.items()}
        )

    def expire_records(self, job: str, chunk: str, seconds: int) -> Call[bool]:
        """Start the time to live of a chunk's records."""
        return self._command("EXPIRE", self.keys.records(job, chunk), bool, seconds)

    def depth(self, queue: str) -> list[Call[Any]]:
        """The calls whose answers `read_depth` turns into a `QueueDepth`."""
        return [
            self._command("ZCARD", self.keys.queue(queue, "queued"), int),
            self._command("ZCARD", self.keys.queue(queue, "leased"), int),
            self._command("HGETALL", self.keys.queue(queue, "images"), _read_map),
            self._command("ZRANGE", self.keys.queue(queue, "queued"), _read_first_score, 0, 0, "WITHSCORES"),
            self.now(),
        ]

    def _script(self, script: Script, args: tuple[Any, ...], read: Callable[[Any], T]) -> Call[T]:
        return Call(script, (self.keys.prefix,), args, read)

    def _command(self, name: str, key: str, read: Callable[[Any], T], *args: Any) -> Call[T]:
        return Call(name, (key,), args, read)


def read_depth(answers: Sequence[Any]) -> QueueDepth:
    """Put the answers of `Ledger.depth` together."""
    queued, leased, images, oldest_ms, now_ms = answers
    return QueueDepth(
        queued_chunks=queued,
        leased_chunks=leased,
        queued_images=int(images.get("queued", 0)),
        leased_images=int(images.get("leased", 0)),
        done_images=int(images.get("done", 0)),
        oldest_seconds=0.0 if oldest_ms is None else max(0.0, (now_ms - oldest_ms) / 1000),
    )


def _flat(leases: Sequence[tuple[str, str, int]]) -> list[str | int]:
    return [value for lease in leases for value in lease]


def _read_lease(reply: list[Any]) -> Lease:
    outcome = Begin(reply[0].decode())
    if outcome not in (Begin.RUN, Begin.EXPIRED):
        return Lease(outcome)
    _, payload, attempt, deaths, waited_ms, left_ms, models = reply
    return Lease(
        outcome,
        payload,
        attempt,
        deaths,
        waited_ms,
        int(float(left_ms)) if left_ms else None,
        tuple(json.loads(models)),
    )


def _read_members(reply: list[bytes]) -> list[tuple[str, str]]:
    pairs = (member.decode().split("/", 1) for member in reply)
    return [(job, chunk) for job, chunk in pairs]


def _read_strings(reply: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in reply]


def _read_map(reply: Mapping[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode("utf-8", "replace") for key, value in reply.items()}


def _read_first_score(reply: list[Any]) -> float | None:
    if not reply:
        return None
    first = reply[0]
    return float(first[1] if isinstance(first, (tuple, list)) else reply[1])


def _read_time(reply: tuple[int, int]) -> int:
    return reply[0] * 1000 + reply[1] // 1000


def _read_part(chunk: str, reply: bytes | None) -> Part | None:
    if reply is None:
        return None
    _, attempt, ok, partial, failed, name = reply.decode().split(" ", 5)
    return Part(chunk, int(attempt), int(ok), int(partial), int(failed), name)
