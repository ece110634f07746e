"""Object storage, as the little of it that a fleet needs: `s3://bucket/prefix` and `file:///folder`.

boto3 is imported when the first `s3://` URL is opened, and only then.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from classifleet.config.errors import MissingExtra, StorageError, StorageUnavailable
from classifleet.config.reference import parse_reference
from classifleet.config.settings import Settings

S3_POOL_CONNECTIONS: Final = 64
_ABSENT: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket"})


class Store(Protocol):
    """A place for objects. Names are relative to the store's own prefix and use `/`."""

    url: str

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole, or not at all."""

    def get(self, name: str) -> bytes:
        """Read an object.

        Raises:
            FileNotFoundError: There is none.
        """

    def delete(self, name: str) -> None:
        """Delete an object; it is no error if there is none."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """All object names below `prefix`, sorted, in constant memory for S3."""


def open_store(url: str, settings: Settings) -> Store:
    """Open `s3://bucket/prefix` or `file:///folder`.

    Raises:
        StorageError: The URL is neither.
        MissingExtra: S3 without boto3.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix, s3_client(settings))
    if url.startswith("file://"):
        return FolderStore(Path(parse_reference(url).location))
    raise StorageError(f"{url!r} is neither s3://bucket/prefix nor file:///folder")


class FolderStore:
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = "file://" + quote(str(root))

    def put(self, name: str, data: bytes) -> None:
        """Write to a temporary file beside the target, then rename: readers see all of it or nothing."""
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                file.write(data)
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    def get(self, name: str) -> bytes:
        """Read a file."""
        return (self.root / name).read_bytes()

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.root / name).unlink(missing_ok=True)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Regular files below the folder, sorted; what a link leads to outside is not listed."""
        for folder, folders, files in os.walk(self.root / prefix):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                if path.is_file() and not file.startswith("."):
                    yield path.relative_to(self.root).as_posix()


class S3Store:
    """Objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self.bucket = bucket
        self.prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._client = client

    def put(self, name: str, data: bytes) -> None:
        """Put an object."""
        self._call(name, lambda key: self._client.put_object(Bucket=self.bucket, Key=key, Body=data))

    def get(self, name: str) -> bytes:
        """Get an object."""
        body: bytes = self._call(name, lambda key: self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        return body

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._call(name, lambda key: self._client.delete_object(Bucket=self.bucket, Key=key))

    def names(self, prefix: str = "") -> Iterator[str]:
        """List page by page; "folders" (keys that end in /) are left out."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        pages = iter(pages)
        while page := self._call("", lambda _: next(pages, None)):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"][len(self.prefix) :]

    def _call(self, name: str, call: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        key = self.prefix + name
        try:
            return call(key)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _ABSENT:
                raise FileNotFoundError(f"s3://{self.bucket}/{key}: {code}") from error
            raise StorageError(f"s3://{self.bucket}/{key}: {error}") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"s3://{self.bucket}/{key}: {error}") from error


_client_lock = threading.Lock()  # making boto3 clients is not thread-safe; using them is


def s3_client(settings: Settings) -> Any:
    """A boto3 client for the configured endpoint; region and credentials come from the usual chain.

    Raises:
        MissingExtra: boto3 is not installed.
        StorageError: The client cannot be made, for lack of a region for example.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise MissingExtra("s3", "an s3:// URL") from None
    config = Config(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.fetch_timeout_seconds,
        max_pool_connections=S3_POOL_CONNECTIONS,
        retries={"mode": "standard", "max_attempts": 3},
        s3={"addressing_style": "path" if settings.s3_path_style else "auto"},
    )
    with _client_lock:
        try:
            session = boto3.session.Session()
            return session.client(
                "s3",
                endpoint_url=settings.s3_endpoint_url,
                region_name=session.region_name or "us-east-1",
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"no S3 client: {error}") from error
