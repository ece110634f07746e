"""The stages of an image: how long they took, and a bound on one, so that its record says which stage hung."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import structlog

from classifleet.config import ErrorCode, ImageError, Timings
from classifleet.worker.instruments import STAGE_DURATION, observe
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.queues import Inference

MS_PER_S: Final = 1000
# Found once: looking a metric up by its label costs as much as observing it.
_BATCH_WAIT, _FORWARD = map(STAGE_DURATION.labels, ("batch_wait", "forward"))
T = TypeVar("T")
log = structlog.get_logger(__name__)


class Limit:
    """Gives each image so many seconds of a thread. Lives on one event loop.

    The wait for a thread does not count: with all threads stuck, images that nothing is wrong with would fail.

    One timer serves all that are at it, since a timer for each would cost more than the rest of this: it is set to
    the end of the oldest, and nearly all are done long before theirs.

    Args:
        stage: Its name, in the error.
        seconds: Of each image.
        pool: What runs the stage.
    """

    def __init__(self, stage: str, seconds: float, pool: LaneExecutor) -> None:
        self._stage = stage
        self._seconds = seconds
        self._pool = pool
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    async def of(self, future: asyncio.Future[T]) -> T:
        """Wait for the stage of one image, which the pool was given.

        Raises:
            ImageError: `internal`: it took longer. What the stage itself raises is left as it is.
        """
        self._waiting += 1
        if self._timer is None:
            self._look_in(self._seconds, future.get_loop())
        try:
            return await future
        finally:
            self._waiting -= 1
            if not self._at_work() and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _at_work(self) -> bool:
        return self._waiting > 0 or self._pool.busy()  # a thread may be stuck in what nobody waits for any more

    def _look_in(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(seconds, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        late, seconds = self._pool.give_up(self._seconds)
        for future in late:
            if not future.done():
                what = f"{self._stage} took longer than {self._seconds:g} s"
                future.set_exception(ImageError(ErrorCode.INTERNAL, what))
        if late:
            log.warning("threads are lost", stage=self._stage, lost=self._pool.lost)
        if self._at_work():
            self._look_in(seconds, loop)


def note_slowest(timings: Timings, inference: Inference, trace_id: str) -> None:
    """With several models the record carries the slowest; the histograms get each."""
    observe(_BATCH_WAIT, inference.wait_ms / MS_PER_S, trace_id)
    observe(_FORWARD, inference.forward_ms / MS_PER_S, trace_id)
    if inference.forward_ms + inference.wait_ms > timings.get("batch_wait", 0.0) + timings.get("forward", 0.0):
        timings["batch_wait"] = inference.wait_ms
        timings["forward"] = inference.forward_ms
