"""The time of one fetch: what it may work for, and when its job ends.

Waiting for a slot, for memory or for a host's turn is our doing and is not counted as work; the job's deadline counts
everything.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Clock:
    """Made when a fetch is asked for, on the event loop.

    Args:
        work_seconds: From the first connection to the last byte, retries and redirects included.
        limit_seconds: From now on, waiting included; None for no limit.
    """

    def __init__(self, work_seconds: float, limit_seconds: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._limit = math.inf if limit_seconds is None else now + limit_seconds
        self._expires_at = now + work_seconds
        self._timeout: asyncio.Timeout | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds of work that are left."""
        return min(self._limit, self._expires_at) - self._loop.time()

    @asynccontextmanager
    async def queueing(self) -> AsyncIterator[None]:
        """What happens here is waiting.

        Raises:
            TimeoutError: The job's deadline has passed.
        """
        began = self._loop.time()
        if began >= self._limit:
            raise TimeoutError
        async with asyncio.timeout_at(self._when(self._limit)):
            yield
        self._expires_at += self._loop.time() - began

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """What happens here is work.

        Raises:
            TimeoutError: The time is up.
        """
        async with asyncio.timeout_at(min(self._limit, self._expires_at)) as self._timeout:
            try:
                yield
            finally:
                self._timeout = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here, within work, is waiting."""
        began = self._loop.time()
        self._reschedule(self._limit)
        try:
            yield
        finally:
            self._expires_at += self._loop.time() - began
            self._reschedule(min(self._limit, self._expires_at))

    def cut(self) -> None:
        """End the work that is under way with a TimeoutError; without effect if there is none."""
        self._reschedule(self._loop.time())

    def _reschedule(self, when: float) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self._when(when))

    @staticmethod
    def _when(time: float) -> float | None:
        return None if math.isinf(time) else time
