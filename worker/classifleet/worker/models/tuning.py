"""Find the fastest way to run a model on this device that gives the answers of the file as it came.

    plain module ─► its speed and its answers to the golden inputs
    each variant ─► can it win? ─► load ─► speed by batch size ─► faster than the best so far, in turns with it?
                 ─► same answers? ─► the best so far
    the best ─► once more in turns with the plain module: the figures that are kept

What is slower is not compared; what answers differently is refused, however fast it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, Literal, Protocol

from classifleet.worker.models._attempts import Attempts
from classifleet.worker.models.backend import Backend, answers
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import failure
from classifleet.worker.models.golden_inputs import GoldenInputs, synthetic
from classifleet.worker.models.measuring import Bounds, Clock, Contestant, Speed, busy, duel, measure
from classifleet.worker.models.parity import MIN_FP32_PICTURES, Parity, Precision, Scores, compare, reasons_against
from classifleet.worker.models.variants import PLAIN, VARIANTS, Variant

PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
Status = Literal["chosen", "slower", "refused", "failed", "unavailable", "no time"]

REFERENCE_SHARE: Final = 0.5
"""Of the time, at most, that goes into the plain module's answers."""
VARIANTS_SHARE: Final = 0.85
"""Of the time that the variants have; the rest is for the split of the cores (see `_split`)."""
CLOSE: Final = 0.7
"""A variant whose rate is a smaller share of the best one's is slower, without a duel."""
INDUCTOR_GAIN: Final = 1.8
"""Times torch's best executor in the same precision: no more is expected of compiling (measured: 1.4-1.6)."""
FINAL_TURNS: Final = 6
PARITY_BATCH: Final = 8
EACH_SIZE: Final = 4
"""Answers are compared in batches of so many sizes at least, however few pictures there are."""
KILLED: Final = "killed the process"
_ENGINES: Final = ("openvino", "torchscript", "inductor")


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
class Split:
    """How the cores are shared: threads that decode, threads of a forward pass, and the images/s of both at once.

    `batch` is how many images are run together at most.
    """

    decode_threads: int
    forward_threads: int
    batch: int
    rate: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """The outcome.

    Attributes:
        rows: One for each variant, the chosen one among them.
        plain: The plain module's speed.
        busy: How others disturbed the measurement; empty if they did not.
        tries: How often it was tuned, because each time before the machine was busy.
        split: The chosen split of the cores; None: each has all of them.
        splits: All that were measured.
        photos: How many different ones the answers were compared on.
        own_photos: Whether the operator gave them.
    """

    rows: tuple[Row, ...]
    plain: Speed
    busy: str = ""
    tries: int = 1
    split: Split | None = None
    splits: tuple[Split, ...] = ()
    photos: int = 0
    own_photos: bool = False

    @property
    def chosen(self) -> Row:
        """The variant that serves."""
        return next(row for row in self.rows if row.status == "chosen")

    @property
    def batch(self) -> int:
        """How many images a batch holds at most."""
        return self.split.batch if self.split else (self.chosen.speed or self.plain).batch

    @property
    def speedup(self) -> float:
        """How many times the rate of the file as it came."""
        return (self.chosen.speed or self.plain).rate / self.plain.rate


class Ways(Protocol):
    """How the model can be run; see `variants.Ways`."""

    def missing(self, variant: Variant) -> str:
        """Why a variant cannot be tried; empty if it can."""

    def seconds(self, variant: Variant) -> float:
        """How long preparing it takes, where that is long enough to count."""

    def open(self, variant: Variant, *, seconds: float | None = None) -> Backend:
        """Load it, in that time at most where it is compiled; raises ModelError."""


def tune(
    description: ModelDescription,
    ways: Ways,
    inputs: GoldenInputs,
    *,
    precision: PrecisionSetting,
    bounds: Bounds,
    clock: Clock = time.monotonic,
    load: Callable[[], float] = lambda: os.getloadavg()[0],
    attempts: Attempts | None = None,
) -> Tuning:
    """Try the variants of a model on a device.

    Args:
        description: The model.
        ways: To run it on the device.
        inputs: The pictures to compare on. Without enough real photos only fp32 is tried.
        precision: `auto` allows all; another allows that one, and fp32 if that one has no variant that passes.
        bounds: Of time.
        clock: Monotonic seconds.
        load: The machine's load average.
        attempts: Remembers what is tried, for the process after this one.

    Raises:
        DeviceLost: Nothing runs in this process any more.
        ModelError: The plain module itself does not run.
    """
    load_before, start = load(), clock()
    contest = _Contest(description, ways, inputs, precision, bounds, clock, attempts or Attempts())
    try:
        contest.ask_plain()
        for variant in _in_order(VARIANTS, precision):
            contest.enter(variant, start + bounds.seconds * VARIANTS_SHARE)
        spread = contest.decide()
    finally:
        contest.close()
    disturbed = busy(spread, load_before, os.cpu_count() or 1)
    return Tuning(tuple(contest.rows), contest.plain_speed, disturbed, photos=inputs.photos)


class _Contest:
    """Tries one variant after the other; the plain module and the best so far stay open to compare with."""

    def __init__(
        self,
        description: ModelDescription,
        ways: Ways,
        inputs: GoldenInputs,
        precision: PrecisionSetting,
        bounds: Bounds,
        clock: Clock,
        attempts: Attempts,
    ) -> None:
        self._description = description
        self._ways = ways
        self._inputs = inputs
        self._precision = precision
        self._bounds = bounds
        self._clock = clock
        self._attempts = attempts
        self._ends = clock() + bounds.seconds
        self._pixels = inputs.pixels if len(inputs.pixels) else synthetic(description, MIN_FP32_PICTURES)
        self._plain = self._best = ways.open(PLAIN)
        self.rows: list[Row] = []
        self.plain_speed: Speed
        self._answers: Scores

    def ask_plain(self) -> None:
        """What all others are compared with: its speed, and its answers to as many pictures as there is time for."""
        self.plain_speed = self._measured(self._plain)
        until = min(self._clock() + self._bounds.seconds * REFERENCE_SHARE, self._ends)
        batches = repeat(min(PARITY_BATCH, self.plain_speed.batch))
        self._answers = answers(self._plain, self._pixels, batches, lambda: self._clock() >= until)
        self._pixels = self._pixels[: len(self._answers)]
        self.rows.append(Row(PLAIN.name, PLAIN.precision, "chosen", self.plain_speed))

    def enter(self, variant: Variant, ends: float) -> None:
        """Try a variant if it may, can, and there is time for it."""
        row = Row(variant.name, variant.precision, "unavailable")
        if variant.precision != "fp32" and not self._inputs.representative:
            few = f"{self._inputs.photos} photos cannot prove equal answers; install scikit-image, or tune with photos"
            row = replace(row, status="refused", reason=few)
        if reason := self._ways.missing(variant):
            row = replace(row, status="unavailable", reason=reason)
        elif row.reason:
            pass
        elif self._attempts.fatal(variant.name):
            row = replace(row, status="failed", reason=KILLED)
        elif hopeless := no_hope(variant, self.rows, wanted=self._wanted(row) > self._wanted(self._leader)):
            row = replace(row, status="slower", reason=hopeless)
        elif (left := ends - self._clock()) <= (needed := self._ways.seconds(variant)):
            over = f"{self._bounds.seconds:g} s were over"
            much = f"preparing it takes about {needed:.0f} s, {max(left, 0):.0f} s were left; set TUNE_SECONDS"
            row = replace(row, status="no time", reason=much if needed else over)
        else:
            row = self._tried(variant, row, left)
        self.rows.append(row)

    def decide(self) -> float:
        """The best once more against the plain module, in turns; how unsteady the measurement was."""
        leader = self._leader
        both = [
            Contestant(self._plain, self.plain_speed),
            Contestant(self._best, leader.speed or self.plain_speed),
        ]
        turns = FINAL_TURNS if self._clock() < self._ends else 1
        if self._best is self._plain:
            [self.plain_speed], spread = duel(both[:1], self._description, self._clock, turns=turns)
            self._replace(leader, replace(leader, speed=self.plain_speed))
            return spread
        [self.plain_speed, speed], spread = duel(both, self._description, self._clock, turns=turns)
        plain = self.rows[0]
        if speed.rate < self.plain_speed.rate and self._wanted(leader) <= self._wanted(plain):
            self._replace(leader, replace(leader, status="slower", speed=speed, reason="slower when run in turns"))
            self._replace(plain, replace(plain, status="chosen", speed=self.plain_speed))
        else:
            self._replace(leader, replace(leader, speed=speed))
            self._replace(plain, replace(plain, speed=self.plain_speed))
        return spread

    def close(self) -> None:
        """Close what is open."""
        if self._best is not self._plain:
            self._best.close()
        self._plain.close()

    @property
    def _leader(self) -> Row:
        return next(row for row in self.rows if row.status == "chosen")

    def _tried(self, variant: Variant, row: Row, left: float) -> Row:
        backend = None
        with self._attempts.trying(variant.name):
            try:
                backend = self._ways.open(variant, seconds=left)
                judged = self._judged(backend, replace(row, status="chosen"))
            except Exception as error:
                if failure(error) == "lost":
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                judged = replace(row, status="failed", reason=reason)
        if backend is None or judged.status != "chosen":
            if backend is not None:
                backend.close()
            return judged
        if self._best is not self._plain:
            self._best.close()
        self._best = backend
        self._replace(self._leader, replace(self._leader, status="slower"))
        return judged

    def _measured(self, backend: Backend) -> Speed:
        return measure(backend, self._description, self._bounds, self._clock, self._ends)

    def _judged(self, backend: Backend, row: Row) -> Row:
        """Measured, in turns with the best so far, and compared with the plain module's answers."""
        best = self._leader
        row = replace(row, speed=self._measured(backend))
        if self._wanted(row) < self._wanted(best):
            return replace(row, status="slower", reason=f"{self._precision} was asked for")
        if self._wanted(row) == self._wanted(best) and not self._faster(backend, row):
            return replace(row, status="slower")
        output = self._description.output
        most = min((row.speed or self.plain_speed).most, max(1, len(self._pixels) // EACH_SIZE))
        scores = answers(backend, self._pixels, sizes_served(most))
        parity = compare(self._answers, scores, kind=output.kind, threshold=output.threshold)
        reasons = reasons_against(parity, row.precision)
        return replace(row, status="refused" if reasons else "chosen", parity=parity, reason="; ".join(reasons))

    def _faster(self, backend: Backend, row: Row) -> bool:
        """Whether it wins against the best so far."""
        mine, best = row.speed or self.plain_speed, self._leader.speed or self.plain_speed
        if mine.rate < CLOSE * best.rate:
            return False
        both = [Contestant(backend, mine), Contestant(self._best, best)]
        [new, old], _ = duel(both, self._description, self._clock)
        return new.rate > old.rate

    def _wanted(self, row: Row) -> bool:
        """The precision that was asked for goes before speed."""
        return self._precision in ("auto", "fp32", row.precision)

    def _replace(self, old: Row, new: Row) -> None:
        self.rows[self.rows.index(old)] = new


def sizes_served(batch: int) -> Iterator[int]:
    """Sizes of the batches in which a variant is compared: full ones, and smaller ones that it will be given, too.

    What runs a batch is chosen by its size, so that an answer can be right in a full one and wrong alone.
    """
    for smaller in (1, batch // 2, 3, batch - 1, 2, batch // 4):
        if 0 < smaller < batch:
            yield smaller
        yield batch
    yield from repeat(batch)


def no_hope(variant: Variant, rows: Sequence[Row], *, wanted: bool = False) -> str:
    """Why a variant that takes long to compile cannot win; empty if it can.

    Args:
        variant: Any.
        rows: What became of those that were tried before.
        wanted: Whether its precision is asked for, and that of the best so far is not.
    """
    if variant.engine != "inductor" or wanted:
        return ""
    best = next(row for row in rows if row.status == "chosen")
    rivals = [row.speed.rate for row in rows if row.speed and _is_rival(row, variant)]
    if not rivals or not best.speed or max(rivals) * INDUCTOR_GAIN > best.speed.rate:
        return ""
    times = best.speed.rate / max(rivals)
    return f"not tried: {best.variant} is {times:.1f} times torch's own executor; compiling brought 1.4-1.6 times"


def _is_rival(row: Row, variant: Variant) -> bool:
    """Whether the row is of torch's own executor at its best: the file as it came says nothing."""
    torchs = row.variant.startswith("torchscript/")
    return torchs and row.precision == variant.precision


def _in_order(variants: Iterable[Variant], precision: PrecisionSetting) -> list[Variant]:
    """Without the plain one; the most promising first, in case that the time is short, what is compiled last."""
    allowed = [v for v in variants if v is not PLAIN and (precision == "auto" or v.precision in (precision, "fp32"))]
    return sorted(allowed, key=lambda v: (_ENGINES.index(v.engine), v.engine == "inductor" and v.precision == "fp32"))
