"""What a fleet in memory knows of jobs, chunks and images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from classifleet.config import Lane, Options, Payload
from classifleet.ledger import Part

_COUNTS: Final = ("accepted", "queued", "done", "ok", "partial", "failed")  # of images; "queued" is of chunks


@dataclass(frozen=True, slots=True)
class Submission:
    """One image as the fleet took it.

    Attributes:
        job: The job's id; for a single image also its own.
        id: The image's id.
        ref: The reference. Bytes and files become `data:…`, or `blob:<sha256>` if they are
            large (`claim:<sha256>` with a claim store).
        data: The image itself, if it was submitted as bytes, a `Path` or `data:`.
        models: As named in the call.
        meta: The caller's own map.
        lane: `interactive` or `bulk`.
        options: top_k, scores, threshold.
        sink: The job's sink.
    """

    job: str
    id: str
    ref: str
    data: bytes | None
    models: tuple[str, ...]
    meta: Mapping[str, str]
    lane: Lane
    options: Options
    sink: str | None


@dataclass(slots=True)
class MemoryChunk:
    """A chunk. It is queued until it is taken, and done when it has records."""

    payload: Payload
    digest: str
    images: tuple[Submission, ...]
    queued_at: int
    deadline_at: int | None
    state: str = "queued"
    records: dict[str, bytes] = field(default_factory=dict)
    part: Part | None = None


@dataclass(slots=True)
class MemoryJob:
    """A job with its chunks."""

    header: Mapping[str, str]
    digest: str
    times: dict[str, int]
    state: str = "open"
    chunks: dict[str, MemoryChunk] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    def fields(self) -> dict[str, str]:
        """The job's hash as Redis would give it."""
        counts = {name: str(self.counts[name]) for name in _COUNTS}
        codes = {f"code:{code}": str(count) for code, count in self.codes.items()}
        times = {name: str(ms) for name, ms in self.times.items()}
        return {**self.header, "state": self.state, **times, **counts, **codes}


def now_ms() -> int:
    """The ledger's clock."""
    return time.time_ns() // 1_000_000
