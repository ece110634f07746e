"""Where the records of `classifleet bulk` go.

- A folder: this command collects them into OUT/results.ndjson, failures.ndjson and summary.json.
- A sink: the workers write them to OUT/<job>/parts/… and manifest.json; this command adds the last two.
"""

from __future__ import annotations

from pathlib import Path

from classifleet.config import InvalidRequest, Settings, parse_reference
from classifleet.config.storage import open_store
from classifleet.producer.cli._folder_destination import FolderDestination
from classifleet.producer.cli._records import Destination
from classifleet.producer.cli._sink_destination import SinkDestination


def open_destination(text: str, settings: Settings) -> Destination:
    """The destination that a command line names.

    Raises:
        InvalidRequest: It is none.
        StorageError, MissingExtra: The sink cannot be opened.
    """
    if text.startswith(("s3://", "file://")):
        sink = text.rstrip("/")
        return SinkDestination(sink, open_store(sink, settings))
    if "://" in text:
        raise InvalidRequest(f"--out {text}: it is neither a folder nor s3://bucket/prefix nor file:///folder")
    return FolderDestination(Path(text))


def local_folder(text: str) -> Path | None:
    """The folder on this machine that a destination is, or may be."""
    if text.startswith("file://"):
        return Path(parse_reference(text).location)
    return None if "://" in text else Path(text)
