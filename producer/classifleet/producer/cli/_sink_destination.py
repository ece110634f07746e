"""Records into a sink: the workers write them, and the command adds an account of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from classifleet.config import ClassifleetError
from classifleet.config.storage import Store
from classifleet.producer._flows import Progress
from classifleet.producer.cli._records import (
    FAILURES,
    SUMMARY,
    Collector,
    Summary,
    as_line,
    parse_summary,
    summary_text,
)
from classifleet.producer.cli._terminal import warn
from classifleet.producer.fleet import Job
from classifleet.producer.result import Result


@dataclass(frozen=True, slots=True)
class SinkDestination:
    """A sink that the workers write to; what the jobs left lies there side by side."""

    sink: str
    store: Store

    def prepare(self) -> None:
        """See `Destination`. The workers' rights count, and those are not known here."""

    def where(self, job: str) -> str:
        """See `Destination`."""
        return f"{self.sink}/{job}/"

    def last_job(self) -> str | None:
        """See `Destination`."""
        return None

    def summary(self, job: str) -> Summary | None:
        """See `Destination`."""
        try:
            return parse_summary(self.store.get(f"{job}/{SUMMARY}"))
        except FileNotFoundError:
            return None

    def failed(self, job: str) -> list[str]:
        """See `Destination`."""
        lines = self.store.get(f"{job}/{FAILURES}").splitlines()
        return [Result.from_record(line).id for line in lines]

    @contextmanager
    def collect(self, job: str, *, merge: bool) -> Iterator[Collector]:
        """See `Destination`."""
        yield _SinkCollector(self.store)


class _SinkCollector:
    """Adds the summary and the failures to what the workers wrote."""

    reads = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def take(self, results: Sequence[Result]) -> None:
        """See `Collector`."""

    def finish(self, job: Job, progress: Progress, about: Summary) -> Progress:
        """See `Collector`."""
        incomplete = progress.failed + progress.partial
        failures = [as_line(r) for r in job.results(follow=False) if not r.ok] if incomplete else []
        try:
            self._store.put(f"{job.id}/{FAILURES}", b"".join(failures))
            self._store.put(f"{job.id}/{SUMMARY}", summary_text(job.id, progress, about))
        except ClassifleetError as error:  # the records are there; only the account of them is not
            warn(f"{FAILURES} and {SUMMARY} are not written: {error}")
        return progress
