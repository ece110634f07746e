"""What a run of `classifleet bulk` leaves: records, those that failed, and a summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from classifleet.config import StorageError
from classifleet.producer._flows import Progress
from classifleet.producer.fleet import Job
from classifleet.producer.result import Result

RESULTS: Final = "results.ndjson"
FAILURES: Final = "failures.ndjson"
SUMMARY: Final = "summary.json"
Summary = Mapping[str, Any]


class Collector(Protocol):
    """Takes the results of one run."""

    reads: bool  # whether it wants them at all

    def take(self, results: Sequence[Result]) -> None:
        """The next results, each exactly once."""

    def finish(self, job: Job, progress: Progress, about: Summary) -> Progress:
        """The job has ended: put everything in its place. Answers with the counts of what is there now."""


class Destination(Protocol):
    """A place for records."""

    @property
    def sink(self) -> str | None:
        """What the workers are told, if they write."""

    def prepare(self) -> None:
        """Find out before anything is started whether it can be written."""

    def where(self, job: str) -> str:
        """Where a person finds the records."""

    def last_job(self) -> str | None:
        """The job whose records are there, if there is one only."""

    def summary(self, job: str) -> Summary | None:
        """What was written when the job ended."""

    def failed(self, job: str) -> list[str]:
        """The ids of the job's images without a full answer."""

    def collect(self, job: str, *, merge: bool) -> AbstractContextManager[Collector]:
        """A collector; nothing of what was there is lost unless it finishes. `merge` keeps records of other ids."""


def read_records(file: Path) -> Iterator[Result]:
    """The results that a file holds, lazily."""
    with file.open("rb") as lines:
        yield from map(Result.from_record, lines)


def as_line(result: Result) -> bytes:
    """A result as a line of a file."""
    return json.dumps(result.to_dict(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def parse_summary(data: bytes) -> Summary:
    """Read a summary.

    Raises:
        StorageError: It is none of ours.
    """
    try:
        found = json.loads(data)
        if isinstance(found, dict) and isinstance(found.get("job"), str):
            return found
    except ValueError:
        pass  # the same as any other content
    raise StorageError(f"{SUMMARY} in the destination is not one that `classifleet bulk` wrote")


def summary_text(job: str, progress: Progress, about: Summary) -> bytes:
    """A summary of a job's end."""
    fields: dict[str, Any] = {
        "job": job,
        **about,
        "state": progress.state,
        "images": progress.done,
        "ok": progress.ok,
        "partial": progress.partial,
        "failed": progress.failed,
        "by_code": progress.by_code,
        "images_per_second": round(progress.rate, 1),
    }
    return json.dumps(fields, indent=1).encode() + b"\n"
