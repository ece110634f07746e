"""Slots for fetches: the slow give theirs back.

A fetch begins in one of the fast slots. One that has been at work for longer than a second moves to a slow slot, of
which there are more, since what is slow mostly waits. So a stranger whose server drips holds no place that others
need. While no slow slot is free, the slow keep their fast ones, the longest at work first to move. Fast slots go to
interactive images first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from classifleet.config import Lane
from classifleet.worker.ingest.pace import SLOW_AFTER_SECONDS
from classifleet.worker.lanes import LaneSlots


class Slot:
    """A place of one fetch."""

    __slots__ = ("_slots", "_timer", "lane", "slow")

    def __init__(self, slots: FetchSlots, lane: Lane) -> None:
        self._slots = slots
        self.lane = lane
        self._timer: asyncio.TimerHandle | None = None
        self.slow = False

    def begin(self) -> None:
        """Work begins now; what was waited for until now does not make it slow."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._slots.slow_after_seconds, self._slots.overdue, self)

    def end(self) -> None:
        """Work has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self._slots.leave(self)


class FetchSlots:
    """Fast and slow slots, on one event loop.

    Args:
        fast: Slots that fetches begin in.
        slow: Slots for those that take longer.
        slow_after_seconds: How long that is, at work.
        own: Of the fast ones, those that each lane has for itself; see `LaneSlots`.
    """

    def __init__(
        self, fast: int, slow: int, *, slow_after_seconds: float = SLOW_AFTER_SECONDS, own: int | None = None
    ) -> None:
        self.slow_after_seconds = slow_after_seconds
        self._fast = LaneSlots(fast, own)
        self._slow_slots = slow
        self._held, self._slow_held = 0, 0
        self._overdue: deque[Slot] = deque()

    @property
    def fast_held(self) -> int:
        """Fast slots that are taken."""
        return self._held - self._slow_held

    @property
    def slow_held(self) -> int:
        """Slow slots that are taken."""
        return self._slow_held

    @asynccontextmanager
    async def slot(self, lane: Lane = "bulk") -> AsyncIterator[Slot]:
        """Wait for a fast slot and hold it, or the slow one that it becomes."""
        await self._fast.acquire(lane)
        self._held += 1
        slot = Slot(self, lane)
        try:
            yield slot
        finally:
            slot.end()

    def overdue(self, slot: Slot) -> None:
        """A slot's work takes long: move it, now or when there is room."""
        self._overdue.append(slot)
        self._move()

    def leave(self, slot: Slot) -> None:
        """Free a slot."""
        self._held -= 1
        if slot.slow:
            self._slow_held -= 1
            self._move()
            return
        if slot in self._overdue:
            self._overdue.remove(slot)
        self._fast.release(slot.lane)

    def _move(self) -> None:
        while self._overdue and self._slow_held < self._slow_slots:
            slot = self._overdue.popleft()
            slot.slow = True
            self._slow_held += 1
            self._fast.release(slot.lane)
