"""A reference becomes bytes, by whichever way its scheme says.

http(s) runs on the event loop; object storage, files, blobs and long base64 block, each in a bounded pool of threads
of its own, so that a hanging network disk never keeps a blob waiting. Whatever goes wrong is one `ImageError`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from classifleet.config.errors import ClassifleetError, ErrorCode, ImageError
from classifleet.config.reference import Reference, decode_data_uri, redact
from classifleet.config.settings import Settings
from classifleet.config.storage import S3_POOL_CONNECTIONS
from classifleet.worker.ingest.address import AddressPolicy
from classifleet.worker.ingest.files import read_file
from classifleet.worker.ingest.http import HttpClient
from classifleet.worker.ingest.resolver import GetAddrInfo
from classifleet.worker.ingest.s3 import S3Reader

FILE_THREADS: Final = 4
BLOB_THREADS: Final = 4
DATA_THREADS: Final = 2
INLINE_DECODE_CHARS: Final = 128 << 10  # base64 longer than this (about 0.1 ms) is decoded off the event loop

ReadBlob = Callable[[str, str, str], bytes | None]
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Fetcher:
    """Fetches the bytes of images, `fetch_concurrency` at one time.

    Made anywhere, then started, used and closed on one event loop.

    Args:
        settings: What may be read, from where, and how long it may take.
        read_blob: Reads a parked image of a job, a chunk and a sha256 from the ledger; None if there is none.
            Called in a thread.
        getaddrinfo: Looks host names up; for tests.

    Raises:
        SettingsError: `http_allow` or `source_allow` has an entry that cannot be read.
    """

    def __init__(
        self, settings: Settings, *, read_blob: ReadBlob, getaddrinfo: GetAddrInfo = socket.getaddrinfo
    ) -> None:
        self._settings = settings
        self._read_blob = read_blob
        self._slots = asyncio.Semaphore(settings.fetch_concurrency)
        self._http = HttpClient(
            AddressPolicy(settings.http_allow),
            max_bytes=settings.max_bytes,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            connections=settings.fetch_concurrency,
            getaddrinfo=getaddrinfo,
        )
        self._s3 = S3Reader(settings)
        # Threads start when there is work for them.
        self._s3_pool = _pool("s3", min(settings.fetch_concurrency, S3_POOL_CONNECTIONS))
        self._file_pool = _pool("files", FILE_THREADS)
        self._blob_pool = _pool("blobs", BLOB_THREADS)
        self._data_pool = _pool("data", DATA_THREADS)

    async def start(self) -> None:
        """Open what needs the running event loop."""
        await self._http.start()

    async def close(self) -> None:
        """Close connections and threads; call it when no fetch is under way."""
        await self._http.close()
        for pool in (self._s3_pool, self._file_pool, self._blob_pool, self._data_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self._s3.close()

    async def fetch(
        self, reference: Reference, *, job: str, chunk: str, deadline_seconds: float | None = None
    ) -> bytes:
        """The bytes of an image, `max_bytes` at most.

        Args:
            reference: From `parse_reference`.
            job: The job that a `blob:` belongs to.
            chunk: The chunk that a `blob:` belongs to.
            deadline_seconds: All the time there is from now on, waiting for a slot included. Apart from it, no
                image takes longer than `fetch_timeout_seconds` once it has its slot.

        Raises:
            ImageError: Whatever went wrong; `fetch_timeout` if it was the time.
        """
        try:
            return await self._within(reference, job, chunk, deadline_seconds)
        except ImageError:
            raise
        except TimeoutError as error:
            raise ImageError(ErrorCode.FETCH_TIMEOUT, "the image did not arrive in time") from error
        except Exception as error:
            _log.exception("fetching %.200s failed in a way nobody thought of", redact(reference.text))
            raise ImageError(ErrorCode.INTERNAL, f"fetching failed: {type(error).__name__}") from error

    async def _within(self, reference: Reference, job: str, chunk: str, deadline_seconds: float | None) -> bytes:
        if reference.scheme == "data" and len(reference.location) <= INLINE_DECODE_CHARS:
            return decode_data_uri(reference.location, max_bytes=self._settings.max_bytes)
        if deadline_seconds is not None and deadline_seconds <= 0:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        limit = None if deadline_seconds is None else loop.time() + deadline_seconds
        async with asyncio.timeout_at(limit), self._slots:
            expires_at = loop.time() + self._settings.fetch_timeout_seconds
            if limit is not None:
                expires_at = min(limit, expires_at)
            async with asyncio.timeout_at(expires_at):
                return await self._read(reference, job, chunk, expires_at)

    async def _read(self, reference: Reference, job: str, chunk: str, expires_at: float) -> bytes:
        location, max_bytes = reference.location, self._settings.max_bytes
        match reference.scheme:
            case "http" | "https":
                return await self._http.get(location, expires_at=expires_at)
            case "s3":
                return await _run(self._s3_pool, lambda: self._s3.read(reference, expires_at=expires_at))
            case "file":
                roots = self._settings.file_roots
                return await _run(self._file_pool, lambda: read_file(location, roots, max_bytes=max_bytes))
            case "data":
                return await _run(self._data_pool, lambda: decode_data_uri(location, max_bytes=max_bytes))
            case "blob":
                return await _run(self._blob_pool, lambda: self._blob(job, chunk, location))
        raise ImageError(ErrorCode.INVALID_REFERENCE, f"{reference.scheme!r} is not a scheme that can be fetched")

    def _blob(self, job: str, chunk: str, sha256: str) -> bytes:
        try:
            data = self._read_blob(job, chunk, sha256)
        except Exception as error:  # whatever the ledger's client raises, the image is what cannot be had
            problem = str(error) if isinstance(error, ClassifleetError) else type(error).__name__
            raise ImageError(ErrorCode.FETCH_FAILED, f"the parked image could not be read: {problem}") from error
        if data is None:
            raise ImageError(ErrorCode.NOT_FOUND, "the parked image is gone: its time to live has ended")
        if len(data) > self._settings.max_bytes:
            raise ImageError(
                ErrorCode.TOO_LARGE, f"the image has {len(data)} bytes; at most {self._settings.max_bytes} are read"
            )
        return data


def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"classifleet-{name}")


async def _run(pool: ThreadPoolExecutor, call: Callable[[], _T]) -> _T:
    """Run a blocking call in a pool; a caller that gives up takes back what has not begun."""
    return await asyncio.get_running_loop().run_in_executor(pool, call)
