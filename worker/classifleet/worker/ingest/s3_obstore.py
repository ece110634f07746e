"""Objects through obstore: the same answers as boto3's for a quarter of its CPU, and no thread.

It is given boto3's own addresses, region and credentials, so that both read the same store. What it cannot say or do
(`CannotRead`) is left to boto3.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from classifleet.config.errors import ImageError
from classifleet.config.reference import Reference
from classifleet.config.settings import Settings
from classifleet.worker.ingest import s3_errors
from classifleet.worker.ingest.memory import Hold

if TYPE_CHECKING:
    from obstore.store import S3Store

MAX_STORES: Final = 64  # one a bucket; strangers may name as many as they like where `source_allow` is empty
CREDENTIALS_TTL: Final = timedelta(minutes=5)  # botocore renews them at least ten minutes before they expire

_PROBE_KEY: Final = "key"
_STATUS: Final = re.compile(r"status code: ([0-9]{3})", re.ASCII)
_NAME: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>", re.ASCII)
_MOVED: Final = re.compile(r"incorrectly configured region|status code: 30[17]")
_UNSIZED: Final = "Content-Length Header missing"


class CannotRead(Exception):
    """The object may be there, and this client is not the one to read it."""


class ObstoreReader:
    """Reads objects on the event loop.

    Args:
        settings: Limits.
        session: A boto3 session, for credentials.
        client: boto3's client, which knows where buckets are.

    Raises:
        ImageError: There are no credentials.
        ImportError: obstore is not installed.
    """

    def __init__(self, settings: Settings, session: Any, client: Any) -> None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        self._settings = settings
        self._client = client
        try:
            self._credentials: Any = Boto3CredentialProvider(session, ttl=CREDENTIALS_TTL)
        except ValueError:
            raise s3_errors.no_credentials() from None
        self._stores: OrderedDict[str, S3Store] = OrderedDict()
        self._elsewhere: OrderedDict[str, None] = OrderedDict()

    async def read(self, reference: Reference, hold: Hold) -> bytes:
        """Read an object.

        Args:
            reference: Of the scheme `s3`, checked against the allow-list.
            hold: What its bytes are charged to.

        Raises:
            ImageError: Whatever went wrong.
            CannotRead: boto3 must try.
        """
        import obstore
        from obstore.exceptions import BaseError

        if not _is_plain(reference.location) or reference.bucket in self._elsewhere:
            raise CannotRead
        try:
            store = await self._store(reference.bucket)
            version: Any = {"version": reference.version} if reference.version else None
            result = await obstore.get_async(store, reference.location, options=version)
            size = result.meta["size"]
            if size > self._settings.max_bytes:
                raise s3_errors.too_large(size, self._settings.max_bytes)
            await hold.grow(size)
            # No longer than that: the client takes no answer without a length, and no more than its length.
            return bytes(await result.bytes_async())
        except ValueError:  # not a path to object_store, and yet S3 may know the key
            raise CannotRead from None
        except (BaseError, OSError) as error:
            raise self._failure(reference.bucket, str(error)) from None  # its text may quote signatures

    async def _store(self, bucket: str) -> S3Store:
        if (store := self._stores.get(bucket)) is None:
            # In a thread: what signs the URL may have to renew credentials, which asks a server.
            store = self._stores[bucket] = await asyncio.to_thread(self._make_store, bucket)
            _bound(self._stores)
        self._stores.move_to_end(bucket)
        return store

    def _make_store(self, bucket: str) -> S3Store:
        from obstore.store import S3Store

        url = self._client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE_KEY})
        endpoint, virtual = address_bucket(url, bucket, _PROBE_KEY)
        return S3Store(
            bucket,
            endpoint=endpoint,
            virtual_hosted_style_request=virtual,
            region=self._client.meta.region_name,
            credential_provider=self._credentials,
            client_options={
                "allow_http": endpoint.startswith("http:"),
                "connect_timeout": timedelta(seconds=self._settings.connect_timeout_seconds),
                "timeout": timedelta(seconds=self._settings.fetch_timeout_seconds),
                "user_agent": "classifleet",
            },
            retry_config={"max_retries": 0},  # `with_retries` knows the deadline
        )

    def _failure(self, bucket: str, text: str) -> Exception:
        if _MOVED.search(text):  # the bucket lives in another region, which boto3 finds out
            self._elsewhere[bucket] = None
            _bound(self._elsewhere)
            return CannotRead()
        if _UNSIZED in text:
            return CannotRead()
        return failure(text)


def failure(text: str) -> ImageError:
    """What an error of the client means, by its text: it has no better sign of a store's status and code."""
    status, name = _STATUS.search(text), _NAME.search(text)
    if status is not None:
        return s3_errors.refusal(int(status[1]), name[1] if name else "")
    if "timed out" in text:
        return s3_errors.timed_out()
    return s3_errors.no_answer("the connection failed")


def address_bucket(url: str, bucket: str, key: str) -> tuple[str, bool]:
    """A bucket's endpoint, and whether the bucket is in its host name, from the URL that boto3 makes for a key."""
    parts = urlsplit(url)
    folder = f"/{bucket}/{key}"
    if parts.path.endswith(folder):
        return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix(folder), "", "")), False
    return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix(f"/{key}"), "", "")), True


def _is_plain(key: str) -> bool:
    """Whether object_store leaves the key as it is; it drops slashes at both ends, and refuses empty segments."""
    return not key.startswith("/") and not key.endswith("/") and "//" not in key


def _bound(table: OrderedDict[str, Any]) -> None:
    while len(table) > MAX_STORES:
        table.popitem(last=False)
