"""One thread that runs every forward pass of the process, on micro-batches that form while it is busy.

    infer() ─► queue of the model, by lane ─► choose() a model, take() a batch ─► Backend.run ─► futures

Work-conserving: when the device is idle, whatever is ready runs at once, so a lonely image pays no delay; when it is
busy a batch forms, so a backlog gives full batches. Interactive images go first (see `lanes`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from classifleet.config import ErrorCode, ImageError, Lane
from classifleet.worker.instruments import BATCH_SIZE, BATCHES, LAST_BATCH
from classifleet.worker.lanes import LANES, next_turn
from classifleet.worker.models import Backend

TOP_UP_SHARE: Final = 4
log = structlog.get_logger(__name__)

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Inference:
    """One model's scores [num_classes] for one image, and how long it waited and ran, in milliseconds."""

    scores: Scores
    wait_ms: float
    forward_ms: float


@dataclass(slots=True)
class _Waiting:
    """One image that waits for the device."""

    pixels: Pixels
    since: float
    future: asyncio.Future[Inference]
    loop: asyncio.AbstractEventLoop


Queues = dict[Lane, deque[_Waiting]]


@dataclass(frozen=True, slots=True)
class ModelSlot:
    """A model as the device runs it."""

    backend: Backend
    max_batch: int


class Device:
    """Runs the models of one device, all on one thread: they are loaded, warmed, run and closed there.

    That is also what makes a CPU fast: OpenMP keeps a team of threads for each thread that has ever computed, and as
    soon as the teams together outnumber the cores it stops spinning at barriers. A model that had been warmed on
    another thread took 20 ms where it takes 10 (EfficientNet-Lite0, 2 cores).
    """

    def __init__(self) -> None:
        self._models: dict[str, ModelSlot] = {}
        self._queues: dict[str, Queues] = {}
        self._loads: deque[tuple[str, Callable[[], ModelSlot], Future[None]]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._passed_over = 0  # batches without bulk since bulk waits
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run_forever, name="classifleet-device", daemon=True)

    def start(self) -> None:
        """Start the device thread."""
        self._thread.start()

    def load(self, model: str, make: Callable[[], ModelSlot]) -> None:
        """Load a model on the device thread, and wait until it can be asked.

        Raises:
            Exception: What `make` raises.
        """
        done: Future[None] = Future()
        with self._ready:
            self._loads.append((model, make, done))
            self._ready.notify()
        done.result()

    async def infer(self, model: str, pixels: Pixels, lane: Lane) -> Inference:
        """Queue one image [h, w, 3] for a model and wait for its scores.

        Raises:
            ImageError: `model_failed`, saying what the model raised; `internal` at shutdown.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Inference] = loop.create_future()
        with self._ready:
            if self._closed:
                raise ImageError(ErrorCode.INTERNAL, "the worker is shutting down")
            self._queues[model][lane].append(_Waiting(pixels, time.monotonic(), future, loop))
            self._ready.notify()
        return await future

    def busy_seconds(self) -> float:
        """How long the forward pass that runs now has been running; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued, then end the thread and free the models."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run_forever(self) -> None:
        while job := self._next():
            job()
        for slot in self._models.values():
            slot.backend.close()

    def _next(self) -> Callable[[], None] | None:
        """What to do next: run a batch, else load a model; None when closed and nothing is left."""
        with self._ready:
            while True:
                if (chosen := choose(self._queues, self._passed_over)) is not None:
                    return partial(self._run, *self._take(*chosen))
                if self._loads:
                    return partial(self._load, *self._loads.popleft())
                if self._closed:
                    return None
                self._ready.wait()

    def _take(self, model: str, first: Lane) -> tuple[str, list[_Waiting]]:
        bulk = sum(len(queues["bulk"]) for queues in self._queues.values())
        batch = take(self._queues[model], self._models[model].max_batch, first)
        served = sum(len(queues["bulk"]) for queues in self._queues.values()) < bulk
        self._passed_over = self._passed_over + 1 if bulk and not served else 0
        return model, batch

    def _load(self, model: str, make: Callable[[], ModelSlot], done: Future[None]) -> None:
        try:
            slot = make()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            done.set_exception(error)
            return
        with self._ready:
            self._models[model] = slot
            self._queues[model] = {lane: deque() for lane in LANES}
        done.set_result(None)

    def _run(self, model: str, batch: list[_Waiting]) -> None:
        started = self._busy_since = time.monotonic()
        results = self._scores(model, [waiting.pixels for waiting in batch])
        ended = time.monotonic()
        self._busy_since = None
        reason = "full" if len(batch) == self._models[model].max_batch else "drained"
        BATCHES.labels(model, reason).inc()
        BATCH_SIZE.labels(model).observe(len(batch))
        LAST_BATCH.set_to_current_time()
        forward_ms = (ended - started) * 1000
        log.debug("batch", model=model, size=len(batch), reason=reason, forward_ms=round(forward_ms, 1))
        answers = [
            (w.future, r if isinstance(r, ImageError) else Inference(r, (started - w.since) * 1000, forward_ms))
            for w, r in zip(batch, results, strict=True)
        ]
        for loop in {waiting.loop for waiting in batch}:
            mine = [answer for w, answer in zip(batch, answers, strict=True) if w.loop is loop]
            loop.call_soon_threadsafe(_settle, mine)

    def _scores(self, model: str, pixels: list[Pixels]) -> list[Scores | ImageError]:
        """Run a batch; if it fails, run its halves, so that only the culprit fails."""
        try:
            scores = self._models[model].backend.run(np.stack(pixels))
            if len(scores) != len(pixels):
                raise ImageError(ErrorCode.MODEL_FAILED, f"{model} gave {len(scores)} answers to {len(pixels)} images")
            return list(scores)
        except Exception as error:  # noqa: BLE001 - a model is the user's code and may raise anything
            if len(pixels) == 1:
                log.warning("model failed", model=model, error=str(error))
                return [ImageError(ErrorCode.MODEL_FAILED, f"{model}: {_first_line(error)}")]
        BATCHES.labels(model, "bisected").inc()
        half = len(pixels) // 2
        return self._scores(model, pixels[:half]) + self._scores(model, pixels[half:])


def choose(queues: Mapping[str, Queues], passed_over: int = 0) -> tuple[str, Lane] | None:
    """The model to run next, and the lane whose turn it is: of its models, whose first image has waited longest.

    Args:
        queues: By model.
        passed_over: Batches without bulk since bulk waits.
    """
    waits = {lane: any(lanes[lane] for lanes in queues.values()) for lane in LANES}
    lane = next_turn(waits["interactive"], waits["bulk"], passed_over)
    if lane is None:
        return None
    return min((lanes[lane][0].since, model) for model, lanes in queues.items() if lanes[lane])[1], lane


def take(queues: Queues, size: int, first: Lane) -> list[_Waiting]:
    """Up to `size` images of one model, the lane whose turn it is first, each in order of arrival.

    Interactive images are joined by bulk up to a quarter of `size` only: a full batch is what they would wait for.
    """
    if first == "interactive":
        size = min(size, max(len(queues["interactive"]), size // TOP_UP_SHARE))
    batch: list[_Waiting] = []
    for lane in sorted(LANES, key=lambda lane: lane != first):
        while queues[lane] and len(batch) < size:
            batch.append(queues[lane].popleft())
    return batch


def _settle(answers: list[tuple[asyncio.Future[Inference], Inference | ImageError]]) -> None:
    for future, answer in answers:
        if future.done():  # the image's deadline passed, or the worker is going down
            continue
        if isinstance(answer, ImageError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
