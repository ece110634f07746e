"""Object storage, as the little of it that a fleet needs: `s3://bucket/prefix` and `file:///folder`.

boto3 is imported when the first `s3://` URL is opened, and only then.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from classifleet.config.errors import ImageError, MissingExtra, StorageError, StorageUnavailable
from classifleet.config.reference import parse_reference
from classifleet.config.settings import Settings

S3_POOL_CONNECTIONS: Final = 64
PUT_ATTEMPTS: Final = 5
_TEMPORARY_SUFFIX: Final = ".classifleet-partial"
_ABSENT: Final = frozenset({"404", "NoSuchKey", "NotFound"})  # a missing bucket is a mistake, not a missing object
_PASSING: Final = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"})
_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's name and when it was written, in seconds since the epoch by the store's clock."""

    name: str
    modified: float


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

    def prune(self, name: str) -> None:
        """Remove the folders of a deleted object that are empty now; stores without folders have none."""

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """The objects whose names begin with `prefix`, in the order of `names`."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Object names that begin with `prefix`, page by page.

        The order is the same each time: that of the keys, or, on S3 servers that are made of folders, folder by
        folder.
        """


def open_store(url: str, settings: Settings) -> Store:
    """Open `s3://bucket/prefix` or `file:///folder`.

    Raises:
        StorageError: The URL is neither.
        MissingExtra: S3 without boto3.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if bucket:
            return S3Store(bucket, prefix, s3_client(settings))
    if url.startswith("file://"):
        with suppress(ImageError):
            return FolderStore(Path(parse_reference(url).location))
    raise StorageError(f"{url!r} is neither s3://bucket/prefix nor file:///folder")


class Stores:
    """Stores that stay open; an S3 client takes a tenth of a second to make.

    Safe to share between threads and to keep across a fork.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[tuple[int, str], Store] = {}

    def open(self, url: str) -> Store:
        """See `open_store`. A forked child opens its own: it must not write to its parent's sockets."""
        key = (os.getpid(), url)
        if key not in self._opened:
            self._opened[key] = open_store(url, self._settings)
        return self._opened[key]


class FolderStore:
    """Objects as files below a folder.

    Args:
        root: The folder.
        unreadable: Told of folders below it that cannot be listed, which are then left out. Default: that is an error.
    """

    def __init__(self, root: Path, *, unreadable: Callable[[StorageError], None] | None = None) -> None:
        self.root = root
        self._unreadable = unreadable
        self.url = "file://" + quote(str(root))

    def put(self, name: str, data: bytes) -> None:
        """Write to a temporary file beside the target, then rename: readers see all of it or nothing."""
        path = self._path(name)
        try:
            for attempt in range(PUT_ATTEMPTS):
                try:
                    _write(path, data)
                    return
                except (FileNotFoundError, FileExistsError):  # `prune` took a folder away while this made or used it
                    if attempt == PUT_ATTEMPTS - 1:
                        raise
        except OSError as error:
            raise _refused("write", path, error) from error

    def get(self, name: str) -> bytes:
        """Read a file."""
        path = self._path(name)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"there is no {path}") from None
        except OSError as error:
            raise _refused("read", path, error) from error

    def delete(self, name: str) -> None:
        """Delete a file."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:  # a file stands where the name has a folder, so there is no such object
            return
        except OSError as error:
            raise _refused("delete", path, error) from error

    def prune(self, name: str) -> None:
        """Remove the folders that led to a file and are empty, but never the root."""
        for folder in self._path(name).parents:
            if folder == self.root or not folder.is_relative_to(self.root):
                return
            try:
                folder.rmdir()
            except FileNotFoundError:  # somebody else was faster; go on upwards
                continue
            except OSError:  # not empty, or not ours to remove
                return

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Files as `names` lists them; one that is deleted meanwhile is left out."""
        for name in self.names(prefix):
            with suppress(FileNotFoundError):
                yield StoredObject(name, self._path(name).stat().st_mtime)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Regular files, and links to files below the folder; links to folders are not followed."""
        folder = prefix.rpartition("/")[0]
        return (name for name in self._walk(folder) if name.startswith(prefix))

    def _walk(self, folder: str) -> Iterator[str]:
        entries = {f"{folder}/{entry.name}".lstrip("/"): entry for entry in self._entries(folder)}
        # A folder sorts by its name with the slash, as the keys below it do.
        for name in sorted(f"{name}/" if _is_folder(entry) else name for name, entry in entries.items()):
            if name.endswith("/"):
                yield from self._walk(name[:-1])
            elif self._is_listed(entries[name]):
                yield name

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        path = self._path(folder)
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            failure = _refused("list", path, error)
            if not folder or self._unreadable is None:
                raise failure from error
            self._unreadable(failure)
            return []

    def _is_listed(self, entry: os.DirEntry[str]) -> bool:
        if entry.name.endswith(_TEMPORARY_SUFFIX) or not entry.is_file():
            return False
        return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(self.root.resolve())

    def _path(self, name: str) -> Path:
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{name!r} leads out of {self.url}")
        return self.root / name


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _refused(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot {verb} {path}: {error.strerror or error}")


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

    def prune(self, name: str) -> None:
        """There is nothing to do."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """List page by page; "folders" (keys that end in /) are left out."""
        return (found.name for found in self.objects(prefix))

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """The same with the time of writing."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        pages = iter(pages)
        while page := self._call("", lambda _: next(pages, None)):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield StoredObject(entry["Key"][len(self.prefix) :], entry["LastModified"].timestamp())

    def _call(self, name: str, call: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        key = self.prefix + name
        try:
            return call(key)
        except (BotoCoreError, ClientError) as error:
            raise _s3_failure(f"s3://{self.bucket}/{key}", error) from error


def _s3_failure(url: str, error: Any) -> Exception:
    """What a failure of boto3 means: nothing there, try again, or give up."""
    from botocore import exceptions

    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _ABSENT:
        return FileNotFoundError(f"{url}: {code}")
    passing = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
    if isinstance(error, passing) or code in _PASSING or status >= _SERVER_ERROR:
        return StorageUnavailable(f"{url}: {error}")
    return StorageError(f"{url}: {error}")


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
        retries={"mode": "standard", "total_max_attempts": 3},
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
