"""Models for a chunk while it is at work: it waits for those that must be loaded, at nobody's expense.

all ready ─► at once | not yet ─► in the waiting room (see `waiting.py`) until loaded | not to be had ─► left to others

They are lent once, from before the chunk waits for anything until it has ended: what was loaded for it is not unloaded
while it waits at the gate, behind which a load would hold up all others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol, TypeAlias

import structlog

from classifleet.config import ErrorCode, ImageError, Lane, Payload, Record
from classifleet.ledger import Lease, Offer
from classifleet.worker.elsewhere import Elsewhere
from classifleet.worker.records import failed_records
from classifleet.worker.shelf import Shelf
from classifleet.worker.waiting import WaitingChunk, WaitingRoom

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000
Loads: TypeAlias = Sequence[Future[None]]


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

    def lent(self, models: Collection[str]) -> AbstractContextManager[Loads]:
        """Keep models while the block runs: what must be waited for first."""

    async def bring(self, payload: Payload, lease: Lease, lane: Lane, loads: Loads) -> tuple[Lease, list[Record]]:
        """Wait for models that are lent: the chunk's lease with the time that is left, or its records if none is."""


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

    def lent(self, models: Collection[str]) -> AbstractContextManager[Loads]:
        """Keep models while the block runs: what must be waited for first."""
        return self._shelf.lent(models)

    async def bring(self, payload: Payload, lease: Lease, lane: Lane, loads: Loads) -> tuple[Lease, list[Record]]:
        """Wait for models that are lent: the chunk's lease with the time that is left, or its records if none is.

        Raises:
            ModelAway: One did not come.
        """
        began = time.monotonic()
        left = None if lease.left_ms is None else lease.left_ms / MS_PER_S
        try:
            async with self._waiting(lease, lane), asyncio.timeout(left):
                for load in loads:
                    await asyncio.shield(asyncio.wrap_future(load))
        except TimeoutError:
            late = ImageError(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the model was loaded")
            return lease, failed_records(payload, late, attempt=lease.attempt, worker=self._owner)
        if away := self._shelf.missing(lease.models):
            raise ModelAway(away[0], later=not self._shelf.lacks(away))
        waited_ms = int((time.monotonic() - began) * MS_PER_S)
        left_ms = None if lease.left_ms is None else max(0, lease.left_ms - waited_ms)
        return replace(lease, left_ms=left_ms), []

    @asynccontextmanager
    async def _waiting(self, lease: Lease, lane: Lane) -> AsyncIterator[None]:
        chunk = WaitingChunk(self._room, lane, 1, len(lease.payload))
        chunk.image()(True)
        try:
            yield
        finally:
            chunk.close()
