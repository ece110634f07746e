"""Files of this machine, as references."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from classifleet.producer._request import Ref
from classifleet.producer.cli._terminal import warn

NOTES_SHOWN: Final = 5
EMPTY: Final = "data:,"  # which the worker answers with an error, as the producer does not send nothing


class Reader:
    """Reads files for the producer to send. What it cannot send it refers to, so that every image gets its record."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._notes = 0

    def read(self, path: Path) -> Ref:
        """The file's bytes, or a `file://` reference for the worker to answer."""
        try:
            if path.exists() and not path.is_file():
                return self._refer(path, "it is no regular file")
            if path.stat().st_size > self._max_bytes:
                return self._refer(path, f"it has more than {self._max_bytes} bytes (CLASSIFLEET_MAX_BYTES)")
            return path.read_bytes() or EMPTY
        except OSError as error:
            return self._refer(path, error.strerror or str(error))
        except ValueError as error:  # a NUL in a manifest's path
            return self._refer(path, str(error))

    def _refer(self, path: Path, why: str) -> str:
        self._notes += 1
        if self._notes <= NOTES_SHOWN:
            warn(f"{path} cannot be sent: {why}; left to the worker")
        elif self._notes == NOTES_SHOWN + 1:
            warn("more files cannot be sent; their records say so")
        return file_reference(path)


def file_reference(path: Path) -> str:
    """`file://` of a local path."""
    return "file://" + quote(os.fsencode(path))
