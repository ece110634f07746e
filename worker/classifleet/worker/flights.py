"""One of several tasks that are about to do the same does it; the others wait for what it finds.

    join() ─► "lead": it is theirs to do, and to `end`   ┬─ found: all who wait have it
          │                                              ├─ its own end (deadline, cancelled): the next one leads
          │                                              └─ failed: the next one leads; failed again: all do it alone
          ├─► what the leader found
          └─► "alone": do it, and tell nobody

Nobody waits for someone less urgent, who may be behind him in every queue. Who waits must hold nothing that the leader
needs. A cancelled task takes nobody with it. After two failures the fault may be the thing's own, and what fails one
after the other takes as many times longer as there are copies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from classifleet.config import Lane
from classifleet.worker.lanes import LANES

T = TypeVar("T")
Role = Literal["lead", "alone"]
TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Urgency:
    """Of an image: its lane, and its deadline on the monotonic clock, in seconds."""

    lane: Lane
    deadline: float

    def serves(self, other: Urgency) -> bool:
        """Whether the other one loses no turn by waiting for this one."""
        return LANES.index(self.lane) <= LANES.index(other.lane) and self.deadline <= other.deadline


@dataclass(slots=True)
class _Flight(Generic[T]):
    leader: Urgency
    failures: int = 0
    waiting: deque[tuple[Urgency, asyncio.Future[tuple[Role, T | None]]]] = field(default_factory=deque)


class Flights(Generic[T]):
    """What is being done, by key. Lives on one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, key: bytes, urgency: Urgency) -> tuple[Role, T | None]:
        """Wait for whoever does it now.

        Returns:
            What was found; or nothing, and whether to `lead` (`end` must be called, however it ends) or to do it
            `alone`.
        """
        flight = self._flights.get(key)
        if flight is None:
            self._flights[key] = _Flight(urgency)
            return "lead", None
        if not flight.leader.serves(urgency):
            return "alone", None
        turn: asyncio.Future[tuple[Role, T | None]] = asyncio.get_running_loop().create_future()
        flight.waiting.append((urgency, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result() == ("lead", None):  # it came all the same
                self.end(key, None, failed=False)
            raise

    def end(self, key: bytes, found: T | None, *, failed: bool) -> None:
        """The leader has ended.

        Args:
            key: As it was joined.
            found: What those who wait are given; None if there is nothing.
            failed: Whether that may be the thing's own fault.
        """
        flight = self._flights[key]
        flight.failures += failed
        waiting = [(urgency, turn) for urgency, turn in flight.waiting if not turn.done()]
        if found is None and waiting and flight.failures < TRIES:
            flight.waiting = deque(waiting)
            flight.leader, turn = flight.waiting.popleft()
            turn.set_result(("lead", None))
            return
        del self._flights[key]
        for _, turn in waiting:
            turn.set_result(("alone", found))
