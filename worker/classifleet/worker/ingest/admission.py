"""What every fetch passes before it begins: a slot, room in memory, and for http(s) its turn at the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from classifleet.worker.ingest.clock import Clock
from classifleet.worker.ingest.hosts import HostTable, Visit
from classifleet.worker.ingest.memory import Hold, MemoryBudget
from classifleet.worker.ingest.slots import Lanes


@dataclass(frozen=True, slots=True)
class Ticket:
    """One fetch: its time, and the memory that its bytes take."""

    clock: Clock
    hold: Hold


class Admission:
    """Lets fetches begin; one for all ways to fetch.

    Args:
        lanes: Slots.
        memory: Room.
        hosts: Turns at hosts.
    """

    def __init__(self, lanes: Lanes, memory: MemoryBudget, hosts: HostTable) -> None:
        self.lanes = lanes
        self.memory = memory
        self.hosts = hosts

    def ticket(self, work_seconds: float, limit_seconds: float | None) -> Ticket:
        """A ticket for a new fetch."""
        clock = Clock(work_seconds, limit_seconds)
        return Ticket(clock, self.memory.hold(clock))

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
                visit = await stack.enter_async_context(self.hosts.visit(host)) if host else Visit()
                slot = await stack.enter_async_context(self.lanes.slot())
                await self.memory.room()
            slot.begin()
            visit.began = asyncio.get_running_loop().time()
            try:
                async with ticket.clock.working():
                    yield visit
            except BaseException:
                ticket.hold.drop()  # of the part that has arrived
                raise
