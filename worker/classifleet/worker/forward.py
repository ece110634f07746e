"""Runs the batches of one model: padded if its backend wants that, and in parts if the whole fails.

images ─► one array ─► Backend.run ─► a row of scores, or an error, for each
▲ fails: its halves, until only the culprit fails; out of memory: halves, and never so many again

A device that computes by itself is sent a batch, and asked for its scores when the next one has been sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import numpy as np
import structlog
from numpy.typing import NDArray

from classifleet.config import ErrorCode, ImageError, ModelError
from classifleet.worker.batching import Reason, Sizes
from classifleet.worker.instruments import BATCH_SIZE, BATCHES, LAST_BATCH, MAX_BATCH, PADDED_IMAGES
from classifleet.worker.models import Backend
from classifleet.worker.models.backend import Overlapping
from classifleet.worker.models.failures import DeviceLost, NotFinite, brief, failure
from classifleet.worker.queues import Pixels, Scores

log = structlog.get_logger(__name__)
MS_PER_S: Final = 1000
Answers = list[Scores | ImageError]
Fetch = Callable[[], NDArray[np.float32]]


class Forward:
    """A loaded model. Not safe across threads, but for `since`.

    Attributes:
        since: When the forward pass that runs now began, on the monotonic clock; None if none runs.
        overlaps: Whether the device computes by itself once `begin` has sent it a batch.
    """

    def __init__(self, model: str, backend: Backend, sizes: Sizes) -> None:
        self._model = model
        self._backend = backend
        self._sizes = sizes
        self._observe = BATCH_SIZE.labels(model).observe
        self._under_way = 0
        self.overlaps = isinstance(backend, Overlapping)
        self.since: float | None = None
        MAX_BATCH.labels(model).set(sizes.most)

    def begin(self, pixels: list[Pixels], reason: Reason) -> Callable[[], Answers]:
        """Send a batch to the device; what is returned waits for its answers, as `run` does."""
        BATCHES.labels(self._model, reason).inc()
        self._observe(len(pixels))
        self._under_way += 1
        self.since = self.since or time.monotonic()
        fetch, size = self._sent(pixels)
        return partial(self._finish, fetch, size, pixels, reason)

    def run(self, pixels: list[Pixels], reason: Reason) -> Answers:
        """Scores or an error for each image.

        Args:
            pixels: Images [h, w, 3], at most `sizes.most`.
            reason: Why they are so many.

        Raises:
            DeviceLost: Nothing runs in this process any more.
        """
        return self.begin(pixels, reason)()

    def close(self) -> None:
        """Free what the model holds."""
        self._backend.close()

    def _sent(self, pixels: list[Pixels]) -> tuple[Fetch, int]:
        """What waits for the scores, and how many rows they will have."""
        size = self._sizes.padded(len(pixels))
        try:
            batch = self._together(pixels, size)
            if isinstance(self._backend, Overlapping):
                return self._backend.begin(batch), size
            return partial(self._backend.run, batch), size
        except Exception as error:  # noqa: BLE001 - judged where the scores are waited for
            return partial(_raise, _alone(error)), size

    def _finish(self, fetch: Fetch, size: int, pixels: list[Pixels], reason: Reason) -> Answers:
        try:
            return self._once(fetch, size, pixels, reason)
        except Exception as error:  # noqa: BLE001 - a model is the user's code and may raise anything
            what, text = failure(error), brief(error)
            _alone(error)
        # Beyond the handler: the traceback of the error keeps the tensors of its batch.
        if what == "lost":
            raise DeviceLost(text)
        if what == "memory" and self._shrink(pixels, text):
            most = self._sizes.most
            parts = [pixels[first : first + most] for first in range(0, len(pixels), most)]
        elif len(pixels) == 1:
            log.warning("model failed", model=self._model, error=text)
            return [ImageError(ErrorCode.MODEL_FAILED, f"{self._model}: {text}")]
        else:
            parts = [pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]]
        why: Reason = "memory" if what == "memory" else "bisected"
        return [answer for part in parts for answer in self.run(part, why)]

    def _once(self, fetch: Fetch, size: int, pixels: list[Pixels], reason: Reason) -> Answers:
        """The end of one forward pass, logged however it ends."""
        began = self.since or time.monotonic()
        try:
            return self._scores(fetch, size, pixels)
        finally:
            self._under_way -= 1
            self.since = time.monotonic() if self._under_way else None
            LAST_BATCH.set_to_current_time()
            forward_ms = round((time.monotonic() - began) * MS_PER_S, 1)
            log.debug("batch", model=self._model, size=len(pixels), reason=reason, forward_ms=forward_ms)

    def _scores(self, fetch: Fetch, size: int, pixels: list[Pixels]) -> Answers:
        try:
            scores = fetch()
        except NotFinite as error:
            scores = error.scores
        if len(scores) != size:
            raise ModelError(f"{len(scores)} answers to {size} images")
        scores = scores[: len(pixels)]
        if np.isfinite(scores).all():
            return list(scores)
        bad = f"{self._model}: the output holds NaN or infinity"
        return [row if np.isfinite(row).all() else ImageError(ErrorCode.MODEL_FAILED, bad) for row in scores]

    def _together(self, pixels: list[Pixels], size: int) -> Pixels:
        """The images in one array; rows of padding are black."""
        PADDED_IMAGES.labels(self._model).inc(size - len(pixels))  # by nothing, too: a rate needs a series
        if size == len(pixels):
            return np.stack(pixels)
        batch = np.zeros((size, *pixels[0].shape), np.uint8)
        np.stack(pixels, out=batch[: len(pixels)])
        return batch

    def _shrink(self, pixels: list[Pixels], text: str) -> bool:
        """Never again so many; False if there was but one image, and it is that image's fault.

        Raises:
            DeviceLost: A black image does not run either: others have the device's memory, or it has leaked away.
        """
        size = self._sizes.padded(len(pixels))
        if size > 1:
            self._sizes.halve(size)
            MAX_BATCH.labels(self._model).set(self._sizes.most)
            log.warning("out of memory", model=self._model, size=size, max_batch=self._sizes.most, error=text)
            return True
        try:
            self._backend.run(np.zeros_like(pixels[0])[np.newaxis])
        except Exception as error:
            if failure(error) != "model":
                raise DeviceLost(f"no memory for a single image: {text}") from error
        return False


def _raise(error: Exception) -> NoReturn:
    raise error


def _alone(error: Exception) -> Exception:
    """Without what it has seen: tracebacks, also those of its causes, keep the tensors of a batch."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
