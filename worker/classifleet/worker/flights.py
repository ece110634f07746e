"""One of several tasks that are about to do the same does it; the others wait for what it finds.

    join() ─► a flight: it is theirs to do, and to `end`  ┬─ found: all who wait for it, in any flight, have it
          │                                               ├─ its own end (deadline, cancelled): the next one leads
          │                                               └─ failed: the next one leads; failed again: all do it alone
          ├─► what a leader found
          └─► nothing: do it, and tell nobody

Nobody waits for someone less urgent, who may be behind him in every queue: he leads a flight of his own, for those who
come after him. Who waits must hold nothing that the leader needs. A cancelled task takes nobody with it. After two
failures the fault may be the thing's own, and what fails one after the other takes as many times longer as there are
copies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

from classifleet.config import Lane
from classifleet.worker.lanes import LANES

T = TypeVar("T")
TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Urgency:
    """Of an image: its lane, and its deadline on the monotonic clock, in seconds."""

    lane: Lane
    deadline: float

    def serves(self, other: Urgency) -> bool:
        """Whether the other one loses no turn by waiting for this one."""
        return LANES.index(self.lane) <= LANES.index(other.lane) and self.deadline <= other.deadline


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """What one does, and others wait for."""

    key: bytes
    leader: Urgency
    failures: int = 0
    waiting: deque[tuple[Urgency, asyncio.Future[Answer[T]]]] = field(default_factory=deque)


Answer: TypeAlias = tuple[Flight[T] | None, T | None]


class Flights(Generic[T]):
    """What is being done, by key. Lives on one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, list[Flight[T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._flights.values()))

    async def join(self, key: bytes, urgency: Urgency) -> Answer[T]:
        """Wait for whoever does it now.

        Returns:
            What was found; or the flight to lead (`end` must be called, however it ends); or neither: do it alone.
        """
        flights = self._flights.setdefault(key, [])
        flight = next((flight for flight in flights if flight.leader.serves(urgency)), None)
        if flight is None:
            flights.append(flight := Flight(key, urgency))
            return flight, None
        turn: asyncio.Future[Answer[T]] = asyncio.get_running_loop().create_future()
        flight.waiting.append((urgency, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result()[0] is flight:  # it came all the same
                self.end(flight, None, failed=False)
            raise

    def end(self, flight: Flight[T], found: T | None, *, failed: bool) -> None:
        """The leader has ended.

        Args:
            flight: That was led.
            found: What those who wait are given; None if there is nothing.
            failed: Whether that may be the thing's own fault.
        """
        flight.failures += failed
        flight.waiting = deque((urgency, turn) for urgency, turn in flight.waiting if not turn.done())
        if found is None and flight.waiting and flight.failures < TRIES:
            flight.leader, turn = flight.waiting.popleft()
            turn.set_result((flight, None))
            return
        flights = self._flights[flight.key]
        for each in [flight] if found is None else flights:
            for _, turn in each.waiting:
                if not turn.done():
                    turn.set_result((None, found))
            each.waiting.clear()
        flights.remove(flight)
        if not flights:
            del self._flights[flight.key]
