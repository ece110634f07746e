"""Whether an image keeps us waiting by no doing of ours.

Connecting, reading, pauses between attempts and waiting for a turn at the host are the stranger's time; waiting for
our own slots and memory is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SLOW_AFTER_SECONDS: Final = 1.0

Notify = Callable[[bool], None]


class Pace:
    """The stranger's time of one fetch, on the event loop.

    Args:
        notify: Called with True when it has taken longer than a second, and with False when it waits for us again,
            or is over.
        slow_after_seconds: How long that second is.
    """

    __slots__ = ("_began", "_left", "_notify", "_timer")

    def __init__(self, notify: Notify | None = None, *, slow_after_seconds: float = SLOW_AFTER_SECONDS) -> None:
        self._notify: Notify = notify or (lambda _: None)
        self._left = slow_after_seconds
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on it is the stranger's time."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._timer = loop.call_later(max(0.0, self._left), self._notify, True)

    def end(self) -> None:
        """From now on it is not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left -= asyncio.get_running_loop().time() - self._began
        self._notify(False)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """What happens here is our time."""
        self.end()
        try:
            yield
        finally:
            self.begin()
