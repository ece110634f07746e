"""Suspect chunks work alone in their process; all others share it.

A chunk whose workers died twice may hold the image that killed them. It waits until nothing else is at work, and what
comes meanwhile waits for it. Between its images it lets pass what is interactive, and at its end all that waits, so
that nobody waits for more than one image, or one suspect chunk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from classifleet.config import Lane


class GateClosed(Exception):
    """It did not open in time, or the process is ending."""


class Turn:
    """A suspect's time alone; `inside` while nobody else passes, `over` when it has left for good."""

    __slots__ = ("_moved", "inside", "over")

    def __init__(self) -> None:
        self.inside = True
        self.over = False
        self.progress()

    def progress(self) -> None:
        """It goes on with its next image."""
        self._moved = time.monotonic()

    def still_seconds(self) -> float:
        """For how long it has been at the same image; 0 while others pass."""
        return time.monotonic() - self._moved if self.inside else 0.0


class Gate:
    """A lock for readers (ordinary chunks) and writers (suspect ones). Safe across threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False
        self._suspects = 0  # that wait
        self._waiting: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._passes: dict[Lane, int] = {"interactive": 0, "bulk": 0}  # who may overtake suspects that wait
        self._closed = False

    @contextmanager
    def shared(self, lane: Lane, timeout: float) -> Iterator[None]:
        """Work beside others.

        Raises:
            GateClosed: It did not open within so many seconds, or `close` was called.
        """
        with self._changed:
            self._waiting[lane] += 1
            try:
                self._wait(lambda: self._may_share(lane), timeout)
            finally:
                self._waiting[lane] -= 1
                self._passes[lane] = max(0, self._passes[lane] - 1)
                self._changed.notify_all()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, timeout: float) -> Iterator[Turn]:
        """Work while nothing else does; errors as for `shared`."""
        self._enter(timeout)
        turn = Turn()
        try:
            yield turn
        finally:
            with self._changed:
                turn.over = True
                if turn.inside:
                    self._alone = False
                    self._passes.update(self._waiting)
                self._changed.notify_all()

    def let_pass(self, turn: Turn, timeout: float) -> bool:
        """Between two images of the one that is alone: let pass what is interactive. Whether there was any.

        It may wait on a thread of its own, and be left behind there when the turn ends.

        Raises:
            GateClosed: As for `shared`, or the turn is over; the caller is not alone any more.
        """
        with self._changed:
            if turn.over:
                raise GateClosed
            if not self._waiting["interactive"]:
                return False
            self._passes["interactive"] = self._waiting["interactive"]
            turn.inside = self._alone = False
            self._enter_again(turn, timeout)
        return True

    def interactive_waits(self) -> bool:
        """Whether `let_pass` would let anyone pass."""
        return self._waiting["interactive"] > 0

    def close(self) -> None:
        """Nobody enters any more; who waits hears `GateClosed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, timeout: float) -> None:
        with self._changed:
            self._suspects += 1
            try:
                self._wait(self._may_be_alone, timeout)
                self._alone = True
            finally:
                self._suspects -= 1
                self._changed.notify_all()

    def _enter_again(self, turn: Turn, timeout: float) -> None:
        self._suspects += 1
        self._changed.notify_all()
        try:
            self._wait(lambda: turn.over or self._may_be_alone(), timeout)
            if turn.over:
                raise GateClosed
            turn.progress()
            turn.inside = self._alone = True
        finally:
            self._suspects -= 1
            self._changed.notify_all()

    def _may_share(self, lane: Lane) -> bool:
        return not self._alone and (self._suspects == 0 or self._passes[lane] > 0)

    def _may_be_alone(self) -> bool:
        return not self._alone and self._sharing == 0 and not any(self._passes.values())

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not condition():
            left = end - time.monotonic()
            if self._closed or left <= 0:
                raise GateClosed
            self._changed.wait(left)
        if self._closed:
            raise GateClosed
