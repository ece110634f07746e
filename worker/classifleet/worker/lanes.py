"""Interactive before bulk, wherever images wait inside a worker; and neither lane starves.

Turns (what is taken and gone: a thread, a batch): interactive first, but every eighth is bulk's if bulk waits.
Slots (what is held for a while): interactive first, and an eighth of them each lane has for itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

from classifleet.config import Lane

LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")  # in order of precedence
BULK_EVERY: Final = 8
OWN_SHARE: Final = 8

T = TypeVar("T")


def next_turn(interactive: bool, bulk: bool, passed_over: int) -> Lane | None:
    """Whose turn it is.

    Args:
        interactive: Whether interactive waits.
        bulk: Whether bulk waits.
        passed_over: How often bulk has waited and was not served since it last was.
    """
    if bulk and (not interactive or passed_over >= BULK_EVERY - 1):
        return "bulk"
    return "interactive" if interactive else None


def may_hold(lane: Lane, held: Mapping[Lane, int], total: int, own: int) -> bool:
    """Whether a lane may hold one more of so many slots, of which each lane has `own` for itself."""
    return sum(held.values()) < total and held[lane] < total - own


class LaneQueue(Generic[T]):
    """Two queues that are served in turns. Not safe across threads."""

    def __init__(self) -> None:
        self._waiting: dict[Lane, deque[T]] = {lane: deque() for lane in LANES}
        self._passed_over = 0

    def append(self, lane: Lane, item: T) -> None:
        """Queue an item."""
        self._waiting[lane].append(item)

    def pop(self) -> T:
        """The next item.

        Raises:
            IndexError: There is none.
        """
        waiting = self._waiting
        lane = next_turn(bool(waiting["interactive"]), bool(waiting["bulk"]), self._passed_over)
        if lane is None:
            raise IndexError("nothing waits")
        self._passed_over = self._passed_over + 1 if lane == "interactive" and waiting["bulk"] else 0
        return waiting[lane].popleft()


class LaneSlots:
    """A semaphore with two lanes, on one event loop.

    Args:
        total: Slots.
        own: Of them, those that each lane has for itself; by default an eighth, rounded down.
    """

    def __init__(self, total: int, own: int | None = None) -> None:
        self._total = total
        self._own = total // OWN_SHARE if own is None else own
        self._held: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in LANES}

    def full(self, lane: Lane) -> bool:
        """Whether `acquire` would wait."""
        return bool(self._waiting[lane]) or not may_hold(lane, self._held, self._total, self._own)

    async def acquire(self, lane: Lane) -> None:
        """Wait for a slot."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        self._serve(lane)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came all the same
                self.release(lane)
            raise

    def release(self, lane: Lane) -> None:
        """Give a slot back."""
        self._held[lane] -= 1
        for each in LANES:
            self._serve(each)

    def _serve(self, lane: Lane) -> None:
        waiting = self._waiting[lane]
        while waiting and may_hold(lane, self._held, self._total, self._own):
            turn = waiting.popleft()
            if not turn.cancelled():  # who gave up stays in the queue until here
                self._held[lane] += 1
                turn.set_result(None)

    @asynccontextmanager
    async def held(self, lane: Lane) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        await self.acquire(lane)
        try:
            yield
        finally:
            self.release(lane)


class LaneExecutor:
    """A thread pool whose threads take interactive work first.

    Args:
        pool: The threads; its owner shuts it down, when nothing waits here any more.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._queue: LaneQueue[tuple[Future[Any], Callable[[], Any]]] = LaneQueue()

    async def run(self, lane: Lane, call: Callable[..., T], *args: Any) -> T:
        """Call it in a thread; a caller that gives up takes back what has not begun.

        Raises:
            Exception: What the call raises.
        """
        work: Future[T] = Future()
        with self._lock:  # a thread that is there at once waits until the work is queued
            self._pool.submit(self._next)
            self._queue.append(lane, (work, partial(call, *args)))
        return await asyncio.wrap_future(work)

    def _next(self) -> None:
        with self._lock:
            work, call = self._queue.pop()
        if not work.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - carried over to the task that waits
            work.set_exception(error)
        else:
            work.set_result(result)
