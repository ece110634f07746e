"""Images that a producer parked in the object store of the setting `claim_store`."""

from __future__ import annotations

import hashlib
from typing import Final

from classifleet.config.claims import Claims
from classifleet.config.errors import ErrorCode, ImageError, StorageError
from classifleet.config.reference import Reference
from classifleet.config.settings import Settings
from classifleet.worker.ingest.admission import Admission, Ticket
from classifleet.worker.ingest.files import read_file
from classifleet.worker.ingest.s3 import S3Reader
from classifleet.worker.lanes import LaneExecutor

_GONE: Final = "the parked image is gone"


class ClaimReader:
    """Reads parked images, with the limits that hold for every image.

    Nothing but the claim store can be read through it, and nothing of it needs to be on the allow-lists for jobs.

    Args:
        settings: Store and limits.
        admission: Lets each read begin.
        pool: Where files are read and hashes are made.
    """

    def __init__(self, settings: Settings, admission: Admission, pool: LaneExecutor) -> None:
        store = settings.claim_store or ""
        self._claims = Claims(settings)
        self._admission = admission
        self._pool = pool
        self._max_bytes = settings.max_bytes
        allowed = [store] if store.startswith("s3://") else []
        self._s3 = S3Reader(settings.model_copy(update={"source_allow": allowed}), admission)

    async def read(self, job: str, chunk: str, sha256: str, ticket: Ticket) -> bytes:
        """Read an image of this job and chunk, and check that it is the one that was parked.

        Raises:
            ImageError: Whatever went wrong.
            TimeoutError: The time is up.
        """
        try:
            where = self._claims.locate(job, chunk, sha256)
        except StorageError as error:
            raise ImageError(ErrorCode.FETCH_FAILED, str(error)) from None
        try:
            data = await (self._s3.read(where, ticket) if where.scheme == "s3" else self._read_file(where, ticket))
        except ImageError as error:
            raise ImageError(error.code, _GONE if error.code is ErrorCode.NOT_FOUND else str(error)) from error
        if await self._pool.run(ticket.lane, lambda: hashlib.sha256(data).hexdigest()) != sha256:
            raise ImageError(ErrorCode.FETCH_FAILED, "the claim store has other bytes than those that were parked")
        return data

    async def _read_file(self, where: Reference, ticket: Ticket) -> bytes:
        root = where.location.rsplit("/", 4)[0]  # namespace, job, chunk and sha256 lie below it
        async with self._admission.working(ticket):
            data = await self._pool.run(
                ticket.lane, lambda: read_file(where.location, [root], max_bytes=self._max_bytes)
            )
        ticket.hold.charge(len(data))
        return data

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()
