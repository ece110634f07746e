"""Writes records to object storage as parts, and the manifest that names the winning ones.

    <sink>/<job>/parts/<chunk>-<attempt>-<by>.ndjson     one record a line
    <sink>/<job>/manifest.json                           written last; lists winners only

Readers follow the manifest (or `Job.results()`), never a listing of the prefix: a part whose commit lost may lie
there for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import stamina

from classifleet.config import (
    ErrorCode,
    ImageError,
    MissingExtra,
    Settings,
    StorageError,
    StorageUnavailable,
    parse_reference,
)
from classifleet.config.storage import Store, open_store
from classifleet.ledger import Part
from classifleet.ledger.calls import GRANT_CHARACTERS

MANIFEST_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
WRITE_ATTEMPTS: Final = 3
WRITE_SECONDS: Final = 20.0
GAP_SECONDS: Final = 3600.0  # without a try: then it is not known whether a sink failed all the time


def part_name(chunk: str, attempt: int, by: str) -> str:
    """The name of a part, relative to its job.

    `by` is the writer's grant, or a digest: attempts are counted anew when a job's id is used again, and after a
    failover of Redis that forgot some. No writer may overwrite the part of another.
    """
    return f"parts/{chunk}-{attempt}-{by[:GRANT_CHARACTERS]}.ndjson"


class Sinks:
    """The sinks that this worker may write to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open = lru_cache(maxsize=64)(lambda sink: open_store(sink, settings))

    def require_allowed(self, sink: str) -> None:
        """Check a sink against the allow-list.

        Raises:
            ImageError: `forbidden_source`, saying which setting allows it.
        """
        if not any(_is_below(sink, allowed) for allowed in self._settings.sink_allow):
            raise ImageError(
                ErrorCode.FORBIDDEN_SOURCE, f"the sink {sink} is not below any of the worker's CLASSIFLEET_SINK_ALLOW"
            )

    def write_part(self, sink: str, job: str, name: str, records: Iterable[bytes]) -> None:
        """Write a part, with retries.

        Raises:
            StorageError, StorageUnavailable: The store refuses, or is away for longer than a minute.
        """
        self._write(sink, f"{job}/{name}", b"".join(record + b"\n" for record in records))

    def delete_part(self, sink: str, job: str, name: str) -> None:
        """Delete a part whose commit lost."""
        self._store(sink).delete(f"{job}/{name}")

    def part_names(self, sink: str, job: str) -> Iterator[str]:
        """Names of a job's parts, winning or not, relative to the job."""
        return (name.removeprefix(f"{job}/") for name in self._store(sink).names(f"{job}/parts/"))

    def write_manifest(self, sink: str, job: str, fields: dict[str, Any], parts: Sequence[Part]) -> None:
        """Write the manifest; see `write_part` for errors."""
        manifest = {
            "v": MANIFEST_VERSION,
            "job": job,
            **fields,
            "parts": [
                {"name": p.name, "images": p.images, "ok": p.ok, "partial": p.partial, "failed": p.failed}
                for p in parts
            ],
        }
        self._write(sink, f"{job}/{MANIFEST_NAME}", json.dumps(manifest, indent=1).encode())

    def _write(self, sink: str, name: str, data: bytes) -> None:
        for attempt in stamina.retry_context(on=StorageUnavailable, attempts=WRITE_ATTEMPTS, timeout=WRITE_SECONDS):
            with attempt:
                self._put(sink, name, data)

    def _put(self, sink: str, name: str, data: bytes) -> None:
        try:
            self._store(sink).put(name, data)
        except (FileNotFoundError, MissingExtra) as error:  # some stores say "not found" of a bucket that is gone
            raise StorageError(str(error)) from error

    def _store(self, sink: str) -> Store:
        store: Store = self._open(sink)
        return store


def _is_below(sink: str, allowed: str) -> bool:
    allowed = allowed.rstrip("/")
    if sink.startswith("file://") and allowed.startswith("file://"):
        # resolved, so that neither .. nor a link leads out
        return _folder(sink).is_relative_to(_folder(allowed))
    return ".." not in sink.split("/") and (sink == allowed or sink.startswith(allowed + "/"))


def _folder(url: str) -> Path:
    return Path(parse_reference(url).location).resolve()
