"""What the ledger is told, and what it answers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

MANUAL_ATTEMPT: Final = 0  # commits that no worker made: the reconciler's records
FORGOTTEN_SECONDS: Final = 3600  # an image parked so long ago has lost its producer: that one parks it anew before


class Put(StrEnum):
    """What became of a chunk that a producer put."""

    QUEUED = "QUEUED"  # new, or already waiting: publish it
    LEASED = "LEASED"  # already at work
    DONE = "DONE"  # already finished
    SEALED = "SEALED"  # no chunk was given; the job was opened or sealed
    PARKED = "PARKED"  # already here; no worker understood it yet
    WINDOW = "WINDOW"  # the job has too many queued chunks: wait
    FULL = "FULL"  # the queue, or Redis, has no room: wait, or refuse
    CONFLICT = "CONFLICT"  # the id belongs to a different request
    CANCELLED = "CANCELLED"  # the job was cancelled: nothing is taken
    ABANDONED = "ABANDONED"  # the job ended since its producer had been silent for too long
    UNKNOWN = "UNKNOWN"  # the job is gone
    INCOMPLETE = "INCOMPLETE"  # not sealed: Redis has lost chunks that its producer had put


@dataclass(frozen=True, slots=True)
class PutReply:
    """The answer to a `put`. `lacks` is what a refusal with `FULL` ran out of: `queue` or `memory`."""

    outcome: Put
    lacks: str = ""
    queued_images: int = 0
    queue: str = ""


class Parked(IntEnum):
    """What became of an image that was to be parked in Redis."""

    STORED = 0
    OVER_CAP = 1
    NO_MEMORY = 2


class Discarded(IntEnum):
    """What became of a dead letter that was to be dropped."""

    UNKNOWN = 0
    DROPPED = 1
    DROPPED_LAST = 2  # of an image that is not in Redis, no letter is left that needs it


class Begin(StrEnum):
    """What a worker may do after a wake-up call."""

    RUN = "RUN"
    EXPIRED = "EXPIRED"  # leased like RUN, but its deadline has passed: answer without work
    JOIN = "JOIN"  # this process is at it already
    HELD = "HELD"  # another process is at it
    DONE = "DONE"
    CANCELLED = "CANCELLED"
    PARKED = "PARKED"  # it waits for a worker that understands it
    GONE = "GONE"  # the ledger does not know it (deleted or expired)


class Commit(StrEnum):
    """What became of a commit."""

    COMMITTED = "COMMITTED"
    REPEATED = "REPEATED"  # this very attempt had committed; the answer was lost on the way
    LATE = "LATE"  # another attempt won
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class Lease:
    """A chunk as `begin` hands it out; it need not be the one that the wake-up call named.

    Times are milliseconds; `models` has versions where they are pinned; `lone_deaths` are ids of images that a worker
    was alone with when it died, once for each death; `digest` is of the payload and `grant` of this lease, for
    `commit`; `trace` is the submitter's, if any.
    """

    outcome: Begin
    job: str = ""
    chunk: str = ""
    payload: bytes = b""
    attempt: int = 0
    deaths: int = 0
    waited_ms: int = 0
    left_ms: int | None = None
    models: tuple[str, ...] = ()
    lone_deaths: tuple[str, ...] = ()
    digest: str = ""
    trace: str = ""
    grant: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a commit keeps of an image that failed for a reason of ours.

    `body` is JSON with at least `job`, `chunk` and `item`; `ref` is the item's, which may name a parked image.
    """

    key: str
    code: str
    ref: str
    body: str


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
    """A queue's chunks and images by state, its rates, and the age in seconds of its oldest queued chunk.

    Rates are images per second, over the last minute.
    """

    queued_chunks: int
    leased_chunks: int
    parked_chunks: int
    queued_images: int
    leased_images: int
    parked_images: int
    done_images: int
    oldest_seconds: float
    accepted_rate: float
    done_rate: float


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """What a worker has done.

    Attributes:
        images: Records since its start.
        failed: Those of them without a full answer, by error code or `partial`.
        images_per_second: In the seconds before its last word.
        batch_images: Mean of the forward passes in that time; 0 if there were none.
        batch_fill: The same as a share of what the batches could have held.
    """

    images: int = 0
    failed: Mapping[str, int] = field(default_factory=dict, hash=False)
    images_per_second: float = 0.0
    batch_images: float = 0.0
    batch_fill: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A process of the fleet. Without `pools` it is an exporter; `silent_seconds` is since it was last heard of.

    Attributes:
        models: That are ready, with versions.
        loadable: What jobs may ask it for, ready or not: with versions, and the names that it has a version for.
    """

    owner: str
    pools: tuple[str, ...]
    models: tuple[str, ...]
    version: str
    silent_seconds: float = 0.0
    figures: WorkerFigures = WorkerFigures()
    loadable: tuple[str, ...] = ()
