"""The wake-up calls that this process is at: counted, so that a drain knows when it is done and a probe what hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """What is at work, and since when something last began, went forward or ended. Safe across threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._moved = time.monotonic()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more while the block runs."""
        self._move(1)
        try:
            yield
        finally:
            self._move(-1)

    def progress(self) -> None:
        """Something at work went forward."""
        self._move(0)

    def _move(self, by: int) -> None:
        with self._changed:
            self._count += by
            self._moved = time.monotonic()
            self._changed.notify_all()

    @property
    def count(self) -> int:
        """How many are at work."""
        return self._count

    def still_seconds(self) -> float:
        """For how long something has been at work and nothing has begun, gone forward or ended; 0 when idle."""
        return time.monotonic() - self._moved if self._count else 0.0

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is at work; false if something still is after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout)
