"""A reference becomes bytes, by whichever way its scheme says.

reference ─► a slot, room in memory, a turn at the host ─► http(s) │ s3 │ file │ data │ blob │ claim ─► bytes

What goes wrong is an ImageError. http(s) and object storage run on the event loop; files, blobs and long base64
block, each in a bounded pool of threads of its own, so that a hanging network disk never keeps a blob waiting. Slots,
memory and turns are bounded apart from each other, so that a slow stranger has no more than his own.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

from classifleet.config import Lane
from classifleet.config.errors import ErrorCode, ImageError
from classifleet.config.reference import Reference, decode_data_uri, redact
from classifleet.config.settings import Settings
from classifleet.worker.ingest.admission import Admission, Ticket
from classifleet.worker.ingest.claims import ClaimReader
from classifleet.worker.ingest.files import read_file, require_roots
from classifleet.worker.ingest.hosts import HostTable
from classifleet.worker.ingest.http import HttpClient
from classifleet.worker.ingest.memory import MemoryBudget, keep_or_release
from classifleet.worker.ingest.pace import Notify
from classifleet.worker.ingest.parked import ParkedReader, ReadBlob
from classifleet.worker.ingest.policy import AddressPolicy
from classifleet.worker.ingest.resolver import GetAddrInfo
from classifleet.worker.ingest.s3 import S3Reader, source_prefixes
from classifleet.worker.ingest.slots import FetchSlots
from classifleet.worker.instruments import FETCH_CONNECTIONS, FETCH_SLOTS
from classifleet.worker.lanes import LaneExecutor

FILE_THREADS: Final = 4
BLOB_THREADS: Final = 4
DATA_THREADS: Final = 2
PATIENCE_SHARE: Final = 0.5  # of the time an image has; a host that was given less is not held to have failed
INLINE_DECODE_CHARS: Final = 128 << 10  # base64 longer than this (about 0.1 ms) is decoded off the event loop

_log = logging.getLogger(__name__)


def require_sources(settings: Settings) -> None:
    """Check what the settings say may be fetched, without making anything; for the first moment of a worker.

    Raises:
        SettingsError: `http_allow`, `http_deny`, `file_roots` or `source_allow` has an entry that cannot be used.
    """
    _policy(settings)
    source_prefixes(settings.source_allow)
    require_roots(settings.file_roots)


class Fetcher:
    """Fetches the bytes of images, `fetch_concurrency` at one time and the slow ones beside them.

    Made anywhere, then started, used and closed on one event loop.

    Args:
        settings: What may be read, from where, and how long it may take.
        read_blob: Reads a parked image of a job, a chunk and a sha256 from the ledger; None if there is none.
            Called in a thread. LedgerUnavailable is waited for.
        getaddrinfo: Looks host names up; for tests.

    Raises:
        SettingsError: See `require_sources`.
    """

    def __init__(
        self, settings: Settings, *, read_blob: ReadBlob, getaddrinfo: GetAddrInfo = socket.getaddrinfo
    ) -> None:
        require_sources(settings)
        self._settings = settings
        self._memory = MemoryBudget(max(settings.fetch_max_total_bytes, 2 * settings.max_bytes), settings.max_bytes)
        self._slots = FetchSlots(settings.fetch_concurrency, settings.fetch_slow_concurrency)
        self._hosts = HostTable(
            settings.fetch_host_concurrency, patience_seconds=PATIENCE_SHARE * settings.fetch_timeout_seconds
        )
        self._admission = Admission(self._slots, self._memory, self._hosts)
        self._http = HttpClient(
            _policy(settings),
            self._admission,
            max_bytes=settings.max_bytes,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            connections=settings.fetch_concurrency + settings.fetch_slow_concurrency,
            getaddrinfo=getaddrinfo,
        )
        self._s3 = S3Reader(settings, self._admission)
        # Threads start when there is work for them.
        self._file_pool = LaneExecutor(FILE_THREADS, "classifleet-files")
        self._blob_pool = LaneExecutor(BLOB_THREADS, "classifleet-blobs")
        self._data_pool = LaneExecutor(DATA_THREADS, "classifleet-data")
        self._parked = ParkedReader(settings, read_blob, self._admission, self._blob_pool)
        self._claims = ClaimReader(settings, self._admission, self._blob_pool)

    async def start(self) -> None:
        """Open what needs the running event loop."""
        await self._http.start()
        FETCH_SLOTS.labels("fast").set_function(lambda: self._slots.fast_held)
        FETCH_SLOTS.labels("slow").set_function(lambda: self._slots.slow_held)
        FETCH_CONNECTIONS.set_function(self._http.dialler.open_sockets)

    async def close(self) -> None:
        """Close connections and threads; call it when no fetch is under way."""
        await self._http.close()
        for pool in (self._file_pool, self._blob_pool, self._data_pool):
            pool.close(wait=False)
        self._s3.close()
        self._claims.close()

    async def fetch(
        self,
        reference: Reference,
        *,
        job: str,
        chunk: str,
        deadline_seconds: float | None = None,
        lane: Lane = "bulk",
        slow: Notify | None = None,
    ) -> bytes:
        """The bytes of an image, `max_bytes` at most.

        Args:
            reference: From `parse_reference`.
            job: The job that a `blob:` or `claim:` belongs to.
            chunk: The chunk that it belongs to.
            deadline_seconds: All the time there is from now on, waiting included. Apart from it, no image takes
                longer than `fetch_timeout_seconds` from its first connection on.
            lane: Interactive images go first.
            slow: Called with True when the image has kept us waiting for longer than a second by no doing of ours,
                and with False when it waits for us again, or the fetch is over.

        Raises:
            ImageError: Whatever went wrong; `fetch_timeout` if it was the time.
        """
        ticket = self._admission.ticket(self._settings.fetch_timeout_seconds, deadline_seconds, lane, slow)
        ticket.pace.begin()
        try:
            data = await self._explained(reference, job, chunk, ticket)
        except BaseException:
            ticket.hold.release()
            raise
        finally:
            ticket.pace.end()
        keep_or_release(ticket.hold)
        return data

    async def _explained(self, reference: Reference, job: str, chunk: str, ticket: Ticket) -> bytes:
        try:
            return await self._read(reference, job, chunk, ticket)
        except ImageError:
            raise
        except TimeoutError as error:
            why = ", and its memory was needed for others" if ticket.hold.evicted else ""
            raise ImageError(ErrorCode.FETCH_TIMEOUT, f"the image did not arrive in time{why}") from error
        except Exception as error:
            _log.exception("fetching %.200s failed in a way nobody thought of", redact(reference.text))
            raise ImageError(ErrorCode.INTERNAL, f"fetching failed: {type(error).__name__}") from error

    async def _read(self, reference: Reference, job: str, chunk: str, ticket: Ticket) -> bytes:
        location, max_bytes = reference.location, self._settings.max_bytes
        match reference.scheme:
            case "http" | "https":
                return await self._http.get(location, ticket)
            case "s3":
                return await self._s3.read(reference, ticket)
            case "file":
                roots = self._settings.file_roots
                return await self._run(
                    self._file_pool, lambda: read_file(location, roots, max_bytes=max_bytes), ticket
                )
            case "data" if len(location) <= INLINE_DECODE_CHARS:
                return decode_data_uri(location, max_bytes=max_bytes)
            case "data":
                return await self._run(self._data_pool, lambda: decode_data_uri(location, max_bytes=max_bytes), ticket)
            case "blob":
                return await self._parked.read(job, chunk, location, ticket)
            case "claim":
                return await self._claims.read(job, chunk, location, ticket)
        raise ImageError(ErrorCode.INVALID_REFERENCE, f"{reference.scheme!r} is not a scheme that can be fetched")

    async def _run(self, pool: LaneExecutor, call: Callable[[], bytes], ticket: Ticket) -> bytes:
        """Run a blocking call in a pool."""
        async with self._admission.working(ticket):
            data = await pool.run(ticket.lane, call)
        ticket.hold.charge(len(data))
        return data


def _policy(settings: Settings) -> AddressPolicy:
    return AddressPolicy(settings.http_allow, deny=settings.http_deny, ports=settings.http_ports)
