"""What a caller asks for, checked and turned into the parts of a job: header, chunks, payloads."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, get_args

from classifleet.config import (
    ErrorCode,
    ImageError,
    InvalidRequest,
    Lane,
    Options,
    Payload,
    Settings,
    data_reference,
    make_payload,
)
from classifleet.config.payload import MAX_CHUNK_ITEMS, check_job_id, chunk_name
from classifleet.config.reference import PARKED_SCHEMES, decode_data_uri

Ref = str | bytes | os.PathLike[str]
SubmitItem = Ref | tuple[str, Ref] | tuple[str, Ref, Mapping[str, str] | None]
Deadline = timedelta | float | datetime


class RequestOptions(TypedDict, total=False):
    """What may be said of any request besides its images and its models.

    Attributes:
        top_k: How many classes to return, best first (default 5).
        scores: `all` returns every class (some result formats need that); default `top`.
        threshold: Leave out confidences below this (0..1).
        deadline: After this (a timedelta, seconds, or an aware datetime) no work is done any more. For a job of
            many it counts for each chunk from when that is enqueued.
        lane: `interactive` (the default of `submit`) goes before `bulk` (the default of `submit_many`).
    """

    top_k: int
    scores: Literal["top", "all"]
    threshold: float | None
    deadline: Deadline | None
    lane: Lane


BASE64_GROWTH: Final = 4 / 3
CHUNKS_PER_ROUND_TRIP: Final = 16
GROUP_BYTES: Final = 8 << 20  # more is not gathered for one round trip, unless it is one chunk


def new_id() -> str:
    """A new job id: 12 hex digits of milliseconds, so that ids sort by time, and 80 random bits."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True, slots=True)
class Request:
    """Everything of a job but its images. `fresh`: its id is new, so that nothing of it can be known."""

    job: str
    models: tuple[str, ...]
    options: Options
    lane: Lane
    queue: str
    ttl_seconds: int
    deadline: Deadline | None = None
    sink: str | None = None
    fresh: bool = False

    def header(self, reply_to: str) -> dict[str, str]:
        """The fields of the job's hash in the ledger."""
        fields = {
            "queue": self.queue,
            "lane": self.lane,
            "models": json.dumps(self.models),
            "options": self.options.model_dump_json(exclude_none=True),
            "ttl_seconds": str(self.ttl_seconds),
            "reply_to": reply_to,
        }
        return fields | ({"sink": self.sink} if self.sink else {})

    def digest(self) -> str:
        """Equal for a repetition of the same request."""
        same = [self.models, self.options.model_dump(mode="json"), self.lane, self.sink]
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]

    def deadline_ms(self) -> int | None:
        """Milliseconds from now to the deadline; 0 if it has passed."""
        if self.deadline is None:
            return None
        return max(0, int(seconds_until(self.deadline) * 1000))


def make_request(
    settings: Settings,
    *,
    job: str | None,
    models: str | Sequence[str],
    options: RequestOptions,
    lane: Lane,
    sink: str | None = None,
) -> Request:
    """Check a request.

    Raises:
        InvalidRequest: Naming what is wrong with it.
    """
    lane, deadline = options.get("lane", lane), options.get("deadline")
    answer = {name: value for name, value in options.items() if name not in ("lane", "deadline")}
    names = (models,) if isinstance(models, str) else tuple(models)
    fresh = job is None
    job = check_job_id(job if job is not None else new_id())
    # The payload's model holds every rule of the wire, so a probe payload checks them in one place.
    probe = make_payload(job=job, chunk="0", items=[{"id": "0", "ref": ""}], models=list(names), options=answer)
    if lane not in get_args(Lane):
        raise InvalidRequest(f"the lane is {' or '.join(get_args(Lane))}, not {lane!r}")
    if len(set(names)) != len(names):
        raise InvalidRequest(f"a model is named twice: {', '.join(names)}")
    if sink is not None and not sink.startswith(("s3://", "file:///")):
        raise InvalidRequest(f"the sink {sink!r} is neither s3://bucket/prefix nor file:///folder")
    if deadline is not None:
        seconds_until(deadline)
    return Request(
        job=job,
        models=names,
        options=probe.options,
        lane=lane,
        queue=settings.queue_of(list(names), lane),
        ttl_seconds=settings.result_ttl_seconds,
        deadline=deadline,
        sink=sink.rstrip("/") if sink else None,
        fresh=fresh,
    )


def seconds_until(deadline: Deadline) -> float:
    """A deadline as seconds from now.

    Raises:
        InvalidRequest: It is a datetime without a time zone, or not a deadline, or not positive.
    """
    match deadline:
        case timedelta():
            seconds = deadline.total_seconds()
        case datetime():
            if deadline.tzinfo is None:
                raise InvalidRequest("the deadline has no time zone: use datetime.now(UTC) + …")
            return (deadline - datetime.now(UTC)).total_seconds()
        case bool():
            raise InvalidRequest("the deadline is a timedelta, seconds, or an aware datetime")
        case int() | float():
            seconds = float(deadline)
        case _:
            raise InvalidRequest("the deadline is a timedelta, seconds, or an aware datetime")
    if seconds <= 0:
        raise InvalidRequest(f"the deadline of {seconds} s is not in the future")
    return seconds


@dataclass(frozen=True, slots=True)
class Blob:
    """An image to be parked beside its payload."""

    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A payload ready for the ledger, and the images it refers to by hash."""

    payload: Payload
    blobs: tuple[Blob, ...] = ()


FIRST_CHUNK: Final = chunk_name(0)


def make_chunk(request: Request, number: int, items: Iterable[tuple[int, SubmitItem]], settings: Settings) -> Chunk:
    """Turn submitted items, with their positions in the job, into a chunk. Reads the files of `Path` items.

    Raises:
        InvalidRequest: An item is not valid; says which and why.
    """
    blobs: dict[str, Blob] = {}
    wire = [_wire_item(position, item, settings, blobs) for position, item in items]
    payload = make_payload(
        job=request.job,
        chunk=chunk_name(number),
        items=wire,
        models=list(request.models),
        options=request.options,
        sink=request.sink,
        deadline_seconds=None if request.deadline is None else max(0.001, seconds_until(request.deadline)),
    )
    return Chunk(payload, tuple(blobs.values()))


def _wire_item(position: int, item: SubmitItem, settings: Settings, blobs: dict[str, Blob]) -> dict[str, Any]:
    image_id, ref, meta = _take_apart(position, item)
    wire: dict[str, Any] = {"id": image_id, "ref": _inline_or_park(image_id, ref, settings, blobs)}
    return wire | ({"meta": dict(meta)} if meta else {})


def _take_apart(position: int, item: SubmitItem) -> tuple[str, Ref, Mapping[str, str] | None]:
    match item:
        case (str(image_id), ref):
            return image_id, ref, None
        case (str(image_id), ref, meta):
            return image_id, ref, meta
        case str() | bytes() | os.PathLike():
            return str(position), item, None
    raise InvalidRequest(
        f"item {position} is a {type(item).__name__}: give a reference, (id, reference) or (id, reference, meta)"
    )


_OURS_OR_DATA: Final = (*PARKED_SCHEMES, "data:")


def _inline_or_park(image_id: str, ref: Ref, settings: Settings, blobs: dict[str, Blob]) -> str:
    match ref:
        case str() if not ref[:6].lower().startswith(_OURS_OR_DATA):
            return ref
        case str() if ref[:6].lower().startswith(PARKED_SCHEMES):
            raise InvalidRequest(
                f"image {image_id!r}: a reference of the scheme {ref.partition(':')[0]} is never given"
            )
        case str() if len(ref) <= settings.inline_max_bytes * BASE64_GROWTH:
            return ref
        case str():
            data = _data_or_text(ref, settings)
        case bytes():
            data = ref
        case os.PathLike():
            data = _read(image_id, Path(ref), settings)
        case _:
            raise InvalidRequest(
                f"image {image_id!r}: a reference is a str, bytes or a Path, not {type(ref).__name__}"
            )
    if not data:
        raise InvalidRequest(f"image {image_id!r} is empty")
    if len(data) <= settings.inline_max_bytes:
        return data_reference(data)
    if len(data) > settings.max_bytes:
        raise InvalidRequest(
            f"image {image_id!r} has {len(data)} bytes; at most {settings.max_bytes} are accepted "
            "(CLASSIFLEET_MAX_BYTES, on the worker too)"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    blobs[sha256] = Blob(sha256, data)
    return f"claim:{sha256}" if settings.claim_store else f"blob:{sha256}"


def _data_or_text(ref: str, settings: Settings) -> bytes:
    """What a long `data:` reference holds; if it is malformed its text, which the worker finds not to be an image."""
    try:
        return decode_data_uri(ref[5:], max_bytes=settings.max_bytes)
    except ImageError as error:
        if error.code is ErrorCode.TOO_LARGE:
            raise InvalidRequest(str(error)) from None
        return ref.encode("utf-8", "surrogatepass")


def _read(image_id: str, path: Path, settings: Settings) -> bytes:
    try:
        if path.stat().st_size > settings.max_bytes:
            raise InvalidRequest(f"image {image_id!r}: {path} is over {settings.max_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"image {image_id!r}: cannot read {path}: {error.strerror or error}") from None


class Chunker:
    """Cuts a stream of items into chunks, and the chunks into groups for one round trip.

    A group is whole chunks, so that the same items always make the same chunks. It ends when it is heavy: what is
    in memory at one time is a group, `GROUP_BYTES` or a chunk's images.

    `add` takes one item and answers with a group's items when one is full; `make` turns those into chunks, which
    may read files. The two are apart so that an event loop can call `make` in a thread. `chunks` is how many it made.
    """

    def __init__(self, request: Request, settings: Settings, chunk_size: int | None) -> None:
        size = chunk_size if chunk_size is not None else settings.chunk_size
        if not 1 <= size <= MAX_CHUNK_ITEMS:
            raise InvalidRequest(f"chunk_size is 1 to {MAX_CHUNK_ITEMS}, not {size}")
        self._request = request
        self._settings = settings
        self._size = size
        self._items: list[SubmitItem] = []
        self._bytes = 0
        self._position = 0
        self.chunks = 0

    def add(self, item: SubmitItem) -> list[SubmitItem]:
        """Take an item; a full group comes out, or nothing."""
        self._items.append(item)
        self._bytes += len(item) if type(item) is str else _weight(item)
        if len(self._items) % self._size:
            return []
        full = len(self._items) >= self._size * CHUNKS_PER_ROUND_TRIP or self._bytes >= GROUP_BYTES
        return self.rest() if full else []

    def rest(self) -> list[SubmitItem]:
        """What has been taken and has not come out."""
        items, self._items, self._bytes = self._items, [], 0
        return items

    def make(self, items: Sequence[SubmitItem]) -> list[Chunk]:
        """The chunks of a group."""
        chunks = []
        for start in range(0, len(items), self._size):
            numbered = enumerate(items[start : start + self._size], self._position)
            chunks.append(make_chunk(self._request, self.chunks, numbered, self._settings))
            self.chunks += 1
            self._position += min(self._size, len(items) - start)
        return chunks

    def groups(self, items: Iterable[SubmitItem]) -> Iterator[list[Chunk]]:
        """All chunks of an iterable, group by group."""
        for item in items:
            if group := self.add(item):
                yield self.make(group)
        if group := self.rest():
            yield self.make(group)


def _weight(item: SubmitItem) -> int:
    """Bytes that an item takes when its chunk is made. How large a file is shows only then: it ends the group."""
    ref: object = item[1] if isinstance(item, tuple) and item[1:] else item
    if isinstance(ref, os.PathLike):
        return GROUP_BYTES
    return len(ref) if isinstance(ref, str | bytes) else 0
