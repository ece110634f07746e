"""Images from object storage: which may be read, and by which client.

obstore reads; boto3 finds endpoint, region and credentials, and reads what obstore cannot (keys that begin or end
with a slash or hold control characters, buckets of another region, stores behind a private CA), or everything if
the setting `s3_client` says so. Both are imported when the first object is asked for.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import threading
from collections.abc import Iterable
from typing import Any, Final

from classifleet.config.errors import ErrorCode, ImageError, SettingsError
from classifleet.config.reference import Reference
from classifleet.config.settings import Settings
from classifleet.worker.ingest.admission import Admission, Ticket
from classifleet.worker.ingest.retry import with_retries
from classifleet.worker.ingest.s3_boto import THREADS, BotoCall, make_client
from classifleet.worker.ingest.s3_obstore import CannotRead, ObstoreReader
from classifleet.worker.lanes import LaneExecutor

# No ARNs, which name endpoints of their own, and nothing that a path-style URL would read as another path.
_BUCKET: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", re.ASCII)
_DOTS: Final = frozenset({".", ".."})
_MAX_KEY_BYTES: Final = 1024  # of S3

_Clients = tuple[Any, ObstoreReader | None]  # boto3's, and obstore's if it may be used


class S3Reader:
    """Reads objects of the buckets and prefixes that the operator opened.

    Args:
        settings: Endpoint, allow-list and limits.
        admission: Lets each request begin.

    Raises:
        SettingsError: An entry of `source_allow` is not `s3://bucket/prefix`.
    """

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._settings = settings
        self._admission = admission
        self._allowed = source_prefixes(settings.source_allow)
        self._threads = LaneExecutor(THREADS, "classifleet-s3")
        self._lock = threading.Lock()
        self._clients: _Clients | None = None

    def require_allowed(self, reference: Reference) -> None:
        """Check a reference without asking anyone.

        Raises:
            ImageError: `invalid_reference` or `forbidden_source`.
        """
        bucket, key = reference.bucket, reference.location
        if not _BUCKET.fullmatch(bucket):
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the bucket's name is not one that a bucket can have")
        # A server that tidies paths would read elsewhere than was checked; SeaweedFS takes a backslash for a slash.
        if _DOTS & set(key.replace("\\", "/").split("/")):
            raise ImageError(ErrorCode.INVALID_REFERENCE, "the key has a segment . or .., which not all stores accept")
        if not _is_utf8(key) or len(key.encode()) > _MAX_KEY_BYTES:
            raise ImageError(ErrorCode.INVALID_REFERENCE, f"a key is UTF-8 of at most {_MAX_KEY_BYTES} bytes")
        if self._allowed and not any(_covers(prefix, bucket, key) for prefix in self._allowed):
            raise ImageError(
                ErrorCode.FORBIDDEN_SOURCE, f"s3://{bucket}/… is not below what the setting source_allow names"
            )

    async def read(self, reference: Reference, ticket: Ticket) -> bytes:
        """Read an object.

        Args:
            reference: Of the scheme `s3`.
            ticket: The time there is, and the memory that the object is charged to.

        Raises:
            ImageError: Whatever went wrong.
            TimeoutError: The time is up.
        """
        self.require_allowed(reference)
        return await with_retries(lambda: self._attempt(reference, ticket), ticket.clock)

    def close(self) -> None:
        """Close the connections; a read under way ends on its own."""
        self._threads.close(wait=False)
        with self._lock:
            clients, self._clients = self._clients, None
        if clients is not None:
            clients[0].close()

    async def _attempt(self, reference: Reference, ticket: Ticket) -> bytes:
        async with self._admission.working(ticket):
            client, fast = await self._opened(ticket)
            if fast is not None:
                try:
                    return await fast.read(reference, ticket.hold)
                except CannotRead:
                    pass  # boto3 can
            return await self._read_in_thread(client, reference, ticket)

    async def _read_in_thread(self, client: Any, reference: Reference, ticket: Ticket) -> bytes:
        loop = asyncio.get_running_loop()

        def charge(size: int) -> None:
            asyncio.run_coroutine_threadsafe(ticket.hold.grow(size), loop).result()

        call = BotoCall(client, reference, max_bytes=self._settings.max_bytes, charge=charge)
        try:
            return await self._threads.run(ticket.lane, call.read)
        except asyncio.CancelledError:
            call.give_up()
            raise

    async def _opened(self, ticket: Ticket) -> _Clients:
        if self._clients is not None:
            return self._clients
        return await self._threads.run(ticket.lane, self._open)

    def _open(self) -> _Clients:
        """Both clients, made once; may ask a metadata server for credentials."""
        with self._lock:
            if self._clients is not None:
                return self._clients
            session, client, private_ca = make_client(self._settings)
            fast = None
            if self._settings.s3_client == "auto" and not private_ca and importlib.util.find_spec("obstore"):
                fast = ObstoreReader(self._settings, session, client)
            made: _Clients = (client, fast)
            self._clients = made
            return made


def source_prefixes(entries: Iterable[str]) -> list[tuple[str, str]]:
    """The setting `source_allow`, as buckets and prefixes of keys.

    Raises:
        SettingsError: An entry is not `s3://bucket` or `s3://bucket/prefix`.
    """
    prefixes = []
    for entry in entries:
        bucket, _, prefix = entry.removeprefix("s3://").partition("/")
        if not entry.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise SettingsError(f"source_allow: {entry!r} is not s3://bucket or s3://bucket/prefix")
        prefixes.append((bucket, prefix))
    return prefixes


def _covers(allowed: tuple[str, str], bucket: str, key: str) -> bool:
    """Whether a key lies below an allowed prefix; `public` covers `public/a` and not `public-not/a`."""
    allowed_bucket, prefix = allowed
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    return bucket == allowed_bucket and (key == prefix or key.startswith(folder))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
