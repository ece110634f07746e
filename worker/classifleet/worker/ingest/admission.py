"""What every fetch passes before it begins: a slot, room in memory, and for http(s) its turn at the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from classifleet.config import Lane
from classifleet.worker.ingest.clock import Clock
from classifleet.worker.ingest.hosts import HostTable, Visit
from classifleet.worker.ingest.memory import Hold, MemoryBudget
from classifleet.worker.ingest.pace import Notify, Pace
from classifleet.worker.ingest.slots import FetchSlots


@dataclass(frozen=True, slots=True)
class Ticket:
    """One fetch: its time, the memory that its bytes take, and who waits for it."""

    clock: Clock
    hold: Hold
    lane: Lane
    pace: Pace


class Admission:
    """Lets fetches begin; one for all ways to fetch.

    Args:
        slots: Slots.
        memory: Room.
        hosts: Turns at hosts.
    """

    def __init__(self, slots: FetchSlots, memory: MemoryBudget, hosts: HostTable) -> None:
        self.slots = slots
        self.memory = memory
        self.hosts = hosts

    def ticket(
        self, work_seconds: float, limit_seconds: float | None, lane: Lane, notify: Notify | None = None
    ) -> Ticket:
        """A ticket for a new fetch; for the arguments see `Clock` and `Pace`."""
        clock = Clock(work_seconds, limit_seconds)
        return Ticket(clock, self.memory.hold(clock), lane, Pace(notify))

    @asynccontextmanager
    async def working(self, ticket: Ticket, host: str = "") -> AsyncIterator[Visit]:
        """Wait for everything, then work within the time there is.

        The turn at the host comes first: whoever waits for a busy host holds no slot meanwhile.

        Args:
            ticket: Of the fetch.
            host: For http(s); empty for the operator's own stores.

        Raises:
            TimeoutError: The time is up.
            ImageError: The host's circuit is open.
        """
        async with AsyncExitStack() as stack:
            async with ticket.clock.queueing():
                visit = await stack.enter_async_context(self.hosts.visit(host, ticket.lane)) if host else Visit()
                with ticket.pace.ours():
                    slot = await stack.enter_async_context(self.slots.slot(ticket.lane))
                    await self.memory.room()
            slot.begin()
            visit.began = asyncio.get_running_loop().time()
            try:
                async with ticket.clock.working():
                    yield visit
            except BaseException:
                ticket.hold.drop()  # of the part that has arrived
                raise
