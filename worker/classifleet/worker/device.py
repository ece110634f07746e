"""One thread that loads the models of a process and runs every forward pass.

infer() ─► Backlog ─► Batch ─► Forward ─► futures
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from classifleet.config import ErrorCode, ImageError, Lane, ModelError
from classifleet.worker.batching import Backlog, Batch, Sizes
from classifleet.worker.forward import MS_PER_S, Answers, Forward
from classifleet.worker.instruments import DEVICE_SECONDS, DROPPED_IMAGES
from classifleet.worker.models import Backend
from classifleet.worker.models.failures import DeviceLost, brief, failure
from classifleet.worker.queues import Inference, Pixels, Waiting
from classifleet.worker.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

log = structlog.get_logger(__name__)
_Answer = tuple[asyncio.Future[Inference], Inference | ImageError]


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch that the device was sent, and what waits for its answers."""

    batch: Batch
    forward: Forward
    finish: Callable[[], Answers]
    since: float


@dataclass(frozen=True, slots=True)
class ModelSlot:
    """A model as the device runs it: its largest batch, and the sizes that batches are padded to, if they are."""

    backend: Backend
    max_batch: int
    buckets: tuple[int, ...] = ()


class Device:
    """Runs the models of one device, all on one thread: they are loaded, warmed, run and closed there.

    That is also what makes a CPU fast: OpenMP keeps a team of threads for each thread that has ever computed, and as
    soon as the teams together outnumber the cores it stops spinning at barriers. A model that had been warmed on
    another thread took 20 ms where it takes 10 (EfficientNet-Lite0, 2 cores).

    Args:
        on_lost: Called once, on the device thread, when the device answers nothing any more. From then on images wait
            without end: they are to be given to another process, and no answer about them would be true.
        tracing: Gets a span for each forward pass with traced images.
    """

    def __init__(self, on_lost: Callable[[], None] = lambda: None, tracing: Tracing | None = None) -> None:
        self._on_lost = on_lost
        self._tracing = tracing
        self._backlog = Backlog()
        self._forwards: dict[str, Forward] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._ready = threading.Condition()
        self._idle = False
        self._closed = False
        self._running: Forward | None = None
        self._launched: _Launched | None = None
        self._free_since = 0.0
        self._call_since: float | None = None
        self._thread = threading.Thread(target=self._run_forever, name="classifleet-device", daemon=True)
        self.lost = ""
        """Why the device answers nothing any more; empty while it does."""

    def start(self) -> None:
        """Start the device thread."""
        self._thread.start()

    def load(self, model: str, make: Callable[[], ModelSlot]) -> None:
        """Load a model on the device thread, and wait until it can be asked.

        Raises:
            Exception: What `make` raises.
        """
        self.call(partial(self._load, model, make))

    def unload(self, model: str) -> None:
        """Free a model on the device thread. What waits for it is not run."""
        self.call(partial(self._unload, model))

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function on the device thread, between two batches, and wait for what it returns.

        Raises:
            Exception: What the function raises.
            ModelError: The device is closed or lost.
        """
        done: Future[Any] = Future()
        with self._ready:
            if self._closed or self.lost:
                raise ModelError(self.lost or "the device is closed")
            self._calls.append((function, done))
            self._ready.notify()
        try:
            return done.result()
        finally:
            del done  # or error and future would keep each other, and with them what the error has seen

    async def infer(
        self,
        model: str,
        pixels: Pixels,
        lane: Lane,
        deadline: float = math.inf,
        trace: SpanContext | None = None,
    ) -> Inference:
        """Queue one image [h, w, 3] for a model and wait for its scores.

        Args:
            model: Name with version.
            pixels: Preprocessed for the model.
            lane: Whose turns it takes.
            deadline: On the monotonic clock, in seconds; if the image's turn comes later, it is not run.
            trace: The image's span, if it is traced.

        Raises:
            ImageError: `model_failed`, saying what the model raised; `model_not_found`; `deadline_exceeded`;
                `internal` at shutdown.
        """
        future: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        waiting = Waiting(pixels, time.monotonic(), future, deadline, trace)
        with self._ready:
            if self._closed:
                raise ImageError(ErrorCode.INTERNAL, "the worker is shutting down")
            try:
                self._backlog.add(model, lane, waiting)
            except KeyError:
                raise ImageError(ErrorCode.MODEL_NOT_FOUND, f"this worker has no model {model!r}") from None
            if self._idle:
                self._ready.notify()
        return await future

    async def compare(self, model: str, pixels: Pixels, deadline: float) -> Inference | None:
        """Run one image [h, w, 3] only if nothing else waits for the device; None if that was not so until `deadline`.

        Raises:
            ImageError: As for `infer`.
        """
        future: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        waiting = Waiting(pixels, time.monotonic(), future, deadline)
        with self._ready:
            if self._closed or not self._backlog.add_spare(model, waiting):
                return None
            if self._idle:
                self._ready.notify()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await future
        except TimeoutError:
            return None

    def busy_seconds(self) -> float:
        """How long the forward pass, or call, that runs now has been running; 0 when idle."""
        since = self._call_since
        return self.forward_seconds() or (0.0 if since is None else time.monotonic() - since)

    def forward_seconds(self) -> float:
        """How long the forward pass that runs now has been running; 0 when none does."""
        running = self._running
        since = running.since if running else None
        return 0.0 if since is None else time.monotonic() - since

    def wait_idle(self) -> None:
        """Wait until no batch runs; what is asked for later does not count.

        Raises:
            ModelError: The device is closed or lost.
        """
        self.call(lambda: None)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued, then end the thread and free the models; of a lost device nothing can be freed."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run_forever(self) -> None:
        try:
            while job := self._next():
                job()
        except BaseException as error:  # a defect of ours: without its thread the device is as good as lost
            log.exception("the device's thread ended")
            self._lose(brief(error))
        for forward in () if self.lost else self._forwards.values():
            forward.close()

    def _next(self) -> Callable[[], None] | None:
        """What to do next: what was asked for, else a batch; None when the device is lost, or closed and done."""
        with self._ready:
            while not self.lost:
                # While a batch is computed only a full one is sent after it: what is smaller grows meanwhile.
                if self._launched and (self._calls or not self._backlog.has_full_batch()):
                    return self._finish_launched
                if self._calls:
                    return partial(self._answer_call, *self._calls.popleft())
                batch = self._backlog.next(time.monotonic())
                self._answer_dropped()
                if batch is not None:
                    return partial(self._run, batch)
                if self._launched:
                    return self._finish_launched
                if self._closed:
                    break
                self._idle = True
                self._ready.wait()
                self._idle = False
            return None

    def _answer_call(self, function: Callable[[], Any], done: Future[Any]) -> None:
        self._call_since = time.monotonic()  # a model that hangs while it warms stops all others
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            done.set_exception(error)
            if failure(error) == "lost":
                self._lose(brief(error))
        else:
            done.set_result(result)
        finally:
            self._call_since = None

    def _load(self, model: str, make: Callable[[], ModelSlot]) -> None:
        slot = make()
        sizes = Sizes(slot.max_batch, slot.buckets)
        self._forwards[model] = Forward(model, slot.backend, sizes)
        with self._ready:
            self._backlog.open(model, sizes)

    def _unload(self, model: str) -> None:
        forward = self._forwards.pop(model)
        with self._ready:
            self._backlog.close(model)
            self._answer_dropped()
        forward.close()

    def _run(self, batch: Batch) -> None:
        """Send a batch, then finish the one before it; and this one, if the device does not compute by itself."""
        forward = self._running = self._forwards[batch.model]
        started, before = time.monotonic(), self._launched
        finish = forward.begin([waiting.pixels for waiting in batch.images], batch.reason)
        self._launched = _Launched(batch, forward, finish, started)
        if before is not None:
            self._finish(before)
        if not forward.overlaps and not self.lost:
            self._finish_launched()

    def _finish_launched(self) -> None:
        launched, self._launched = self._launched, None
        if launched is not None:
            self._finish(launched)

    def _finish(self, launched: _Launched) -> None:
        """Wait for a batch and answer its images."""
        batch, self._running = launched.batch, launched.forward
        try:
            results = launched.finish()
        except DeviceLost as error:
            self._lose(str(error))
            return
        finally:
            self._running = self._launched.forward if self._launched else None
        started = max(launched.since, self._free_since)
        self._free_since = time.monotonic()
        seconds = self._free_since - started
        self._backlog.charge(batch, seconds)
        DEVICE_SECONDS.labels(batch.model).inc(seconds)
        ran_ms = seconds * MS_PER_S
        span = None if self._tracing is None else _trace(self._tracing, batch, started, seconds)
        _settle([
            (w.future, r if isinstance(r, ImageError) else Inference(r, MS_PER_S * (started - w.since), ran_ms, span))
            for w, r in zip(batch.images, results, strict=True)
        ])  # fmt: skip

    def _lose(self, why: str) -> None:
        """Nothing more is run, and nothing that waits is answered."""
        log.critical("the device is lost", error=why)
        with self._ready:
            self.lost = why
            calls = list(self._calls)
        for _, done in calls:
            done.set_exception(ModelError(why))
        self._on_lost()

    def _answer_dropped(self) -> None:
        for model, waiting in self._backlog.dropped():
            DROPPED_IMAGES.labels(model, "abandoned" if waiting.future.done() else "deadline").inc()
            _settle([(waiting.future, ImageError(ErrorCode.DEADLINE_EXCEEDED))])


def _trace(tracing: Tracing, batch: Batch, started: float, seconds: float) -> SpanContext | None:
    traced = [waiting.trace for waiting in batch.images if waiting.trace is not None]
    if not traced:
        return None
    return tracing.batch(batch.model, batch.reason, traced, len(batch.images), started, started + seconds)


def _settle(answers: Sequence[_Answer]) -> None:
    """Answer images, on the event loops where they are waited for."""
    loops = {future.get_loop() for future, _ in answers}
    for loop in loops:
        mine = answers if len(loops) == 1 else [answer for answer in answers if answer[0].get_loop() is loop]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set, mine)


def _set(answers: Sequence[_Answer]) -> None:
    for future, answer in answers:
        if future.done():  # its caller gave up, or the worker is going down
            continue
        if isinstance(answer, ImageError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
