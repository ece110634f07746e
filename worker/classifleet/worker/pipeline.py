"""From a chunk's payload to its records, on one event loop.

item ─► parse ─► fetch ─► decode + preprocess (threads) ─► device, once per model ─► record
         each image alone: whatever goes wrong with it is its own record, never its neighbours' trouble
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal

import structlog
from prometheus_client import Histogram

from classifleet.config import (
    ErrorCode,
    ImageError,
    ImageInfo,
    Item,
    Lane,
    ModelAnswer,
    Payload,
    Record,
    Timings,
    parse_reference,
)
from classifleet.ledger import Lease
from classifleet.worker.answers import common_error, failed_answer, model_answer
from classifleet.worker.cache import ContentCache, Known, Plan
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.device import Device
from classifleet.worker.ingest import Fetch, ImageMemory, image_memory
from classifleet.worker.instruments import STAGE_DURATION, observe
from classifleet.worker.lanes import LaneExecutor, LaneSlots
from classifleet.worker.models import ModelDescription
from classifleet.worker.models.description import Preprocess
from classifleet.worker.queues import Pixels, Scores
from classifleet.worker.records import make_record
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import Prepare
from classifleet.worker.shadow import Shadow
from classifleet.worker.stages import Limit, note_slowest
from classifleet.worker.suspects import CONVICTING_DEATHS, SUSPECT_DEATHS, poison
from classifleet.worker.tracing import ChunkTrace, ImageTrace
from classifleet.worker.waiting import WaitingChunk, WaitingImage, WaitingRoom

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000
PREDICTION_BYTES: Final = 256  # of a class in a finished record, in memory
# Found once: looking a metric up by its label costs as much as observing it.
_FETCH, _DECODE = map(STAGE_DURATION.labels, ("fetch", "decode"))
_NO_DEADLINE: Final = nullcontext()

Mark = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk at work, on a monotonic clock in seconds."""

    payload: Payload
    lease: Lease
    lane: Lane
    began: float
    deadline: float
    models: Mapping[str, ModelDescription]
    """Those that are asked for and are here."""
    specs: Mapping[str, Preprocess]
    """Of the models, by digest."""
    trace: ChunkTrace | None
    trace_id: str
    """Empty without a trace."""
    cached: Plan | None
    """Of the models those with a content cache; None if there are none."""

    @property
    def suspect(self) -> bool:
        return self.lease.deaths >= SUSPECT_DEATHS

    def seconds_left(self) -> float | None:
        """Until the deadline; None if there is none."""
        return None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())

    def time_limit(self) -> AbstractAsyncContextManager[object]:
        """Ends what runs within it at the deadline, with a TimeoutError."""
        left = self.seconds_left()
        return _NO_DEADLINE if left is None else asyncio.timeout(left)


@dataclass(slots=True)
class _Image:
    """One image on its way through the stages."""

    item: Item
    waits: WaitingImage
    data: bytes = b""
    """From fetch to decode."""
    sha256: str = ""
    """Of the data, if it is known before it is decoded."""
    scores: dict[str, Scores] | None = None
    """By model, where they are to be cached."""
    timings: Timings = field(default_factory=Timings)
    info: ImageInfo | None = None
    answers: dict[str, ModelAnswer] = field(default_factory=dict)
    error: ImageError | None = None
    trace: ImageTrace | None = None


class Pipeline:
    """Classifies chunks. Slots bound decoded images, the fetcher fetches, the device forward passes.

    Args:
        fetcher: Where image bytes come from.
        models: By name with version.
        device: Runs them.
        decode_pool: Threads that decode.
        limits: On what is decoded.
        decoded_in_flight: Decoded images that wait for the device, at most.
        worker: Its name in records.
        isolation: When the sandbox decodes.
        sandbox: Required unless isolation is `never`.
        room: Where chunks go that have nothing to do but wait for strangers; None for nowhere.
        decode_seconds: Of one image in a thread, at most.
        cache: Knows pictures that were classified before; None does without.
        why_not: What to say of a model that is not among them.
        shadow: Compares versions; None for nothing.
    """

    def __init__(
        self,
        *,
        fetcher: Fetch,
        models: Mapping[str, ModelDescription],
        device: Device,
        decode_pool: LaneExecutor,
        limits: DecodeLimits,
        decoded_in_flight: int,
        worker: str,
        isolation: Literal["never", "suspect", "always"] = "never",
        sandbox: Sandbox | None = None,
        room: WaitingRoom | None = None,
        decode_seconds: float = 120.0,
        cache: ContentCache | None = None,
        why_not: Callable[[str], ImageError] = lambda name: ImageError(
            ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {name!r}"
        ),
        shadow: Shadow | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._models = models
        self._why_not = why_not
        self._shadow = shadow
        self._device = device
        self.decode_pool = decode_pool
        self._limits = limits
        self._decoded = LaneSlots(decoded_in_flight)
        self._worker = worker
        if sandbox is None and isolation != "never":
            raise ValueError(f"decode_isolation {isolation} needs a sandbox")
        self._isolation = isolation
        self._sandbox = sandbox
        self._room = room or WaitingRoom(0)
        self._decode_limit = Limit("decode", decode_seconds, decode_pool)
        self._cache = cache

    async def classify(
        self,
        payload: Payload,
        lease: Lease,
        lane: Lane,
        mark: Mark | None = None,
        trace: ChunkTrace | None = None,
    ) -> list[Record]:
        """One record for each of the chunk's images, in their order.

        Args:
            payload: The chunk.
            lease: Under which it is done.
            lane: That it came by.
            mark: Of a suspect chunk, awaited with the id of each image before that is touched, and with an empty one
                when none is touched any more.
            trace: Gets the spans of the images.

        Raises:
            Exception: What `mark` raises; the chunk is left as it is.
        """
        chunk = self._chunk(payload, lease, lane, trace)
        waits = WaitingChunk(self._room, lane, len(payload.items), self._held_bytes(chunk))
        images = [_Image(item, waits.image()) for item in payload.items]
        try:
            if chunk.suspect:
                await self._one_by_one(images, chunk, mark)
            else:
                async with asyncio.TaskGroup() as group:
                    for image in images:
                        group.create_task(self._one(image, chunk))
        finally:
            waits.close()
        return _records(images, chunk, self._worker)

    def wait_idle(self) -> None:
        """Wait until no forward pass runs, be it one that nobody waits for any more.

        Raises:
            ModelError: The device is closed or lost.
        """
        self._device.wait_idle()

    def _chunk(self, payload: Payload, lease: Lease, lane: Lane, trace: ChunkTrace | None) -> _Chunk:
        began = time.monotonic()
        deadline = math.inf if lease.left_ms is None else began + lease.left_ms / MS_PER_S
        models = {name: self._models[name] for name in lease.models if name in self._models}
        specs = {model.preprocess.digest: model.preprocess for model in models.values()}
        trace_id = "" if trace is None else trace.trace_id
        # A suspect's images are looked at themselves, and wait for nobody.
        cached = None if self._cache is None or lease.deaths >= SUSPECT_DEATHS else self._cache.plan(models)
        return _Chunk(payload, lease, lane, began, deadline, models, specs, trace, trace_id, cached)

    async def _one_by_one(self, images: list[_Image], chunk: _Chunk, mark: Mark | None) -> None:
        """Alone, so that a death speaks against the marked image and no other.

        Those that it speaks against come last: if workers die of something else when they have just begun, then with
        each image once before with one twice.
        """
        deaths = Counter(chunk.lease.lone_deaths)
        async with nullcontext() if self._shadow is None else self._shadow.paused():
            for image in sorted(images, key=lambda image: deaths[image.item.id]):
                if deaths[image.item.id] >= CONVICTING_DEATHS:
                    image.error = poison(chunk.lease)
                    continue
                if mark is not None:
                    await mark(image.item.id)
                await self._one(image, chunk)
            if mark is not None:
                await mark("")

    def _held_bytes(self, chunk: _Chunk) -> int:
        """What a chunk holds when all but its slow images are done, about."""
        options = chunk.payload.options
        labels = [len(model.labels) for model in chunk.models.values()]
        classes = sum(labels if options.scores == "all" else (min(options.top_k, count) for count in labels))
        return 2 * len(chunk.lease.payload) + len(chunk.payload.items) * classes * PREDICTION_BYTES

    async def _one(self, image: _Image, chunk: _Chunk) -> None:
        if chunk.trace is not None:
            image.trace = chunk.trace.image(image.item)
        try:
            async with chunk.time_limit():
                await self._stages(image, chunk)
        except TimeoutError:
            image.error = ImageError(ErrorCode.DEADLINE_EXCEEDED)
        except ImageError as error:
            # The frames of its traceback hold the file, the picture and, in a circle, this image.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            image.error = error
        except Exception as error:  # the last line of defence between one image and its neighbours
            log.exception("image failed", job=chunk.payload.job, chunk=chunk.payload.chunk, id=image.item.id)
            image.error = ImageError(ErrorCode.INTERNAL, f"{type(error).__name__}; see the worker's log")
        finally:
            image.data = b""
            image.waits.done()
            if image.trace is not None:
                image.trace.end(image.error)

    async def _stages(self, image: _Image, chunk: _Chunk) -> None:
        _require_models(image, chunk, self._why_not)
        reference = parse_reference(image.item.ref)
        with image_memory() as memory:  # what arrives counts against the fetcher's memory until it is decoded
            start = _begin("fetch", image)
            image.data = await self._fetcher.fetch(
                reference,
                job=chunk.payload.job,
                chunk=chunk.payload.chunk,
                deadline_seconds=chunk.seconds_left(),
                lane=chunk.lane,
                slow=image.waits,
            )
            image.timings["fetch"] = _done(_FETCH, start, image, chunk)
            if self._cache is None or chunk.cached is None:
                await self._work(image, chunk, chunk.models, memory)
            else:
                await self._recall(image, chunk, self._cache, chunk.cached, memory)

    async def _recall(
        self, image: _Image, chunk: _Chunk, cache: ContentCache, plan: Plan, memory: ImageMemory
    ) -> None:
        """Take from the cache what it has, and work for the rest."""
        digest = await cache.digest(image.data, chunk.lane)
        image.sha256, size_bytes = digest.hex(), len(image.data)
        async with cache.turn(digest, plan, chunk.lane, chunk.deadline) as turn:
            known = turn.known
            if known is None:
                image.scores = {}
                await self._work(image, chunk, chunk.models, memory)
                if image.info is not None and image.scores.keys() >= set(plan.models):
                    turn.found = Known.of(image.info, image.scores)
                return
        image.info = known.info(size_bytes, image.sha256)
        for name, scores in known.scores.items():
            image.answers[name] = model_answer(chunk.models[name], scores, chunk.payload.options)
        if rest := [name for name in chunk.models if name not in plan.models]:
            await self._work(image, chunk, rest, memory)

    async def _work(self, image: _Image, chunk: _Chunk, models: Iterable[str], memory: ImageMemory) -> None:
        async with self._decoded.held(chunk.lane):
            start, prepare = _begin("decode", image), self._prepare(image, chunk)
            decoding = self.decode_pool.submit(chunk.lane, prepare, image.data, chunk.specs, self._limits)
            try:
                decoded = await self._decode_limit.of(decoding)
            finally:  # of a failed one, too
                image.timings["decode"] = (time.monotonic() - start) * MS_PER_S
            image.info, pixels = decoded
            _done(_DECODE, start, image, chunk)
            image.data = b""
            del decoding
            memory.release()
            inferences = [self._infer(image, name, pixels, chunk) for name in models]
            await (inferences[0] if len(inferences) == 1 else asyncio.gather(*inferences))

    def _prepare(self, image: _Image, chunk: _Chunk) -> Prepare:
        if self._sandbox is None or not (chunk.suspect or self._isolation == "always"):
            return partial(prepare, sha256=image.sha256) if image.sha256 else prepare
        return partial(self._sandbox.prepare, alone=chunk.suspect)

    async def _infer(self, image: _Image, name: str, pixels: Mapping[str, Pixels], chunk: _Chunk) -> None:
        model = chunk.models[name]
        start = time.monotonic()
        traced = None if image.trace is None else image.trace.context
        try:
            inference = await self._device.infer(
                name, pixels[model.preprocess.digest], chunk.lane, chunk.deadline, traced
            )
        except ImageError as error:
            image.answers[name] = failed_answer(error)
            if image.trace is not None:
                image.trace.failed(name, start, error)
            return
        if image.trace is not None:
            image.trace.inferred(name, start, inference)
        note_slowest(image.timings, inference, chunk.trace_id)
        image.answers[name] = model_answer(model, inference.scores, chunk.payload.options)
        if self._shadow is not None:
            self._shadow.offer(name, pixels, inference.scores)
        if image.scores is not None:
            image.scores[name] = inference.scores


def _require_models(image: _Image, chunk: _Chunk, why_not: Callable[[str], ImageError]) -> None:
    """Answer for the models that are not here, unless there are no others."""
    names = chunk.lease.models
    if len(chunk.models) == len(names):
        return
    for name in names:
        if name not in chunk.models:
            image.answers[name] = failed_answer(why_not(name))
    if not chunk.models:
        raise why_not(names[0])


def _records(images: Iterable[_Image], chunk: _Chunk, worker: str) -> list[Record]:
    """The records of images that have left the stages, one way or the other. They are finished together."""
    total_ms = chunk.lease.waited_ms + (time.monotonic() - chunk.began) * MS_PER_S
    finished_at = datetime.now(UTC)
    return [_record(image, chunk, worker, total_ms, finished_at) for image in images]


def _record(image: _Image, chunk: _Chunk, worker: str, total_ms: float, finished_at: datetime) -> Record:
    lease = chunk.lease
    answers = {name: image.answers[name] for name in lease.models if name in image.answers}  # in the request's order
    answered = [a["status"] == "ok" for a in answers.values()]
    if image.error is None and not any(answered):
        image.error = common_error(answers.values())
    return make_record(
        image.item,
        chunk.payload,
        attempt=lease.attempt,
        worker=worker,
        status="error" if image.error else "ok" if all(answered) else "partial",
        error=image.error,
        image=image.info,
        models=answers,
        timings=Timings(queue=float(lease.waited_ms), **image.timings, total=total_ms),
        finished_at=finished_at,
    )


def _begin(stage: str, image: _Image) -> float:
    start = time.monotonic()
    if image.trace is not None:
        image.trace.begin(stage, start)
    return start


def _done(stage: Histogram, start: float, image: _Image, chunk: _Chunk) -> float:
    end = time.monotonic()
    observe(stage, end - start, chunk.trace_id)
    if image.trace is not None:
        image.trace.done(end)
    return (end - start) * MS_PER_S
