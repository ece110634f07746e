"""One budget for the bytes of images that are being fetched, or wait to be decoded.

Each fetch holds what has arrived, not what a server announces: a stranger who announces much and sends little holds
little. Above half of the budget no fetch begins. What is under way grows as long as there is room; when there is
none it waits, and one at a time may draw on a reserve that is as large as an image, so that something always
finishes. Waiting for memory is not counted as work. Whoever makes others wait for two seconds because of bytes that
they sit on, without waiting themselves, is cut: the one with the most bytes for the longest time first.

    with image_memory() as memory:      # in the task of one image
        data = await fetcher.fetch(…)   # the bytes stay charged
        …decode…
        del data
        memory.release()
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import Final, Self

from classifleet.worker.ingest.clock import Clock
from classifleet.worker.instruments import FETCH_EVICTIONS, FETCHED_BYTES

SHORT_SECONDS: Final = 2.0  # how long others wait before somebody is cut, and how long that one was given
SITTING_SHARE: Final = 4  # nobody is cut for less than this part (a quarter) of the budget


class Hold:
    """The bytes of one image, and the clock of its fetch."""

    __slots__ = ("_budget", "began", "bytes", "clock", "closed", "evicted", "waits")

    def __init__(self, budget: MemoryBudget, clock: Clock) -> None:
        self._budget = budget
        self.clock = clock
        self.began = asyncio.get_running_loop().time()
        self.bytes = 0
        self.waits = False
        self.closed = False
        self.evicted = False

    async def grow(self, size: int) -> None:
        """Hold `size` bytes more; waits while there is no room for them.

        Raises:
            TimeoutError: The fetch has been given up meanwhile.
        """
        if self.closed:
            raise TimeoutError
        if not self._budget.take(self, size):
            self.waits = True
            try:
                with self.clock.paused():
                    await self._budget.wait(self, size)
            finally:
                self.waits = False

    def charge(self, size: int) -> None:
        """Hold `size` bytes more that are in memory already, whether there is room or not."""
        self._budget.add(self, size)

    def arrived(self) -> None:
        """The image is whole: from now on it is not cut."""
        self._budget.under_way.discard(self)

    def drop(self) -> None:
        """Hold nothing for now: what has arrived is thrown away."""
        self._budget.drop(self)

    def release(self) -> None:
        """Hold nothing any more."""
        self.closed = True
        self.arrived()
        self.drop()


class MemoryBudget:
    """A number of bytes, on one event loop.

    Args:
        total_bytes: Held by all images together, at most; what is charged and not asked for comes on top.
        image_bytes: Of one image, at most.
    """

    def __init__(self, total_bytes: int, image_bytes: int) -> None:
        self._total = total_bytes
        self._shared = total_bytes - image_bytes
        self._used = 0
        self._favoured: Hold | None = None  # the one that draws on the reserve, until it gives back its bytes
        self.under_way: set[Hold] = set()
        self._growing: deque[tuple[Hold, int, asyncio.Future[None]]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._used

    def hold(self, clock: Clock) -> Hold:
        """A hold of nothing yet, for the fetch with this clock."""
        hold = Hold(self, clock)
        self.under_way.add(hold)
        return hold

    async def room(self) -> None:
        """Wait until less than half is used."""
        while self._used > self._total // 2:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._beginning.append(turn)
            try:
                await self._wait(turn)
            finally:
                turn.cancel()

    def take(self, hold: Hold, size: int) -> bool:
        """Charge bytes to a hold, if there is room and nobody waits for it."""
        if hold is not self._favoured and (self._growing or self._used + size > self._shared):
            return False
        self.add(hold, size)
        return True

    def add(self, hold: Hold, size: int) -> None:
        """Charge bytes to a hold."""
        self._used += size
        hold.bytes += size
        FETCHED_BYTES.set(self._used)

    async def wait(self, hold: Hold, size: int) -> None:
        """Charge bytes to a hold when its turn has come.

        Raises:
            TimeoutError: The hold was released meanwhile.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._growing.append((hold, size, turn))
        self._wake()
        try:
            await self._wait(turn)
        finally:
            if turn.cancel():  # it has not come
                self._wake()
        if hold.closed:
            raise TimeoutError

    def drop(self, hold: Hold) -> None:
        """Give back all of a hold's bytes."""
        if hold is self._favoured:
            self._favoured = None
        self._used -= hold.bytes
        hold.bytes = 0
        FETCHED_BYTES.set(self._used)
        self._wake()

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        while not turn.done():
            await asyncio.wait((turn,), timeout=SHORT_SECONDS)
            if not turn.done():
                self._cut_one()

    def _wake(self) -> None:
        while self._growing:
            hold, size, turn = self._growing[0]
            if hold.closed or turn.done():
                self._growing.popleft()
                if not turn.done():
                    turn.set_result(None)
                continue
            if self._used + size > self._shared and not self._favours(hold):
                break
            self._growing.popleft()
            self.add(hold, size)
            turn.set_result(None)
        if self._used <= self._total // 2:
            while self._beginning:
                begin = self._beginning.popleft()
                if not begin.done():
                    begin.set_result(None)

    def _favours(self, hold: Hold) -> bool:
        if self._favoured is None:
            self._favoured = hold
        return self._favoured is hold

    def _cut_one(self) -> None:
        now = asyncio.get_running_loop().time()
        sitting = [hold for hold in self.under_way if not hold.waits and now - hold.began >= SHORT_SECONDS]
        if sum(hold.bytes for hold in sitting) * SITTING_SHARE < self._total:
            return  # images that wait to be decoded hold the rest, and give it back
        victim = max(sitting, key=lambda hold: hold.bytes * (now - hold.began))
        victim.evicted = True
        victim.arrived()  # not cut twice
        FETCH_EVICTIONS.inc()
        victim.clock.cut()


class ImageMemory:
    """Keeps the bytes that one task fetched charged until it is done with them; see `image_memory`."""

    __slots__ = ("_holds", "_token")

    def __init__(self) -> None:
        self._holds: list[Hold] = []

    def __enter__(self) -> Self:
        self._token = _memory.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _memory.reset(self._token)
        self.release()

    def keep(self, hold: Hold) -> None:
        """Keep a hold."""
        self._holds.append(hold)

    def release(self) -> None:
        """The bytes are gone."""
        while self._holds:
            self._holds.pop().release()


_memory: ContextVar[ImageMemory | None] = ContextVar("classifleet_image_memory", default=None)


def image_memory() -> ImageMemory:
    """Within it, what this task fetches stays charged to the fetcher's budget until `release`, or the end."""
    return ImageMemory()


def keep_or_release(hold: Hold) -> None:
    """The image has arrived: its bytes are kept by the task's `image_memory`, or not charged any more."""
    hold.arrived()
    memory = _memory.get()
    if memory is None:
        hold.release()
    else:
        memory.keep(hold)
