"""Continuous load: bulk jobs with and without a sink and single images, submitted until told to stop.

A submission that a fault interrupts is repeated with the same id until it is accepted, as a careful caller does; what
has been accepted is on record here, and the verdict holds the fleet to it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from classifleet.config import QueueFull, Unavailable, UnknownJob
from classifleet.producer import Fleet
from tests.chaos.model import MODEL
from tests.chaos.observer import Observer

BULK_IMAGES: Final = 48
CHUNK_SIZE: Final = 8
BACKLOG_IMAGES: Final = 240
MOST_PER_SECOND: Final = 80.0  # images: what a long fault leaves must be audited, too
RETRY_SECONDS: Final = 0.2
STOP_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that was accepted, and the ids of its images."""

    job: str
    ids: tuple[str, ...]
    sink: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where photos come from: the next file to be sent along, and the next reference."""

    photo: Callable[[], Path]
    ref: Callable[[], str]


class Load:
    """Submits on a thread of its own. A context manager; `stop` returns when the last submission is accepted."""

    def __init__(
        self, source: Source, fleet: Fleet, observer: Observer, prefix: str, *, sink: str, backlog: int
    ) -> None:
        self.accepted: list[Accepted] = []
        self.refusals: dict[str, int] = {}
        self._source = source
        self.after: Callable[[Accepted], None] = lambda accepted: None
        self._fleet = fleet
        self._observer = observer
        self._prefix = prefix
        self._sink = sink
        self._backlog = backlog
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._submissions: dict[str, Callable[[], Accepted]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(STOP_SECONDS)
        if kind is None:
            if self._failure is not None:
                raise self._failure
            assert not self._thread.is_alive(), "the last submission was never accepted"

    @property
    def images(self) -> int:
        """Images accepted so far."""
        return sum(len(each.ids) for each in self.accepted)

    def again(self) -> int:
        """After the end: submit anew what is not known any more; how many jobs that were."""
        forgotten = [each.job for each in self.accepted if not self._known(each.job)]
        for job in forgotten:
            self._submissions[job]()
        return len(forgotten)

    def _known(self, job: str) -> bool:
        try:
            self._fleet.job(job).progress()
        except UnknownJob:
            return False
        return True

    def _run(self) -> None:
        try:
            for submission in self._endless():
                self._until_accepted(submission)
                self._wait_for_room()
                if self._stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the load is stopped
            self._failure = error

    def _endless(self) -> Iterator[Callable[[], Accepted]]:
        for turn in itertools.count():
            name = f"{self._prefix}-{turn}"
            yield self._bulk(f"{name}-bulk", None)
            for single in range(6):
                yield self._single(f"{name}-single-{single}", inline=single == 0)
            yield self._bulk(f"{name}-sink", self._sink)

    def _bulk(self, job: str, sink: str | None) -> Callable[[], Accepted]:
        items: list[Any] = [(f"{job}/{n}", self._source.ref()) for n in range(BULK_IMAGES)]

        def submit() -> Accepted:
            self._fleet.submit_many(items, models=MODEL, job_id=job, sink=sink, chunk_size=CHUNK_SIZE)
            return Accepted(job, tuple(item[0] for item in items), sink)

        return submit

    def _single(self, job: str, *, inline: bool) -> Callable[[], Accepted]:
        ref = self._source.photo() if inline else self._source.ref()

        def submit() -> Accepted:
            self._fleet.submit(ref, models=MODEL, id=job)
            return Accepted(job, (job,))

        return submit

    def _until_accepted(self, submit: Callable[[], Accepted]) -> None:
        late: float | None = None
        while True:
            try:
                accepted = submit()
                self._submissions[accepted.job] = submit
                self.after(accepted)
                self.accepted.append(accepted)
                return
            except (Unavailable, QueueFull) as error:
                name = type(error).__name__
                self.refusals[name] = self.refusals.get(name, 0) + 1
                if self._stopped.is_set():
                    late = late or time.monotonic() + STOP_SECONDS
                    if time.monotonic() > late:
                        raise
                time.sleep(RETRY_SECONDS)

    def _wait_for_room(self) -> None:
        while not self._stopped.is_set():
            if self.images < MOST_PER_SECOND * (time.monotonic() - self._began) + self._backlog and self._room():
                return
            self._stopped.wait(0.02)

    def _room(self) -> bool:
        try:
            return self._observer.count("queued") < self._backlog
        except (redis.RedisError, OSError):
            return True  # a fault: the next submission meets it too
