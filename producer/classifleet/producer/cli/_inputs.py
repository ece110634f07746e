"""The images that `classifleet classify` is given."""

from __future__ import annotations

import http.client
import os
import re
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from classifleet.config import (
    ErrorCode,
    ImageError,
    InvalidRequest,
    Settings,
    StorageError,
    parse_reference,
    redact,
)
from classifleet.config.payload import MAX_ID_CHARS
from classifleet.config.reference import Reference, decode_data_uri
from classifleet.config.storage import open_store, s3_client
from classifleet.producer._request import Ref

DOWNLOAD_SECONDS: Final = 30
_IS_REFERENCE: Final = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_STEM_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class Input:
    """One image.

    Attributes:
        id: What it is called in the answers: as given, without what must not be shown.
        ref: Where it is: a local file's path, or a reference for the worker.
    """

    id: str
    ref: Ref

    def read(self, settings: Settings) -> bytes:
        """The image's bytes, read by this process.

        Raises:
            OSError, ClassifleetError: They cannot be read from here.
        """
        if isinstance(self.ref, Path):
            return self.ref.read_bytes()
        reference = parse_reference(str(self.ref))
        match reference.scheme:
            case "data":
                return decode_data_uri(reference.location, max_bytes=settings.max_bytes)
            case "s3":
                return _object(reference, settings)
            case "file":
                return Path(reference.location).read_bytes()
            case "http" | "https":
                return _download(reference.text, settings.max_bytes)
        raise ImageError(ErrorCode.INVALID_REFERENCE)

    @property
    def stem(self) -> str:
        """A name for a file that is made from it."""
        if self.id.startswith("data:"):
            return "image"
        return Path(self.id.partition("?")[0]).stem[:_STEM_CHARS] or "image"


def read_inputs(texts: Iterable[str], settings: Settings, *, embedded: bool) -> list[Input]:
    """Take the arguments apart. Each gets an id of its own; the same text twice is the same input twice.

    Args:
        texts: As given on the command line.
        settings: For the size that an image may have.
        embedded: The fleet is this command's own: then `file://` is a local file like any other.

    Raises:
        InvalidRequest: A file is not there, or cannot be sent.
    """
    inputs: dict[str, Input] = {}
    taken: set[str] = set()
    ordered = list(texts)
    for text in ordered:
        if text not in inputs:
            image_id = _unique(_shown(text), taken)
            inputs[text] = Input(image_id, _reference(text, settings, embedded=embedded))
    return [inputs[text] for text in ordered]


def _reference(text: str, settings: Settings, *, embedded: bool) -> Ref:
    """A file is read here; everything with a scheme is a reference for the worker."""
    if not _IS_REFERENCE.match(text):
        return _sendable(Path(text), settings)
    if embedded and text[:7].lower() == "file://":
        return _sendable(Path(parse_reference(text).location), settings)
    return text


def _sendable(path: Path, settings: Settings) -> Path:
    try:
        if path.is_dir():
            raise InvalidRequest(f"{path} is a folder: use `classifleet bulk {path} --out results/`")
        size = path.stat().st_size
    except FileNotFoundError:
        raise InvalidRequest(f"{path}: there is no such file, and it is not a URL") from None
    except OSError as error:
        raise InvalidRequest(f"{str(path)[:MAX_ID_CHARS]}: {error.strerror or error}") from None
    if not os.access(path, os.R_OK):
        raise InvalidRequest(f"{path}: this process may not read it")
    if size == 0:
        raise InvalidRequest(f"{path} is empty")
    if size > settings.max_bytes:
        raise InvalidRequest(f"{path} has {size} bytes; at most {settings.max_bytes} are sent (CLASSIFLEET_MAX_BYTES)")
    return path


def _shown(text: str) -> str:
    shown = redact(text) if _IS_REFERENCE.match(text) else text
    return shown.encode("utf-8", "backslashreplace").decode()[: MAX_ID_CHARS - 10]


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    taken.add(unique)
    return unique


def _object(reference: Reference, settings: Settings) -> bytes:
    if not reference.version:
        return open_store(f"s3://{reference.bucket}", settings).get(reference.location)
    client = s3_client(settings)
    from botocore.exceptions import BotoCoreError, ClientError

    where = {"Bucket": reference.bucket, "Key": reference.location, "VersionId": reference.version}
    try:
        data: bytes = client.get_object(**where)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{reference.text}: {error}") from error
    return data


def _download(url: str, max_bytes: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:  # noqa: S310 - http and https alone
            data: bytes = answer.read(max_bytes)
            return data
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
