"""Looks at the model repository again and again, and at once when it is told to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)
TIDY_SECONDS: Final = 30.0


class Polling:
    """A thread that looks at the repository every so many seconds, and lets what is not used any more be unloaded.

    Args:
        look: Looks at the repository; also at what failed, if so.
        tidy: Unloads.
        seconds: Between two looks, about, so that a fleet does not look all at once; 0: only when it is told to.
    """

    def __init__(self, look: Callable[[bool], None], tidy: Callable[[], None], seconds: float) -> None:
        self._look = look
        self._tidy = tidy
        self._seconds = seconds
        self._told = threading.Event()
        self._again = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="classifleet-polling", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def now(self) -> None:
        """Look at once, also at what failed; callable from a signal's handler."""
        self._again = True
        self._told.set()

    def soon(self) -> None:
        """Look at once for what is new."""
        self._told.set()

    def close(self) -> None:
        """End the thread; one that waits for an object store is left alone."""
        self._closed = True
        self._told.set()

    def _run(self) -> None:
        while True:
            told = self._told.wait((self._seconds or TIDY_SECONDS) * random.uniform(0.8, 1.2))
            if self._closed:
                return
            self._told.clear()
            again, self._again = self._again, False
            try:
                if told or self._seconds:
                    self._look(again)
                self._tidy()
            except Exception:  # a defect must not end the thread: nothing new would ever be found
                log.exception("polling the model repository")
