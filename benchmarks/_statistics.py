"""The few statistics that the benchmarks use: pure functions."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two in the middle of an even number."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, interpolated between neighbours.

    Raises:
        ValueError: There are no values, or percent is not in 0..100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def ratio(value: float, other: float) -> float:
    """How many times the other; not a number where the other is 0."""
    return value / other if other else float("nan")


def ratio_of_rounds(values: Sequence[float], others: Sequence[float]) -> float:
    """The median of ratios round by round, so that what slows a whole round down cancels out.

    Raises:
        ValueError: They were not measured in the same rounds.
    """
    return median([ratio(value, other) for value, other in zip(values, others, strict=True)])


def poisson_arrivals(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Seconds at which requests arrive that know nothing of each other: `rate` a second in the mean.

    Raises:
        ValueError: The rate is not positive.
    """
    if rate <= 0:
        raise ValueError(f"a rate of {rate}")
    generator = random.Random(seed)
    arrivals: list[float] = []
    at = generator.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += generator.expovariate(rate)
    return arrivals


def agreement(labels: Sequence[object], expected: Sequence[object]) -> float:
    """The share of labels that are those expected.

    Raises:
        ValueError: They are not as many, or none.
    """
    if not expected:
        raise ValueError("no labels to compare")
    return sum(a == b for a, b in zip(labels, expected, strict=True)) / len(expected)


def slope_share(values: Sequence[float]) -> float:
    """How far the last value lies above or below the first, as a share of the first."""
    return ratio(values[-1], values[0]) - 1
