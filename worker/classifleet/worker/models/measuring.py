"""How fast a backend is, on a machine that may have other things to do.

What disturbs a forward pass only makes it slower, so the best of several counts, and what is compared runs in turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import failure
from classifleet.worker.models.golden_inputs import noise

MEASURE_SECONDS: Final = 0.15
"""Per variant and batch size, twice; at least `LEAST_RUNS` batches each time."""
LEAST_RUNS: Final = 2
TURNS: Final = 3
"""How often each of two backends runs in a duel."""
TURN_SECONDS: Final = 0.1
ENOUGH: Final = 0.97
"""The smallest batch size is taken that reaches this share of the best rate: it has the least latency."""
BATCH_SECONDS: Final = 0.0004
"""What a worker spends on each batch beside its forward pass. EfficientNet-Lite0 in fp32 is as fast alone as together,
and a worker on 2 cores did 160 images/s one by one, 170 in eights."""
USELESS: Final = 2
"""After so many sizes in a row that bring nothing, larger ones are not tried."""
QUIET_SPREAD: Final = 1.3
"""Mean by best time of the same forward pass: 1.01-1.1 on a quiet machine, 1.5-10 where others want its cores."""
QUIET_LOAD: Final = 1.5
"""Load average by core before tuning; a process that tunes one model after the other makes 1 itself."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Speed:
    """A variant's rate in images per second at its best batch size, and the seconds of one such forward pass.

    `most` is the largest size that was run, and took no longer than a forward pass may.
    """

    rate: float
    batch: int
    forward_seconds: float
    most: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What tuning may take, and what a forward pass may.

    Attributes:
        seconds: For one model; what is not tried by then is not chosen.
        forward_seconds: Of one forward pass: batch sizes that take longer are not used.
        batch_sizes: To try, rising.
    """

    seconds: float
    forward_seconds: float
    batch_sizes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A backend, and what it did alone: it competes at that batch size."""

    backend: Backend
    alone: Speed


def measure(
    backend: Backend, description: ModelDescription, bounds: Bounds, clock: Clock, ends: float = math.inf
) -> Speed:
    """The best rate over the batch sizes whose forward pass is short enough, and for which there are memory and time.

    Raises:
        Exception: The smallest does not run, or another one does not for a reason that is not its size.
    """
    best: dict[int, float] = {}

    def run(size: int) -> None:
        times = _times(backend, noise(description, size), clock, MEASURE_SECONDS, LEAST_RUNS)
        best[size] = min(*times, best.get(size, math.inf))

    for size in bounds.batch_sizes:
        if best and clock() >= ends:
            break
        try:
            backend.warm([size])
            run(size)
        except Exception as error:
            if not best or failure(error) != "memory":
                raise
            break
        if len(best) > 1 and best[size] > bounds.forward_seconds:
            del best[size]
            break
        rates = [size / seconds for size, seconds in best.items()]
        if len(rates) > USELESS and max(rates[-USELESS:]) <= max(rates[:-USELESS]):
            break
    for size in list(best):  # once more: what disturbed one of them made another look better
        if clock() < ends:
            run(size)
    size = enough({size: size / seconds for size, seconds in best.items()})
    return Speed(size / best[size], size, best[size], max(best))


def enough(rates: Mapping[int, float]) -> int:
    """The smallest size of those that are about as fast as the fastest, by images per second of each, rising."""
    served = {size: size / (size / rate + BATCH_SECONDS) for size, rate in rates.items()}
    return next(size for size, rate in served.items() if rate >= ENOUGH * max(served.values()))


def duel(
    contestants: Sequence[Contestant], description: ModelDescription, clock: Clock, *, turns: int = TURNS
) -> tuple[list[Speed], float]:
    """Run backends in turns: the best speed of each, and the spread of the unsteadiest (mean by best time)."""
    pixels = [noise(description, contestant.alone.batch) for contestant in contestants]
    for contestant, batch in zip(contestants, pixels, strict=True):
        contestant.backend.run(batch)  # the other's threads and caches are gone after this
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(turns):
        for taken, contestant, batch in zip(times, contestants, pixels, strict=True):
            taken += _times(contestant.backend, batch, clock, TURN_SECONDS, 1)
    speeds = [
        replace(contestant.alone, rate=contestant.alone.batch / min(taken), forward_seconds=min(taken))
        for contestant, taken in zip(contestants, times, strict=True)
    ]
    return speeds, max(statistics.fmean(taken) / min(taken) for taken in times)


def busy(spread: float, load: float, cores: int) -> str:
    """How others disturbed the measurement; empty if they did not.

    Args:
        spread: Mean by best time of one forward pass.
        load: The machine's load average before tuning.
        cores: Of the whole machine.
    """
    if spread > QUIET_SPREAD:
        return f"equal forward passes took {spread:.1f} times the best one's time in the mean"
    if load > QUIET_LOAD * cores:
        return f"the load average was {load:.1f} on {cores} cores"
    return ""


def _times(backend: Backend, pixels: NDArray[np.uint8], clock: Clock, seconds: float, least: int) -> list[float]:
    """The times of single forward passes, for so many seconds and at least so many passes."""
    taken: list[float] = []
    start = clock()
    while len(taken) < least or clock() - start < seconds:
        begun = clock()
        backend.run(pixels)
        taken.append(clock() - begun)
    return taken
