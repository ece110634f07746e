"""The claim store of a fleet in memory."""

from __future__ import annotations

from collections.abc import Container, Mapping

from classifleet.config import Payload, Settings
from classifleet.config.claims import Claims
from classifleet.producer.testing._memory import Memory


class MemoryClaims(Claims):
    """Large images lie beside those that a ledger in memory has parked, whatever store the settings name."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        super().__init__(settings)
        self._memory = memory

    def put(self, job: str, chunk: str, images: Mapping[str, bytes]) -> None:
        """See `Claims.put`."""
        with self._memory.lock:
            self._memory.blobs.update({(job, chunk, sha256): data for sha256, data in images.items()})

    def delete(self, payload: Payload, keep: Container[str] = ()) -> None:
        """See `Claims.delete`."""
        with self._memory.lock:
            self._memory.take_back_blobs(payload.job, payload.chunk, [item.ref[6:] for item in payload.items])
