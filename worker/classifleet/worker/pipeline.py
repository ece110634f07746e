"""From a chunk's payload to its records, on one event loop.

item ─► parse ─► fetch ─► decode + preprocess (threads) ─► device, once per model ─► record
         each image alone: whatever goes wrong with it is its own record, never its neighbours' trouble
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal, Protocol

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
from classifleet.config.reference import Reference
from classifleet.ledger import Lease
from classifleet.worker.answers import answer, failed_answer
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.device import Device
from classifleet.worker.ingest import image_memory
from classifleet.worker.instruments import STAGE_DURATION
from classifleet.worker.lanes import LaneExecutor, LaneSlots
from classifleet.worker.models import ModelDescription
from classifleet.worker.models.description import Preprocess
from classifleet.worker.queues import Inference, Pixels
from classifleet.worker.records import make_record
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import Prepare
from classifleet.worker.stages import Limit
from classifleet.worker.waiting import WaitingChunk, WaitingImage, WaitingRoom

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000
SUSPECT_DEATHS: Final = 2
"""A chunk whose workers died so often is done image by image, and decoded in a sandbox unless that is turned off."""
PREDICTION_BYTES: Final = 256  # of a class in a finished record, in memory
# Found once: looking a metric up by its label costs as much as observing it.
_FETCH, _DECODE, _BATCH_WAIT, _FORWARD = map(STAGE_DURATION.labels, ("fetch", "decode", "batch_wait", "forward"))
_NO_DEADLINE: Final = nullcontext()

Mark = Callable[[str], Awaitable[None]]


class Fetch(Protocol):
    """Where image bytes come from; see `ingest.Fetcher`."""

    async def fetch(
        self,
        reference: Reference,
        *,
        job: str,
        chunk: str,
        deadline_seconds: float | None,
        lane: Lane,
        slow: Callable[[bool], None],
    ) -> bytes:
        """The image's bytes, or an `ImageError`; `slow` hears whether a stranger keeps us waiting."""


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
    timings: Timings = field(default_factory=Timings)
    info: ImageInfo | None = None
    answers: dict[str, ModelAnswer] = field(default_factory=dict)
    error: ImageError | None = None


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
        decode_seconds: Of one image, at most, its wait for a thread included.
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
    ) -> None:
        self._fetcher = fetcher
        self._models = models
        self._device = device
        self._decode_pool = decode_pool
        self._limits = limits
        self._decoded = LaneSlots(decoded_in_flight)
        self._worker = worker
        if sandbox is None and isolation != "never":
            raise ValueError(f"decode_isolation {isolation} needs a sandbox")
        self._isolation = isolation
        self._sandbox = sandbox
        self._room = room or WaitingRoom(0)
        self._decode_limit = Limit("decode", decode_seconds)

    async def classify(self, payload: Payload, lease: Lease, lane: Lane, mark: Mark | None = None) -> list[Record]:
        """One record for each of the chunk's images, in their order.

        Args:
            payload: The chunk.
            lease: Under which it is done.
            lane: That it came by.
            mark: Of a suspect chunk, awaited with the id of each image before that is touched, and with an empty one
                when none is touched any more.

        Raises:
            Exception: What `mark` raises; the chunk is left as it is.
        """
        chunk = self._chunk(payload, lease, lane)
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

    def _chunk(self, payload: Payload, lease: Lease, lane: Lane) -> _Chunk:
        began = time.monotonic()
        deadline = math.inf if lease.left_ms is None else began + lease.left_ms / MS_PER_S
        models = {name: self._models[name] for name in lease.models if name in self._models}
        specs = {model.preprocess.digest: model.preprocess for model in models.values()}
        return _Chunk(payload, lease, lane, began, deadline, models, specs)

    async def _one_by_one(self, images: list[_Image], chunk: _Chunk, mark: Mark | None) -> None:
        """Alone, so that a death convicts the marked image and no other."""
        for image in images:
            if image.item.id in chunk.lease.convicted:
                image.error = _poison(chunk.lease)
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
        try:
            async with chunk.time_limit():
                await self._stages(image, chunk)
        except TimeoutError:
            image.error = ImageError(ErrorCode.DEADLINE_EXCEEDED)
        except ImageError as error:
            image.error = error
        except Exception as error:  # the last line of defence between one image and its neighbours
            log.exception("image failed", job=chunk.payload.job, chunk=chunk.payload.chunk, id=image.item.id)
            image.error = ImageError(ErrorCode.INTERNAL, f"{type(error).__name__}; see the worker's log")
        finally:
            image.waits.done()

    async def _stages(self, image: _Image, chunk: _Chunk) -> None:
        _require_models(image, chunk)
        reference = parse_reference(image.item.ref)
        with image_memory() as memory:  # what arrives counts against the fetcher's memory until it is decoded
            start = time.monotonic()
            data = await self._fetcher.fetch(
                reference,
                job=chunk.payload.job,
                chunk=chunk.payload.chunk,
                deadline_seconds=chunk.seconds_left(),
                lane=chunk.lane,
                slow=image.waits,
            )
            image.timings["fetch"] = _observe(_FETCH, start)
            async with self._decoded.held(chunk.lane):
                start = time.monotonic()
                decoding = self._decode_pool.submit(chunk.lane, self._prepare(chunk), data, chunk.specs, self._limits)
                decoded = await self._decode_limit.of(decoding)
                image.info, pixels = decoded
                image.timings["decode"] = _observe(_DECODE, start)
                del data, decoding
                memory.release()
                inferences = [self._infer(image, name, pixels, chunk) for name in chunk.models]
                await (inferences[0] if len(inferences) == 1 else asyncio.gather(*inferences))

    def _prepare(self, chunk: _Chunk) -> Prepare:
        if self._sandbox is None or not (chunk.suspect or self._isolation == "always"):
            return prepare
        return partial(self._sandbox.prepare, alone=chunk.suspect)

    async def _infer(self, image: _Image, name: str, pixels: Mapping[str, Pixels], chunk: _Chunk) -> None:
        model = chunk.models[name]
        try:
            inference = await self._device.infer(name, pixels[model.preprocess.digest], chunk.lane, chunk.deadline)
        except ImageError as error:
            image.answers[name] = failed_answer(error)
            return
        _note_slowest(image.timings, inference)
        image.answers[name] = answer(
            inference.scores,
            model.labels,
            digest=model.sha256,
            kind=model.output.kind,
            threshold=model.output.threshold,
            options=chunk.payload.options,
        )


def _require_models(image: _Image, chunk: _Chunk) -> None:
    """Answer for the models that are not here, unless there are no others."""
    names = chunk.lease.models
    if len(chunk.models) == len(names):
        return
    for name in names:
        if name not in chunk.models:
            error = ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {name!r}")
            image.answers[name] = failed_answer(error)
    if not chunk.models:
        raise ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has none of {', '.join(names)}")


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
        image.error = _common_error(answers.values())
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


def _poison(lease: Lease) -> ImageError:
    return ImageError(
        ErrorCode.POISON,
        f"The image killed the worker that was alone with it; {lease.deaths} workers have died of its chunk.",
    )


def _common_error(answers: Iterable[ModelAnswer]) -> ImageError:
    """What to say of an image that no model answered: the first model's error."""
    info = next(a["error"] for a in answers)
    return ImageError(ErrorCode(info["code"]), info["message"])


def _observe(stage: Histogram, start: float) -> float:
    seconds = time.monotonic() - start
    stage.observe(seconds)
    return seconds * MS_PER_S


def _note_slowest(timings: Timings, inference: Inference) -> None:
    """With several models the record carries the slowest; the histograms get each."""
    _BATCH_WAIT.observe(inference.wait_ms / MS_PER_S)
    _FORWARD.observe(inference.forward_ms / MS_PER_S)
    if inference.forward_ms + inference.wait_ms > timings.get("batch_wait", 0.0) + timings.get("forward", 0.0):
        timings["batch_wait"] = inference.wait_ms
        timings["forward"] = inference.forward_ms
