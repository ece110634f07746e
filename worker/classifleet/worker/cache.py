"""What models made of a picture's bytes, kept for the next time that they come: re-uploads need no decoding.

    sha256 of the bytes ┐
    what else decides   ┴► key ─► in memory? ─► at work? wait for it ─► in the shared Redis? ─► decode, classify, keep

What else decides the answer: the models' files and how they are fed (normalisation too), the settings that decide what
is decoded and how, the promise of `precision`, this release, and which models were asked together: a JPEG is decoded
once for all of them, at a scale that suits all. Kept are the scores, before labels, thresholds and `top_k`; errors are
not: no memory and a corrupt file look alike to a decoder.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import numpy as np

from classifleet.config import ImageInfo, Lane
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.flights import Flight, Flights, Urgency
from classifleet.worker.formats import FORMATS
from classifleet.worker.instruments import CACHE, CACHE_BYTES
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.models import ModelDescription
from classifleet.worker.queues import Scores
from classifleet.worker.versions import ALL

ENTRY_BYTES: Final = 220
"""Of an entry in memory beside its own bytes: its key, the objects, its place in the dictionary."""
ON_LOOP_BYTES: Final = 32 << 10
"""Up to here hashing takes less than handing it to a thread."""
HASH_THREADS: Final = 2
PLAN_BYTES: Final = 16
_HEAD: Final = struct.Struct("<B?6sII")  # version, truncated, format, width, height
_VERSION: Final = 1
_FLOAT: Final = np.dtype("<f4")

Outcome = Literal["hit", "remote", "shared", "miss"]


class Remote(Protocol):
    """A cache that several workers share; see `cache_shared`. It never fails, it only knows nothing."""

    async def get(self, key: bytes) -> bytes | None:
        """An entry, if there is one."""

    def put(self, key: bytes, entry: bytes) -> None:
        """Keep an entry, soon."""

    async def close(self) -> None:
        """Give up what is under way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chunk asks of the cache: of the models that it asks for, those that are cached, and their widths."""

    key: bytes
    models: tuple[str, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a picture: what the record says of it, less its bytes, and the scores of each model."""

    width: int
    height: int
    format: str
    truncated: bool
    scores: Mapping[str, Scores]

    @classmethod
    def of(cls, info: ImageInfo, scores: Mapping[str, Scores]) -> Self:
        """What a record's `image` says, with the scores by model."""
        return cls(info["width"], info["height"], info["format"], info.get("truncated", False), scores)

    def info(self, size_bytes: int, sha256: str) -> ImageInfo:
        """What the record says of the image, whose bytes were so many."""
        info = ImageInfo(width=self.width, height=self.height, format=self.format, bytes=size_bytes, sha256=sha256)
        if self.truncated:
            info["truncated"] = True
        return info


def encode(known: Known, plan: Plan) -> bytes:
    """An entry: a head of 16 bytes, and the scores of the plan's models one after the other."""
    head = _HEAD.pack(_VERSION, known.truncated, known.format.encode(), known.width, known.height)
    return b"".join((head, *(np.asarray(known.scores[name], _FLOAT).tobytes() for name in plan.models)))


def decode(entry: bytes, plan: Plan) -> Known | None:
    """What an entry says; None if it is none of ours."""
    if len(entry) != _HEAD.size + _FLOAT.itemsize * sum(plan.widths):
        return None
    version, truncated, kind, width, height = _HEAD.unpack_from(entry)
    name = kind.rstrip(b"\0").decode("ascii", "replace")
    if version != _VERSION or name not in FORMATS:
        return None
    scores, start = {}, _HEAD.size
    for model, count in zip(plan.models, plan.widths, strict=True):
        scores[model] = np.frombuffer(entry, _FLOAT, count, start)
        start += count * _FLOAT.itemsize
    return Known(width, height, name, truncated, scores)


class Memory:
    """Entries in memory; of those that are too many, the least recently used go. Not safe across threads.

    Args:
        limit_bytes: All of them together, with what Python takes for each.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """An entry, which has been used now."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: bytes) -> None:
        """Keep an entry; one that is larger than the whole is not kept."""
        size = len(entry) + ENTRY_BYTES
        if key in self._entries or size > self._limit:
            return
        self._entries[key] = entry
        self.size_bytes += size
        while self.size_bytes > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= len(oldest) + ENTRY_BYTES
        CACHE_BYTES.set(self.size_bytes)


class ContentCache:
    """What is known of pictures. Lives on one event loop.

    Args:
        names: Of the models whose answers are kept, with or without version; `*` is all.
        limits: On what is decoded.
        promise: What else decides the answers, in words.
        limit_bytes: Of memory.
        remote: Asked for what is not in memory.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        limits: DecodeLimits,
        promise: str,
        limit_bytes: int,
        remote: Remote | None = None,
    ) -> None:
        self._names = frozenset(names)
        self._promise = f"{promise} {limits!r}"
        self._memory = Memory(limit_bytes)
        self._flights: Flights[Known] = Flights()
        self._remote = remote
        self._hashing = LaneExecutor(HASH_THREADS, "classifleet-hash")

    def plan(self, models: Mapping[str, ModelDescription]) -> Plan | None:
        """What to ask for a chunk that asks for these models; None if none of them is cached."""
        cached = sorted(name for name in models if self._caches(name))
        if not cached:
            return None
        decides = hashlib.sha256(self._promise.encode())
        for name in sorted(models):  # in the order of no request
            decides.update(models[name].preprocess.model_dump_json().encode())
        for model in (models[name] for name in cached):
            # with its name: who shares an inference that is under way gets answers by name
            decides.update(f"{model.key} {model.sha256} {model.input!r} {model.output.activation}".encode())
            decides.update(model.preprocess.model_dump_json().encode())
        widths = tuple(len(models[name].labels) for name in cached)
        return Plan(decides.digest()[:PLAN_BYTES], tuple(cached), widths)

    async def digest(self, data: bytes, lane: Lane) -> bytes:
        """sha256 of an image, hashed beside the event loop unless it is small."""
        if len(data) <= ON_LOOP_BYTES:
            return _sha256(data)
        return await self._hashing.run(lane, _sha256, data)

    def turn(self, sha256: bytes, plan: Plan, lane: Lane, deadline: float) -> Turn:
        """An image's turn: `async with` it, with nothing held that others need to be classified.

        Args:
            sha256: Of its bytes.
            plan: Of its chunk.
            lane: That it came by.
            deadline: On the monotonic clock, in seconds.
        """
        return Turn(self, sha256 + plan.key, plan, Urgency(lane, deadline))

    async def close(self) -> None:
        """End the threads, and the connection."""
        self._hashing.close()
        if self._remote is not None:
            await self._remote.close()

    async def find(self, turn: Turn) -> tuple[Known | None, Outcome, Flight[Known] | None]:
        """What is known, from where, and the flight of those who wait for it from now on (`settle`)."""
        known = self._remembered(turn)
        if known is not None:
            return known, "hit", None
        flight, known = await self._flights.join(turn.key, turn.urgency)
        if known is not None:
            return known, "shared", None
        if flight is None or self._remote is None:
            return None, "miss", flight
        try:
            known = await self._ask(self._remote, turn)
        except BaseException:
            self._flights.end(flight, None, failed=False)
            raise
        if known is None:
            return None, "miss", flight
        self._flights.end(flight, known, failed=False)
        return known, "remote", None

    def settle(self, turn: Turn, *, flight: Flight[Known] | None, failed: bool) -> None:
        """An image that was not known has been worked on, with or without success."""
        if turn.found is not None:
            entry = encode(turn.found, turn.plan)
            self._memory.put(turn.key, entry)
            if self._remote is not None:
                self._remote.put(turn.key, entry)
        if flight is not None:
            self._flights.end(flight, turn.found, failed=failed)

    def _caches(self, name: str) -> bool:
        return not self._names.isdisjoint((name, name.partition("@")[0], ALL))

    def _remembered(self, turn: Turn) -> Known | None:
        entry = self._memory.get(turn.key)
        return None if entry is None else decode(entry, turn.plan)

    async def _ask(self, remote: Remote, turn: Turn) -> Known | None:
        entry = await remote.get(turn.key)
        known = None if entry is None else decode(entry, turn.plan)
        if entry is not None and known is not None:
            self._memory.put(turn.key, entry)
        return known


class Turn:
    """One image's way through the cache; a class, since a generator in its place costs more.

    Attributes:
        known: What is known within `async with`; if nothing is, the image is to be worked on there.
        found: To be set to what was found out.
    """

    __slots__ = ("_cache", "_flight", "found", "key", "known", "plan", "urgency")

    def __init__(self, cache: ContentCache, key: bytes, plan: Plan, urgency: Urgency) -> None:
        self._cache = cache
        self._flight: Flight[Known] | None = None
        self.key = key
        self.plan = plan
        self.urgency = urgency
        self.known: Known | None = None
        self.found: Known | None = None

    async def __aenter__(self) -> Self:
        self.known, outcome, self._flight = await self._cache.find(self)
        for model in self.plan.models:
            CACHE.labels(model, outcome).inc()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self.known is None:
            mine = error is not None and not isinstance(error, Exception)  # cancelled, also by its deadline
            self._cache.settle(self, flight=self._flight, failed=self.found is None and not mine)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
