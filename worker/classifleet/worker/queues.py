"""Images that wait for a model, the most urgent first."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

AGEING_SECONDS: Final = 5.0
"""An image goes before all that come later than this after it, however near their deadlines are."""

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


class Inference(NamedTuple):
    """One model's scores [num_classes] for one image, and how long it waited and ran, in milliseconds.

    `batch` is the span of the forward pass, if an image of it is traced.
    """

    scores: Scores
    wait_ms: float
    forward_ms: float
    batch: SpanContext | None = None


@dataclass(slots=True)
class Waiting:
    """One image that waits for the device; times on the monotonic clock, in seconds."""

    pixels: Pixels
    since: float
    future: asyncio.Future[Inference]
    deadline: float = math.inf
    trace: SpanContext | None = None


def due(since: float, deadline: float) -> float:
    """Earliest deadline first, with ageing: the lower, the sooner is an image's turn within its lane.

    Whoever waits counts as if its deadline were `AGEING_SECONDS` after it came, unless that is nearer anyway. So most
    are served in order of arrival, only those in a hurry overtake, and whoever has waited so long is overtaken by
    nobody: an image whose deadline has passed is not run.
    """
    aged = since + AGEING_SECONDS
    return aged if aged < deadline else deadline


class Queue:
    """The images of one model and lane, by when they are due: those in a hurry, and all others as they came.

    Not safe across threads.

    Args:
        drop: Given what is not worth running: its deadline has passed, or its caller has given up.
    """

    def __init__(self, drop: Callable[[Waiting], None]) -> None:
        self._drop = drop
        self._in_order: deque[Waiting] = deque()
        self._in_a_hurry: list[tuple[float, int, Waiting]] = []
        self._arrivals = count()  # those of one chunk are due at one time, and go by arrival

    def __len__(self) -> int:
        return len(self._in_order) + len(self._in_a_hurry)

    def add(self, waiting: Waiting) -> None:
        """Queue an image."""
        if due(waiting.since, waiting.deadline) < waiting.deadline:
            self._in_order.append(waiting)
        else:
            heappush(self._in_a_hurry, (waiting.deadline, next(self._arrivals), waiting))

    def first_due(self, now: float) -> float | None:
        """When the first image is due; None if there is none."""
        while self:
            waiting = self._first()
            if waiting.deadline > now and not waiting.future.done():
                return due(waiting.since, waiting.deadline)
            self._drop(self._pop())
        return None

    def take(self, most: int, now: float) -> list[Waiting]:
        """Up to so many images, the most urgent first."""
        batch: list[Waiting] = []
        while len(batch) < most and self:
            waiting = self._pop()
            if waiting.deadline > now and not waiting.future.done():
                batch.append(waiting)
            else:
                self._drop(waiting)
        return batch

    def clear(self) -> None:
        """Drop all."""
        while self:
            self._drop(self._pop())

    def _first(self) -> Waiting:
        if self._hurries():
            return self._in_a_hurry[0][2]
        return self._in_order[0]

    def _pop(self) -> Waiting:
        if self._in_a_hurry and self._hurries():
            return heappop(self._in_a_hurry)[2]
        return self._in_order.popleft()

    def _hurries(self) -> bool:
        if not (self._in_a_hurry and self._in_order):
            return bool(self._in_a_hurry)
        first = self._in_order[0]
        return self._in_a_hurry[0][0] < due(first.since, first.deadline)


class SpareQueue:
    """Images of any model that are run only while no other waits, as they came. Not safe across threads.

    Args:
        most: Images that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._images: deque[tuple[str, Waiting]] = deque()

    def add(self, model: str, waiting: Waiting) -> bool:
        """Queue an image; false if too many wait."""
        room = len(self._images) < self._most
        if room:
            self._images.append((model, waiting))
        return room

    def take(self, most: Callable[[str], int], now: float) -> list[tuple[str, Waiting]]:
        """Images of the model whose image has waited for the longest, as many as it may; forgets what is too late."""
        batch: list[tuple[str, Waiting]] = []
        while self._images and len(batch) < most(self._images[0][0]):
            model, waiting = self._images[0]
            if batch and model != batch[0][0]:
                break
            self._images.popleft()
            if waiting.deadline > now and not waiting.future.done():
                batch.append((model, waiting))
        return batch

    def forget(self, model: str) -> None:
        """Drop the images of a model."""
        self._images = deque(pair for pair in self._images if pair[0] != model)
