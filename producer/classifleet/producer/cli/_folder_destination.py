"""Records into a folder of this machine: the command collects them itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from classifleet.config import InvalidRequest
from classifleet.producer._flows import Progress
from classifleet.producer.cli._records import (
    FAILURES,
    RESULTS,
    SUMMARY,
    Collector,
    Summary,
    as_line,
    parse_summary,
    read_records,
    summary_text,
)
from classifleet.producer.fleet import Job
from classifleet.producer.result import Result


@dataclass(frozen=True, slots=True)
class FolderDestination:
    """A folder of this machine. A new run replaces what an earlier one left."""

    path: Path
    sink: str | None = None

    def prepare(self) -> None:
        """See `Destination`."""
        if self.path.exists() and not self.path.is_dir():
            raise InvalidRequest(f"--out {self.path}: it is a file, and a folder is needed")
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InvalidRequest(f"--out {self.path}: this process may not write there")

    def where(self, job: str) -> str:
        """See `Destination`."""
        return str(self.path / RESULTS)

    def last_job(self) -> str | None:
        """See `Destination`."""
        found = self._read_summary()
        return None if found is None else str(found["job"])

    def summary(self, job: str) -> Summary | None:
        """See `Destination`."""
        found = self._read_summary()
        return found if found is not None and found["job"] == job else None

    def failed(self, job: str) -> list[str]:
        """See `Destination`."""
        return [result.id for result in read_records(self.path / RESULTS) if not result.ok]

    @contextmanager
    def collect(self, job: str, *, merge: bool) -> Iterator[Collector]:
        """See `Destination`."""
        partial = {name: self.path / f".{name}.{job}" for name in (RESULTS, FAILURES)}
        with ExitStack() as stack:
            for path in partial.values():
                stack.callback(path.unlink, missing_ok=True)
            yield stack.enter_context(_RecordFiles(self.path, partial, merge=merge))

    def _read_summary(self) -> Summary | None:
        try:
            return parse_summary((self.path / SUMMARY).read_bytes())
        except FileNotFoundError:
            return None


class _RecordFiles:
    """Writes records to hidden files that take their places at the end."""

    reads = True

    def __init__(self, folder: Path, partial: Mapping[str, Path], *, merge: bool) -> None:
        self._folder = folder
        self._partial = partial
        self._merge = merge
        self._new: set[str] = set()
        self._counts = _Counts()
        self._stack = ExitStack()

    def __enter__(self) -> _RecordFiles:
        files = [self._stack.enter_context(self._partial[name].open("wb")) for name in (RESULTS, FAILURES)]
        self._results, self._failures = files
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, results: Sequence[Result]) -> None:
        """See `Collector`."""
        for result in results:
            if self._merge:
                self._new.add(result.id)
            self._write(result)

    def finish(self, job: Job, progress: Progress, about: Summary) -> Progress:
        """See `Collector`."""
        if self._merge:
            for result in read_records(self._folder / RESULTS):
                if result.id not in self._new:
                    self._write(result)
        self._stack.close()
        for name, path in self._partial.items():
            path.replace(self._folder / name)
        progress = self._counts.of(progress)
        (self._folder / SUMMARY).write_bytes(summary_text(job.id, progress, about))
        return progress

    def _write(self, result: Result) -> None:
        line = as_line(result)
        self._results.write(line)
        if not result.ok:
            self._failures.write(line)
        self._counts.add(result)


@dataclass(slots=True)
class _Counts:
    by_status: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        record = result.to_dict()
        self.by_status[record["status"]] += 1
        if "error" in record:
            self.by_code[record["error"]["code"]] += 1

    def of(self, progress: Progress) -> Progress:
        """The progress with these counts, which are of more than one job when runs were merged."""
        total = self.by_status.total()
        return replace(
            progress,
            total=total,
            accepted=total,
            done=total,
            ok=self.by_status["ok"],
            partial=self.by_status["partial"],
            failed=self.by_status["error"],
            by_code=dict(sorted(self.by_code.items())),
        )
