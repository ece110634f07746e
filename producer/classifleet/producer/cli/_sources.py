"""Where `classifleet bulk` takes its images from. Every image has an id that joins its result to its source.

    Folder     a local folder         id: the path relative to it
    Bucket     an s3:// prefix        id: the key
    Manifest   .txt, .jsonl, .csv     id: its `id` column, else the line's number

Each lists its images in an order that is the same each time, lazily: a resumed job relies on it.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from classifleet.config import InvalidRequest, Settings, StorageError
from classifleet.config.storage import FolderStore, open_store
from classifleet.producer._request import Ref, SubmitItem
from classifleet.producer.cli._manifest import SUFFIXES, read_rows
from classifleet.producer.cli._reader import Reader, file_reference
from classifleet.producer.cli._terminal import warn

Wanted = Callable[[str], bool]


class Source(Protocol):
    """A source of images."""

    def items(self, wanted: Wanted) -> Iterator[SubmitItem]:
        """Every image whose id is wanted. Files are read when their turn comes."""

    def check(self, wanted: Wanted) -> None:
        """Find out before anything is started what would fail later.

        Raises:
            InvalidRequest: Nothing is there that is wanted, or it cannot be read.
        """

    def folders(self) -> list[str]:
        """The folders that an embedded worker must be allowed to read."""


def open_source(text: str, settings: Settings, *, embedded: bool, out: Path | None) -> Source:
    """The source that a command line names.

    Args:
        text: A folder, an `s3://` prefix or a manifest.
        settings: For the object store, and for the size that an image may have.
        embedded: The worker is this command's own, and may read the folder itself.
        out: A local folder that results are written to; its files are no images.

    Raises:
        InvalidRequest: There is no such source.
    """
    if text.startswith("s3://"):
        return Bucket(text, settings)
    path = Path(text)
    if path.is_dir():
        if out is not None and out.resolve() == path.resolve():
            raise InvalidRequest(f"{text} is the source and the destination: give --out a folder of its own")
        return Folder(path.resolve(), Reader(settings.max_bytes), worker_reads=embedded, out=out)
    if not path.exists():
        raise InvalidRequest(f"{text}: there is no such folder or manifest")
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequest(
            f"{text} is neither a folder nor a manifest ({', '.join(SUFFIXES)}); for single images there is "
            "`classifleet classify`"
        )
    return Manifest(path, Reader(settings.max_bytes), settings.chunk_size)


@dataclass(frozen=True, slots=True)
class Globs:
    """Which ids are wanted: one of `include` matches (if there are any) and none of `exclude`.

    A glob is for the whole id or for what follows its last slash; `*` matches slashes, too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        return not _matches(name, self.exclude) and (not self.include or _matches(name, self.include))


@dataclass(frozen=True, slots=True)
class Folder:
    """Every regular file below a folder."""

    path: Path
    reader: Reader
    worker_reads: bool = False
    out: Path | None = None

    def items(self, wanted: Wanted) -> Iterator[SubmitItem]:
        """See `Source`."""
        for name in self._names(wanted, lambda error: warn(f"{error}; the rest goes on")):
            path = self.path / name
            # A file:// reference is text, so a name that is none can only be read here.
            by_worker = self.worker_reads and _is_text(name)
            yield _as_id(name), file_reference(path) if by_worker else self.reader.read(path)

    def check(self, wanted: Wanted) -> None:
        """See `Source`."""
        _require_one(self._names(wanted, lambda _: None), str(self.path))

    def folders(self) -> list[str]:
        """See `Source`."""
        return [str(self.path)]

    def _names(self, wanted: Wanted, unreadable: Callable[[StorageError], None]) -> Iterator[str]:
        ours = None if self.out is None else self.out.resolve()
        for name in FolderStore(self.path, unreadable=unreadable).names():
            if wanted(_as_id(name)) and (ours is None or ours not in (self.path / name).parents):
                yield name


@dataclass(frozen=True, slots=True)
class Bucket:
    """Every object whose key starts with a prefix."""

    url: str
    settings: Settings

    def items(self, wanted: Wanted) -> Iterator[SubmitItem]:
        """See `Source`."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        # The bucket itself is opened, so that the ids are whole keys.
        for key in open_store(f"s3://{bucket}", self.settings).names(prefix):
            if wanted(key):
                yield key, f"s3://{bucket}/{key}"

    def check(self, wanted: Wanted) -> None:
        """See `Source`."""
        _require_one(self.items(wanted), self.url)

    def folders(self) -> list[str]:
        """See `Source`."""
        return []


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images that a file lists. A path in it is relative to it; all with a scheme goes to the worker as it is."""

    path: Path
    reader: Reader
    chunk_size: int

    def items(self, wanted: Wanted) -> Iterator[SubmitItem]:
        """See `Source`."""
        for row in read_rows(self.path):
            if wanted(row.id):
                yield row.id, self._ref(row.ref), row.meta

    def check(self, wanted: Wanted) -> None:
        """Read the whole manifest once: a wrong line would else stop a job in its middle."""
        count, ids = 0, set[str]()
        for row in read_rows(self.path):
            if not wanted(row.id):
                continue
            if count % self.chunk_size == 0:
                ids.clear()  # constant memory; a chunk is where two images of one id cannot be told apart
            if row.id in ids:
                raise InvalidRequest(f"{self.path}, line {row.line}: the id {row.id!r} is given to two images")
            ids.add(row.id)
            count += 1
        if count == 0:
            raise _nothing(str(self.path))

    def folders(self) -> list[str]:
        """See `Source`."""
        return []

    def _ref(self, text: str) -> Ref:
        if "://" in text or text[:5].lower() == "data:":
            return text
        return self.reader.read((self.path.parent / text).absolute())


def _as_id(name: str) -> str:
    """A file's name as text: bytes that are none become escapes."""
    return name if _is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _matches(name: str, globs: Iterable[str]) -> bool:
    base = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(base, glob) for glob in globs)


def _require_one(found: Iterator[object], where: str) -> None:
    if next(found, None) is None:
        raise _nothing(where)


def _nothing(where: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: there is no image to classify (--include and --exclude may leave some out)")
