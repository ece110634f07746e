"""How long the work that was in flight at a fault takes to be committed after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import redis

from tests.chaos.observer import AtWork, Observer

POLL_SECONDS = 0.05


class Recovery:
    """One fault: the chunks that were at work, and when they were committed.

    Of a fault that has victims only a later attempt counts: the commit of the victim's own may have been on its way.
    """

    def __init__(self, chunks: Sequence[AtWork], *, by_others: bool) -> None:
        self._began = time.monotonic()
        self._left = list(chunks)
        self._by_others = by_others
        self.first_seconds: float | None = None
        self.all_seconds: float | None = None

    def look(self, observer: Observer) -> bool:
        """Note what has been committed; whether all has."""
        attempts = observer.attempts(self._left)
        now = time.monotonic() - self._began
        done = [
            won > each.attempt or not self._by_others
            for won, each in zip(attempts, self._left, strict=True)
            if won is not None
        ]
        if any(done):
            self.first_seconds = self.first_seconds or now
            self.all_seconds = now
        self._left = [each for won, each in zip(attempts, self._left, strict=True) if won is None]
        return not self._left

    @property
    def left(self) -> int:
        """Chunks that have no commit yet."""
        return len(self._left)


class Watcher:
    """Follows the recoveries of a scenario on a thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._open: list[Recovery] = []
        self._all: list[Recovery] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-watcher", daemon=True)
        self._thread.start()

    def add(self, recovery: Recovery) -> None:
        """Follow it from now on."""
        with self._lock:
            self._open.append(recovery)
            self._all.append(recovery)

    def close(self) -> list[Recovery]:
        """End; all recoveries, with a last look at those that are open."""
        self._closed.set()
        self._thread.join()
        self._look()
        self._observer.close()
        return self._all

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                self._look()
            except (redis.RedisError, OSError):
                continue  # that is the fault: it is looked at again

    def _look(self) -> None:
        with self._lock:
            watched = list(self._open)
        finished = [each for each in watched if each.look(self._observer)]
        with self._lock:
            self._open = [each for each in self._open if each not in finished]


def problems(recoveries: Sequence[Recovery], most_seconds: float) -> list[str]:
    """What is wrong with them: work that was in flight at a fault was not committed, or too late."""
    left = sum(each.left for each in recoveries)
    late = sum(each.all_seconds is not None and each.all_seconds > most_seconds for each in recoveries)
    found = [
        (left, f"{left} chunks that were in flight at a fault have no commit"),
        (late, f"the work in flight at {late} faults took longer than {most_seconds:g} s to be committed"),
    ]
    return [text for count, text in found if count]


def slowest(recoveries: Sequence[Recovery]) -> tuple[float | None, float | None]:
    """The longest wait for a first commit, and for the last, of all faults."""
    first = [each.first_seconds for each in recoveries if each.first_seconds is not None]
    complete = [each.all_seconds for each in recoveries if each.all_seconds is not None]
    return max(first, default=None), max(complete, default=None)
