"""Find the fastest way to run a model on this device that gives the answers of the file as it came.

    plain module ─► its speed and its answers to the golden inputs
    each variant ─► load ─► speed by batch size ─► faster than the best so far? ─► same answers? ─► the best so far

What is slower is not compared; what answers differently is refused, however fast it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.golden_inputs import GoldenInputs, noise
from classifleet.worker.models.parity import Parity, Precision, Scores, compare, reasons_against
from classifleet.worker.models.variants import PLAIN, VARIANTS, Variant, available

PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
Status = Literal["chosen", "slower", "refused", "failed", "unavailable", "no time"]

MEASURE_SECONDS: Final = 0.4
"""Per variant and batch size; at least two batches."""
REFERENCE_SHARE: Final = 0.5
"""Of the time, at most, that goes into the plain module's answers."""
ENOUGH: Final = 0.97
"""The smallest batch size is taken that reaches this share of the best rate: it has the least latency."""
NOISE_PICTURES: Final = 8
PARITY_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """A variant's rate in images per second at its best batch size, and the seconds of one such forward pass."""

    rate: float
    batch: int
    forward_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one variant; `reason` says why it was not chosen."""

    variant: str
    precision: Precision
    status: Status
    speed: Speed | None = None
    parity: Parity | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The outcome: a row for each variant, the chosen one among them, and the plain module's speed."""

    rows: tuple[Row, ...]
    plain: Speed

    @property
    def chosen(self) -> Row:
        """The variant that serves."""
        return next(row for row in self.rows if row.status == "chosen")

    @property
    def speedup(self) -> float:
        """How many times the rate of the file as it came."""
        return (self.chosen.speed or self.plain).rate / self.plain.rate


class OpenVariant(Protocol):
    """Loads the model as a variant; see `variants.open_variant`."""

    def __call__(self, variant: Variant) -> Backend:
        """Load it, or raise ModelError."""


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


def tune(
    description: ModelDescription,
    open_variant: OpenVariant,
    inputs: GoldenInputs,
    *,
    device: str,
    precision: PrecisionSetting,
    bounds: Bounds,
    clock: Callable[[], float] = time.monotonic,
) -> Tuning:
    """Try the variants of a model on a device.

    Args:
        description: The model.
        open_variant: Loads it as a variant.
        inputs: The pictures to compare on. Without enough real photos only fp32 is tried.
        device: `cpu`, `cuda` or `cuda:1`.
        precision: `auto` allows all; another allows that one, and fp32 if that one has no variant that passes.
        bounds: Of time.
        clock: Monotonic seconds.

    Raises:
        ModelError: The plain module itself does not run.
    """
    ends = clock() + bounds.seconds
    pixels = inputs.pixels if len(inputs.pixels) else noise(description, NOISE_PICTURES)
    plain = open_variant(PLAIN)
    try:
        slow = _measure(plain, description, bounds, clock)
        answers = _answers(plain, pixels, until=clock() + bounds.seconds * REFERENCE_SHARE, clock=clock)
    finally:
        plain.close()
    trial = _Trial(description, open_variant, inputs, pixels[: len(answers)], answers, precision, bounds, clock)
    rows = [Row(PLAIN.name, PLAIN.precision, "chosen", slow)]
    for variant in _in_order(VARIANTS, precision):
        if reason := available(variant, device):
            rows.append(Row(variant.name, variant.precision, "unavailable", reason=reason))
        elif clock() >= ends:
            rows.append(Row(variant.name, variant.precision, "no time", reason=f"{bounds.seconds:g} s were over"))
        else:
            new = trial.run(variant, next(row for row in rows if row.status == "chosen"))
            if new.status == "chosen":
                rows = [replace(row, status="slower") if row.status == "chosen" else row for row in rows]
            rows.append(new)
    return Tuning(tuple(rows), slow)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Tries one variant after the other against the plain module's answers to the same pixels."""

    description: ModelDescription
    open_variant: OpenVariant
    inputs: GoldenInputs
    pixels: NDArray[np.uint8]
    answers: Scores
    precision: PrecisionSetting
    bounds: Bounds
    clock: Callable[[], float]

    def run(self, variant: Variant, best: Row) -> Row:
        """Measure and compare; `best` is what it has to beat."""
        if variant.precision != "fp32" and not self.inputs.representative:
            few = f"{self.inputs.photos} photos cannot prove equal answers; install scikit-image, or tune with photos"
            return Row(variant.name, variant.precision, "refused", reason=few)
        try:
            backend = self.open_variant(variant)
        except ModelError as error:
            return Row(variant.name, variant.precision, "failed", reason=str(error))
        try:
            return self._judge(variant, backend, best)
        except (ModelError, RuntimeError) as error:
            return Row(variant.name, variant.precision, "failed", reason=str(error).strip().splitlines()[-1])
        finally:
            backend.close()

    def _judge(self, variant: Variant, backend: Backend, best: Row) -> Row:
        speed = _measure(backend, self.description, self.bounds, self.clock)
        row = Row(variant.name, variant.precision, "chosen", speed)
        if self._rank(row) <= self._rank(best):
            return replace(row, status="slower")
        output = self.description.output
        scores = _answers(backend, self.pixels)
        parity = compare(self.answers, scores, kind=output.kind, threshold=output.threshold)
        reasons = reasons_against(parity, variant.precision)
        return replace(row, status="refused" if reasons else "chosen", parity=parity, reason="; ".join(reasons))

    def _rank(self, row: Row) -> tuple[bool, float]:
        """The precision that was asked for goes before speed."""
        wanted = self.precision in ("auto", "fp32", row.precision)
        return wanted, row.speed.rate if row.speed else 0.0


def _in_order(variants: Iterable[Variant], precision: PrecisionSetting) -> list[Variant]:
    """Without the plain one; the most promising first, in case that the time is short."""
    allowed = [v for v in variants if v is not PLAIN and (precision == "auto" or v.precision in (precision, "fp32"))]
    return sorted(allowed, key=lambda v: v.recipe is not None)


def _measure(backend: Backend, description: ModelDescription, bounds: Bounds, clock: Callable[[], float]) -> Speed:
    """The best rate over the batch sizes whose forward pass is short enough."""
    speeds: list[Speed] = []
    for size in bounds.batch_sizes:
        pixels = noise(description, size)
        backend.warm([size])
        runs, start = 0, clock()
        while runs < 2 or clock() - start < MEASURE_SECONDS:
            backend.run(pixels)
            runs += 1
        seconds = (clock() - start) / runs
        if speeds and seconds > bounds.forward_seconds:
            break
        speeds.append(Speed(size / seconds, size, seconds))
    most = max(speed.rate for speed in speeds)
    return next(speed for speed in speeds if speed.rate >= ENOUGH * most)


def _answers(
    backend: Backend,
    pixels: NDArray[np.uint8],
    *,
    until: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Scores:
    """Scores [pictures, classes], of as many pictures as there is time for."""
    parts: list[Scores] = []
    for first in range(0, len(pixels), PARITY_BATCH):
        if until is not None and parts and clock() >= until:
            break
        parts.append(backend.run(pixels[first : first + PARITY_BATCH]))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
