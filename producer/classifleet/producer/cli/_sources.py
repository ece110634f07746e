"""Where `classifleet bulk` takes its images from. Every image has an id that joins its result to its source."""

from __future__ import annotations

import csv
import fnmatch
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from classifleet.config import InvalidRequest, Settings
from classifleet.config.storage import FolderStore, open_store
from classifleet.producer._request import Ref, SubmitItem

MANIFESTS: Final = (".txt", ".jsonl", ".ndjson", ".csv")
REF_COLUMNS: Final = ("ref", "url", "path", "image")


@dataclass(frozen=True, slots=True)
class Source:
    """A source of images.

    Attributes:
        text: As given on the command line.
        worker_reads_files: Refer to files by `file://`, for a worker that may read them, instead of sending them.
        include: Globs of ids; empty means all.
        exclude: Globs of ids; these win.
    """

    text: str
    worker_reads_files: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def check(self) -> None:
        """Say what is wrong before anything is started.

        Raises:
            InvalidRequest: There is no such source, or nothing in it.
        """
        if not self.text.startswith("s3://"):
            path = Path(self.text)
            if not path.exists():
                raise InvalidRequest(f"{self.text}: there is no such folder or manifest")
            if not path.is_dir() and path.suffix.lower() not in MANIFESTS:
                raise InvalidRequest(
                    f"{self.text} is neither a folder nor a manifest ({', '.join(MANIFESTS)}); for single images "
                    "use `classifleet classify`"
                )

    def folders(self) -> list[str]:
        """The folders that a worker must be allowed to read."""
        return [str(Path(self.text).resolve())] if Path(self.text).is_dir() else []

    def items(self, settings: Settings) -> Iterator[SubmitItem]:
        """Every image, in an order that is the same each time.

        Raises:
            InvalidRequest: Nothing is left of the source, or a line of a manifest is wrong.
        """
        items = (item for item in self._all(settings) if self._wanted(item[0]))
        first = next(items, None)
        if first is None:
            raise InvalidRequest(f"{self.text}: no image to classify" + (" passes the globs" if self._globs() else ""))
        return chain([first], items)

    def _all(self, settings: Settings) -> Iterator[tuple[Any, ...]]:
        path = Path(self.text)
        if self.text.startswith("s3://"):
            return self._bucket(settings)
        if path.is_dir():
            return self._folder(path.resolve(), settings)
        return _manifest(path)

    def _bucket(self, settings: Settings) -> Iterator[tuple[str, Ref]]:
        bucket, _, prefix = self.text.removeprefix("s3://").partition("/")
        # The bucket itself is opened, so that the ids are whole keys.
        for key in open_store(f"s3://{bucket}", settings).names(prefix):
            yield key, f"s3://{bucket}/{key}"

    def _folder(self, folder: Path, settings: Settings) -> Iterator[tuple[str, Ref]]:
        for name in FolderStore(folder).names():
            path = folder / name
            by_worker = self.worker_reads_files or not _sendable(path, settings)
            yield name, "file://" + quote(str(path)) if by_worker else path

    def _wanted(self, name: str) -> bool:
        return not _matches(name, self.exclude) and (not self.include or _matches(name, self.include))

    def _globs(self) -> bool:
        return bool(self.include or self.exclude)


def _matches(name: str, globs: Iterable[str]) -> bool:
    base = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(base, glob) for glob in globs)


def _sendable(path: Path, settings: Settings) -> bool:
    """Whether the producer can send the file itself; what it cannot send the worker answers with an error record."""
    return os.access(path, os.R_OK) and 0 < path.stat().st_size <= settings.max_bytes


def _manifest(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        match path.suffix.lower():
            case ".txt":
                lines = ((number, line.strip()) for number, line in enumerate(file, 1))
                yield from ((str(number), _ref(line, path)) for number, line in lines if line)
            case ".csv":
                yield from _csv(path, csv.DictReader(file))
            case _:
                yield from _jsonl(path, file)


def _csv(path: Path, rows: Any) -> Iterator[tuple[Any, ...]]:
    column = next((name for name in REF_COLUMNS if name in (rows.fieldnames or ())), None)
    if column is None:
        raise InvalidRequest(f"{path}: its first line names no column {' or '.join(REF_COLUMNS)}")
    for row in rows:
        yield _row(path, rows.line_num, row, row.get(column))


def _jsonl(path: Path, lines: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{path}, line {number}: not JSON: {error}") from None
        if isinstance(row, str):
            row = {"ref": row}
        if not isinstance(row, dict):
            raise InvalidRequest(f"{path}, line {number}: expected an object or a string")
        yield _row(path, number, row, next((row[name] for name in REF_COLUMNS if name in row), None))


def _row(path: Path, number: int, row: Mapping[str, Any], ref: Any) -> tuple[Any, ...]:
    if not isinstance(ref, str) or not ref:
        raise InvalidRequest(f"{path}, line {number}: it has no {' or '.join(REF_COLUMNS)}")
    image_id = row.get("id")
    meta = row.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise InvalidRequest(f"{path}, line {number}: meta is an object of strings")
    return str(number) if image_id in (None, "") else str(image_id), _ref(ref, path), meta


def _ref(text: str, manifest: Path) -> Ref:
    """A path is relative to its manifest; everything with a scheme goes to the worker as it is."""
    if "://" in text or text[:5].lower() == "data:":
        return text
    path = manifest.parent / text
    return path if path.is_file() else "file://" + quote(str(path.resolve()))
