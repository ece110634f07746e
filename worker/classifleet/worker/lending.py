"""Models for a chunk while it is at work: it waits for those that must be loaded, at nobody's expense.

all ready ─► at once | not yet ─► in the waiting room (see `waiting.py`) until loaded | not to be had ─► left to others
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

import structlog

from classifleet.config import ErrorCode, ImageError, Lane, Payload, Record
from classifleet.ledger import Lease, Offer
from classifleet.worker.elsewhere import Elsewhere
from classifleet.worker.records import failed_records
from classifleet.worker.shelf import Shelf
from classifleet.worker.waiting import WaitingChunk, WaitingRoom

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000


class ModelAway(Exception):
    """A model that a chunk waited for cannot be asked.

    Args:
        key: The model.
        later: It did not fail: there was no room for it, and later there may be.
    """

    def __init__(self, key: str, *, later: bool) -> None:
        super().__init__(f"{key} could not be loaded{' for want of room' if later else ''}")
        self.later = later


class Lends(Protocol):
    """What a chunk's way through the worker needs to know of models."""

    def offers(self) -> Mapping[str, Offer]:
        """What `latest` is for jobs that begin now."""

    def left_to_others(self, models: Collection[str], queue: str) -> bool:
        """Whether this worker lacks one of the models, and another one has them all."""

    def at_hand(self, models: Collection[str]) -> bool:
        """Whether none of the models has to be waited for."""

    async def bring(self, payload: Payload, lease: Lease, lane: Lane) -> tuple[Lease, list[Record]]:
        """Wait for the chunk's models: its lease with the time that is left, and its records if that is none."""

    async def during(
        self, payload: Payload, lease: Lease, lane: Lane, work: Callable[[Lease], Awaitable[list[Record]]]
    ) -> list[Record]:
        """Do the work while the chunk's models are here."""


class Lender:
    """Lends the models of a shelf.

    Args:
        shelf: The models of this worker.
        elsewhere: Those of others.
        room: Where chunks wait for their models.
        owner: The worker's name in records.
    """

    def __init__(self, shelf: Shelf, elsewhere: Elsewhere, room: WaitingRoom, owner: str) -> None:
        self._shelf = shelf
        self._elsewhere = elsewhere
        self._room = room
        self._owner = owner

    def offers(self) -> Mapping[str, Offer]:
        """What `latest` is for jobs that begin now."""
        return self._shelf.offers()

    def left_to_others(self, models: Collection[str], queue: str) -> bool:
        """Whether this worker lacks one of the models, and another one has them all. If nobody has, it looks for them.

        Raises:
            LedgerUnavailable: It is not known what others have.
        """
        if self.others_have(models, queue):
            return True
        if self._shelf.lacks(models):
            self._shelf.find()
        return False

    def others_have(self, models: Collection[str], queue: str) -> bool:
        """As `left_to_others`, without looking for anything.

        Raises:
            LedgerUnavailable: It is not known what others have.
        """
        if not self._shelf.lacks(models) or not self._elsewhere.has(models, queue):
            return False
        if self._shelf.looked_long_ago():
            self._shelf.look_soon()
        return True

    def at_hand(self, models: Collection[str]) -> bool:
        """Whether none of the models has to be waited for."""
        return self._shelf.at_hand(models)

    async def bring(self, payload: Payload, lease: Lease, lane: Lane) -> tuple[Lease, list[Record]]:
        """Wait for the chunk's models: its lease with the time that is left, and its records if that is none.

        Raises:
            ModelAway: One did not come.
        """
        brought = lease

        async def see(left: Lease) -> list[Record]:
            nonlocal brought
            if away := self._shelf.missing(left.models):
                raise ModelAway(away[0], later=not self._shelf.lacks(away))
            brought = left
            return []

        late = await self.during(payload, lease, lane, see)
        return brought, late

    async def during(
        self, payload: Payload, lease: Lease, lane: Lane, work: Callable[[Lease], Awaitable[list[Record]]]
    ) -> list[Record]:
        """Do the work while the chunk's models are here; its deadline holds also while they are loaded."""
        if self._shelf.at_hand(lease.models):
            async with self._shelf.lent(lease.models):
                return await work(lease)
        began = time.monotonic()
        left = None if lease.left_ms is None else lease.left_ms / MS_PER_S
        async with AsyncExitStack() as stack:
            try:
                async with self._waiting(lease, lane), asyncio.timeout(left):
                    await stack.enter_async_context(self._shelf.lent(lease.models))
            except TimeoutError:
                late = ImageError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the model was loaded")
                return failed_records(payload, late, attempt=lease.attempt, worker=self._owner)
            waited_ms = int((time.monotonic() - began) * MS_PER_S)
            left_ms = None if lease.left_ms is None else max(0, lease.left_ms - waited_ms)
            return await work(replace(lease, left_ms=left_ms))

    @asynccontextmanager
    async def _waiting(self, lease: Lease, lane: Lane) -> AsyncIterator[None]:
        chunk = WaitingChunk(self._room, lane, 1, len(lease.payload))
        chunk.image()(True)
        try:
            yield
        finally:
            chunk.close()
