"""The stages of an image: how long they took, and a bound on one, so that its record says which stage hung."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from classifleet.config import ErrorCode, ImageError, Timings
from classifleet.worker.instruments import STAGE_DURATION, observe
from classifleet.worker.queues import Inference

MS_PER_S: Final = 1000
# Found once: looking a metric up by its label costs as much as observing it.
_BATCH_WAIT, _FORWARD = map(STAGE_DURATION.labels, ("batch_wait", "forward"))
T = TypeVar("T")


class Limit:
    """Gives each image so many seconds for a stage. Lives on one event loop.

    One timer serves all that are at it, since a timer for each would cost more than the rest of this: it is set to
    the end of the oldest, and nearly all are done long before theirs.

    Args:
        stage: Its name, in the error.
        seconds: Of each image.
    """

    def __init__(self, stage: str, seconds: float) -> None:
        self._stage = stage
        self._seconds = seconds
        self._ends: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def of(self, future: asyncio.Future[T]) -> T:
        """Wait for the stage of one image.

        Raises:
            ImageError: `internal`: it took longer. What the stage itself raises is left as it is.
        """
        loop = future.get_loop()
        self._ends[future] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)
        try:
            return await future
        finally:
            del self._ends[future]
            if not self._ends and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self) -> None:
        self._timer = None
        for future, end in self._ends.items():  # the oldest first
            if end > future.get_loop().time():
                self._timer = future.get_loop().call_at(end, self._look)
                return
            if not future.done():
                what = f"{self._stage} took longer than {self._seconds:g} s"
                future.set_exception(ImageError(ErrorCode.INTERNAL, what))


def note_slowest(timings: Timings, inference: Inference, trace_id: str) -> None:
    """With several models the record carries the slowest; the histograms get each."""
    observe(_BATCH_WAIT, inference.wait_ms / MS_PER_S, trace_id)
    observe(_FORWARD, inference.forward_ms / MS_PER_S, trace_id)
    if inference.forward_ms + inference.wait_ms > timings.get("batch_wait", 0.0) + timings.get("forward", 0.0):
        timings["batch_wait"] = inference.wait_ms
        timings["forward"] = inference.forward_ms
