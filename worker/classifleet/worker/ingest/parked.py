"""Images that a producer parked in the ledger's Redis.

While that is away they are waited for, as commits are: an outage of ours must not become the error of an image.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from classifleet.config.errors import ClassifleetError, ErrorCode, ImageError, LedgerUnavailable
from classifleet.config.settings import Settings
from classifleet.worker.ingest.admission import Admission, Ticket
from classifleet.worker.ingest.retry import retry_wait_seconds
from classifleet.worker.lanes import LaneExecutor

LONGEST_PAUSE_AFTER: Final = 10  # tries
ReadBlob = Callable[[str, str, str], bytes | None]


class ParkedReader:
    """Reads parked images. No thread and no slot is held between two tries.

    Args:
        settings: Limits, and for how long Redis is waited for (`keep_results_seconds`).
        read_blob: Reads the image of a job, a chunk and a sha256; None if there is none. Called in a thread.
            LedgerUnavailable says that it is worth waiting.
        admission: Lets each read begin.
        pool: Where they are read.
    """

    def __init__(self, settings: Settings, read_blob: ReadBlob, admission: Admission, pool: LaneExecutor) -> None:
        self._max_bytes = settings.max_bytes
        self._patience_seconds = settings.keep_results_seconds
        self._read_blob = read_blob
        self._admission = admission
        self._pool = pool

    async def read(self, job: str, chunk: str, sha256: str, ticket: Ticket) -> bytes:
        """Read an image; of its time only the job's deadline counts.

        Raises:
            ImageError: Whatever went wrong.
            TimeoutError: The deadline has passed.
        """
        loop = asyncio.get_running_loop()
        ends, tries = loop.time() + self._patience_seconds, 0
        while True:
            try:
                return await self._once(job, chunk, sha256, ticket)
            except LedgerUnavailable as error:
                tries += 1
                if loop.time() >= ends:
                    raise _unreadable(str(error)) from error
            with ticket.pace.ours():
                async with ticket.clock.queueing():
                    await asyncio.sleep(retry_wait_seconds(min(tries, LONGEST_PAUSE_AFTER), None, random.random()))

    async def _once(self, job: str, chunk: str, sha256: str, ticket: Ticket) -> bytes:
        async with self._admission.working(ticket):
            with ticket.clock.paused():
                data = await self._pool.run(ticket.lane, self._read, job, chunk, sha256)
        ticket.hold.charge(len(data))
        return data

    def _read(self, job: str, chunk: str, sha256: str) -> bytes:
        try:
            data = self._read_blob(job, chunk, sha256)
        except LedgerUnavailable:
            raise
        except Exception as error:  # whatever the ledger's client raises, the image is what cannot be had
            raise _unreadable(str(error) if isinstance(error, ClassifleetError) else type(error).__name__) from error
        if data is None:
            raise ImageError(ErrorCode.NOT_FOUND, "the parked image is gone: its time to live has ended")
        if len(data) > self._max_bytes:
            what = f"the image has {len(data)} bytes; at most {self._max_bytes} are read"
            raise ImageError(ErrorCode.TOO_LARGE, what)
        return data


def _unreadable(problem: str) -> ImageError:
    return ImageError(ErrorCode.FETCH_FAILED, f"the parked image could not be read: {problem}")
