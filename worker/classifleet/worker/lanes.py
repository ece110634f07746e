"""Interactive before bulk, wherever images wait inside a worker; and neither lane starves.

Turns (what is taken and gone: a thread, a batch): interactive first, but every eighth is bulk's if bulk waits.
Slots (what is held for a while): interactive first, and an eighth of them each lane has for itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from classifleet.config import Lane

LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")  # in order of precedence
BULK_EVERY: Final = 8
OWN_SHARE: Final = 8
SPARE_TIMES: Final = 4
"""Lost threads are replaced until they are so many times as many as may be at work."""

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

    def __len__(self) -> int:
        return len(self._waiting["interactive"]) + len(self._waiting["bulk"])

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
        if not self.full(lane):
            self._held[lane] += 1
            return
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

    def held(self, lane: Lane) -> AbstractAsyncContextManager[None]:
        """Wait for a slot and hold it."""
        return _Holding(self, lane)


class _Holding(AbstractAsyncContextManager[None]):
    """A class, since a generator in its place costs more than all else that a slot does."""

    __slots__ = ("_lane", "_slots")

    def __init__(self, slots: LaneSlots, lane: Lane) -> None:
        self._slots = slots
        self._lane = lane

    async def __aenter__(self) -> None:
        await self._slots.acquire(self._lane)

    async def __aexit__(self, *_: object) -> None:
        self._slots.release(self._lane)


@dataclass(slots=True, eq=False)
class _Work:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    call: Callable[[], Any]


_Outcome = tuple[_Work, Any, BaseException | None]


class LaneExecutor:
    """Threads that take interactive work first.

    A `ThreadPoolExecutor` behind `asyncio.wrap_future` costs 80 microseconds a call, most of it for futures with locks
    of their own and for waking the event loop. Here the loop is woken once for all that ends before it looks.

    No thread can be ended from outside. One whose call is given up is *lost*: another takes its place, and it ends
    when its call returns, if ever.

    Args:
        threads: Beside those that are lost, at most; they start when there is work for them.
        name: Of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self.lost = 0
        self._name = name
        self._ready = threading.Condition()
        self._queue: LaneQueue[_Work] = LaneQueue()
        self._running: dict[_Work, float] = {}  # since when, the oldest first
        self._serving = 0
        self._idle = 0
        self._closed = False
        self._ended: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}

    async def run(self, lane: Lane, call: Callable[..., T], *args: Any) -> T:
        """Call it in a thread, and wait for what it returns; see `submit`.

        Raises:
            Exception: What the call raises.
            RuntimeError: The executor is closed.
        """
        return await self.submit(lane, call, *args)

    def submit(self, lane: Lane, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call it in a thread, unless the future is done by then: its caller has given up.

        Raises:
            RuntimeError: The executor is closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._ready:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            self._queue.append(lane, _Work(loop, future, partial(call, *args)))
            if not self._start_thread():
                self._ready.notify()
        return future

    def busy(self) -> bool:
        """Whether a call runs that was not given up."""
        return bool(self._running)

    def give_up(self, seconds: float) -> tuple[list[asyncio.Future[Any]], float]:
        """Count the threads as lost whose calls have run for so long, and let others serve what waits.

        Returns:
            The futures of these calls, and after how many seconds the next call may have run for so long.
        """
        with self._ready:
            now = time.monotonic()
            late = list(takewhile(lambda work: self._running[work] + seconds <= now, self._running))
            for work in late:
                del self._running[work]
            self.lost += len(late)
            self._serving -= len(late)
            self._ready.notify_all()
            while self._start_thread():
                pass
            return [work.future for work in late], seconds + next(iter(self._running.values()), now) - now

    def close(self, *, wait: bool = True) -> None:
        """End the threads: when all is done but what is given up, or without waiting for it or beginning any more."""
        with self._ready:
            self._closed = True
            if not wait:
                self._queue = LaneQueue()
            self._ready.notify_all()
            if wait:
                self._ready.wait_for(lambda: not self._serving)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _start_thread(self) -> bool:
        """Start one if there is work for it and it may be."""
        most = min(self.threads, self.threads * (1 + SPARE_TIMES) - self.lost)
        if len(self._queue) <= self._idle or self._serving >= most:
            return False
        try:
            threading.Thread(target=self._serve, name=f"{self._name}-{self._serving}", daemon=True).start()
        except RuntimeError:  # the system has no more; those that there are go on
            return False
        self._serving += 1
        return True

    def _serve(self) -> None:
        goes_on = True
        while goes_on and (work := self._next()) is not None:
            try:
                goes_on = self._end((work, work.call(), None))
            except BaseException as error:  # noqa: BLE001 - carried over to the task that waits
                goes_on = self._end((work, None, error))

    def _next(self) -> _Work | None:
        """What to do next; None for a thread that is to end."""
        with self._ready:
            while True:
                while not len(self._queue):
                    if self._closed:
                        self._serving -= 1
                        self._ready.notify_all()
                        return None
                    self._idle += 1
                    self._ready.wait()
                    self._idle -= 1
                work = self._queue.pop()
                if not work.future.done():
                    self._running[work] = time.monotonic()
                    return work

    def _end(self, outcome: _Outcome) -> bool:
        """Hand over what came of a call; false if that was given up, and its thread is to end."""
        loop = outcome[0].loop
        with self._ready:
            if self._running.pop(outcome[0], None) is None:
                self.lost -= 1
                self._start_thread()
                return False
            if loop in self._ended:  # it is about to look
                self._ended[loop].append(outcome)
                return True
            self._ended[loop] = [outcome]
        try:
            loop.call_soon_threadsafe(self._settle, loop)
        except RuntimeError:  # the loop is closed: nobody waits any more
            with self._ready:
                del self._ended[loop]
        return True

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._ready:
            outcomes = self._ended.pop(loop)
        for work, result, error in outcomes:
            if work.future.done():
                continue
            if error is None:
                work.future.set_result(result)
            else:
                work.future.set_exception(error)
