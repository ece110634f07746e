"""How a worker ends without loss: it takes nothing more, finishes what is at work, and hands back the rest.

asked once   not ready ─► reserves no more ─► at work is finished within `drain_seconds` ─► handed back ─► exit
asked again  what is at work is handed back at once
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

import structlog

from classifleet.worker.exits import EXIT_OK

log = structlog.get_logger(__name__)
POLL_SECONDS: Final = 0.1
CANCEL_SECONDS: Final = 2.0  # for the consumer to stop reserving
ABORT_SECONDS: Final = 5.0  # for chunks to let go
LAST_SECONDS: Final = 10.0  # for Celery to end


class Drained(Protocol):
    """What is drained; see `Runtime`."""

    def refuse(self) -> None:
        """Begin nothing more, and be not ready."""

    def stop_reserving(self, timeout: float) -> None:
        """Take no more messages."""

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is at work."""

    def at_work(self) -> int:
        """How many chunks are at work."""

    def abort(self) -> None:
        """Hand back what is at work."""

    def give_all_back(self) -> None:
        """Hand back what does not let go."""

    def finish(self, exitcode: int) -> None:
        """End the process in order."""


@dataclass(frozen=True, slots=True)
class _Request:
    why: str
    exitcode: int


class Drain:
    """Drains on a thread of its own, which starts with the process and waits for `request`."""

    def __init__(self, drained: Drained, seconds: float, *, exit_now: Callable[[int], None] = os._exit) -> None:
        self._drained = drained
        self._seconds = seconds
        self._exit_now = exit_now
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="classifleet-drain", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request(self, why: str, exitcode: int = EXIT_OK) -> None:
        """End the process; asked again, at once. May be called by a signal handler: it takes no lock."""
        self._requests.put(_Request(why, exitcode))

    def _run(self) -> None:
        asked = self._requests.get()
        try:
            self._drain(asked)
            self._drained.finish(asked.exitcode)
        except Exception:  # whatever it is, the process must still end: leases and messages come back by themselves
            log.exception("drain failed")
        time.sleep(LAST_SECONDS)
        log.error("the worker does not end by itself; ended", exitcode=asked.exitcode)
        self._exit_now(asked.exitcode)

    def _drain(self, asked: _Request) -> None:
        began = time.monotonic()
        log.info("draining", because=asked.why, chunks=self._drained.at_work(), seconds=self._seconds)
        self._drained.refuse()
        self._drained.stop_reserving(CANCEL_SECONDS)
        if not self._finished(began + self._seconds):
            log.warning("handing back what is at work", chunks=self._drained.at_work())
            self._drained.abort()
            if not self._drained.wait_idle(ABORT_SECONDS):
                log.error("chunks do not let go; their leases are handed back", chunks=self._drained.at_work())
                self._drained.give_all_back()
        log.info("drained", seconds=round(time.monotonic() - began, 2))

    def _finished(self, end: float) -> bool:
        """Whether all that is at work was finished: in time, and before anyone asked again."""
        while not self._drained.wait_idle(POLL_SECONDS):
            if time.monotonic() >= end or not self._requests.empty():
                return False
        return True
