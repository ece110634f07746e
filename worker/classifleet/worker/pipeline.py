"""From a chunk's payload to its records, on one event loop.

item ─► parse ─► fetch ─► decode + preprocess (threads) ─► device, once per model ─► record
         each image alone: whatever goes wrong with it is its own record, never its neighbours' trouble
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, Protocol

import structlog

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
from classifleet.worker.batching import Device, Inference, Pixels
from classifleet.worker.decode import DecodeLimits, prepare
from classifleet.worker.ingest import image_memory
from classifleet.worker.instruments import STAGE_DURATION
from classifleet.worker.models import ModelDescription
from classifleet.worker.records import make_record
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import Prepare

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000
SUSPECT_DEATHS: Final = 2
"""A chunk whose workers died so often is done image by image, and decoded in a sandbox unless that is turned off."""


class Fetch(Protocol):
    """Where image bytes come from; see `ingest.Fetcher`."""

    async def fetch(self, reference: Reference, *, job: str, chunk: str, deadline_seconds: float | None) -> bytes:
        """The image's bytes, or an `ImageError`."""


@dataclass(slots=True)
class _Image:
    """One image on its way through the stages."""

    item: Item
    timings: Timings = field(default_factory=Timings)
    info: ImageInfo | None = None
    answers: dict[str, ModelAnswer] = field(default_factory=dict)
    error: ImageError | None = None


class Pipeline:
    """Classifies chunks. A semaphore bounds decoded images, the fetcher fetches, the device forward passes."""

    def __init__(
        self,
        *,
        fetcher: Fetch,
        models: Mapping[str, ModelDescription],
        device: Device,
        decode_pool: ThreadPoolExecutor,
        limits: DecodeLimits,
        decoded_in_flight: int,
        worker: str,
        isolation: Literal["never", "suspect", "always"] = "never",
        sandbox: Sandbox | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._models = models
        self._device = device
        self._decode_pool = decode_pool
        self._limits = limits
        self._decoded = asyncio.Semaphore(decoded_in_flight)
        self._worker = worker
        if sandbox is None and isolation != "never":
            raise ValueError(f"decode_isolation {isolation} needs a sandbox")
        self._isolation = isolation
        self._sandbox = sandbox

    async def classify(self, payload: Payload, lease: Lease, lane: Lane) -> list[Record]:
        """One record for each of the chunk's images, in their order."""
        began = time.monotonic()
        images = [_Image(item) for item in payload.items]
        if lease.deaths >= SUSPECT_DEATHS:
            for image in images:
                await self._one(image, payload, lease, lane, began)
        else:
            async with asyncio.TaskGroup() as group:
                for image in images:
                    group.create_task(self._one(image, payload, lease, lane, began))
        return [_record(image, payload, lease, began, self._worker) for image in images]

    async def _one(self, image: _Image, payload: Payload, lease: Lease, lane: Lane, began: float) -> None:
        try:
            async with asyncio.timeout(_seconds_left(lease, began)):
                await self._stages(image, payload, lease, lane, began)
        except TimeoutError:
            image.error = ImageError(ErrorCode.DEADLINE_EXCEEDED)
        except ImageError as error:
            image.error = error
        except Exception as error:  # the last line of defence between one image and its neighbours
            log.exception("image failed", job=payload.job, chunk=payload.chunk, id=image.item.id)
            image.error = ImageError(ErrorCode.INTERNAL, f"{type(error).__name__}; see the worker's log")

    async def _stages(self, image: _Image, payload: Payload, lease: Lease, lane: Lane, began: float) -> None:
        known = [name for name in lease.models if name in self._models]
        for name in lease.models:
            if name not in self._models:
                image.answers[name] = failed_answer(
                    ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {name!r}")
                )
        if not known:
            raise ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has none of {', '.join(lease.models)}")
        reference = parse_reference(image.item.ref)
        with image_memory() as memory:  # what arrives counts against the fetcher's memory until it is decoded
            start = time.monotonic()
            data = await self._fetcher.fetch(
                reference, job=payload.job, chunk=payload.chunk, deadline_seconds=_seconds_left(lease, began)
            )
            image.timings["fetch"] = _observe("fetch", start)
            async with self._decoded:
                start = time.monotonic()
                specs = {self._models[name].preprocess.digest: self._models[name].preprocess for name in known}
                image.info, pixels = await asyncio.get_running_loop().run_in_executor(
                    self._decode_pool, self._prepare(lease), data, specs, self._limits
                )
                image.timings["decode"] = _observe("decode", start)
                del data
                memory.release()
                await asyncio.gather(*(self._infer(image, name, pixels, payload, lane) for name in known))

    def _prepare(self, lease: Lease) -> Prepare:
        suspect = lease.deaths >= SUSPECT_DEATHS
        if self._sandbox is None or not (suspect or self._isolation == "always"):
            return prepare
        return partial(self._sandbox.prepare, alone=suspect)

    async def _infer(
        self, image: _Image, name: str, pixels: Mapping[str, Pixels], payload: Payload, lane: Lane
    ) -> None:
        model = self._models[name]
        try:
            inference = await self._device.infer(name, pixels[model.preprocess.digest], lane)
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
            options=payload.options,
        )


def _record(image: _Image, payload: Payload, lease: Lease, began: float, worker: str) -> Record:
    """The record of an image that has left the stages, one way or the other."""
    answered = [a["status"] == "ok" for a in image.answers.values()]
    if image.error is None and not any(answered):
        image.error = _common_error(image.answers.values())
    total_ms = lease.waited_ms + (time.monotonic() - began) * MS_PER_S
    timings = Timings(queue=float(lease.waited_ms), **image.timings, total=total_ms)
    return make_record(
        image.item,
        payload,
        attempt=lease.attempt,
        worker=worker,
        status="error" if image.error else "ok" if all(answered) else "partial",
        error=image.error,
        image=image.info,
        models={} if image.error and not image.answers else image.answers,
        timings=timings,
    )


def _common_error(answers: Iterable[ModelAnswer]) -> ImageError:
    """What to say of an image that no model answered: the first model's error."""
    info = next(a["error"] for a in answers)
    return ImageError(ErrorCode(info["code"]), info["message"])


def _seconds_left(lease: Lease, began: float) -> float | None:
    if lease.left_ms is None:
        return None
    return max(0.0, lease.left_ms / MS_PER_S - (time.monotonic() - began))


def _observe(stage: str, start: float) -> float:
    seconds = time.monotonic() - start
    STAGE_DURATION.labels(stage).observe(seconds)
    return seconds * MS_PER_S


def _note_slowest(timings: Timings, inference: Inference) -> None:
    """With several models the record carries the slowest; the histograms get each."""
    STAGE_DURATION.labels("batch_wait").observe(inference.wait_ms / MS_PER_S)
    STAGE_DURATION.labels("forward").observe(inference.forward_ms / MS_PER_S)
    if inference.forward_ms + inference.wait_ms > timings.get("batch_wait", 0.0) + timings.get("forward", 0.0):
        timings["batch_wait"] = inference.wait_ms
        timings["forward"] = inference.forward_ms
