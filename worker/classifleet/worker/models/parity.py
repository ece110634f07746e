"""Are two runs of one model the same answers? Pure functions of two arrays of scores.

plain fp32 scores ┐
├─► compare() ─► Parity ─► reasons_against() ─► () or why the variant is refused
variant's scores  ┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "bf16", "fp16"]

FP32_TOLERANCE: Final = 1e-4
"""Largest difference of any class on any picture that still counts as the same answers."""
DECIDED_MARGIN: Final = 0.05
"""A picture is decided if the plain module's two best classes (or a class and the threshold) lie so far apart."""
MIN_FP32_PICTURES: Final = 16
"""What fp32 is compared on at least; of a model too slow for so many only the file as it came may serve."""
AGREEMENT: Final = 0.99
"""Share of the decided pictures whose answer must be equal in reduced precision."""
MEAN_WORST: Final = 0.02
"""Bound of the mean, over pictures, of the largest difference of any class."""
WORST: Final = 0.2
"""Bound of the largest difference of all: what a model that nearly always gives the same answer is judged by."""
MIN_PICTURES: Final = 200
MIN_DECIDED: Final = 50
"""Fewer decided pictures than this cannot tell 99 % from 98 %; such a model stays in fp32."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a variant's scores lie from the plain module's.

    Attributes:
        pictures: How many were compared.
        decided: Answers of the plain module with a clear margin: pictures, or picture-label pairs of a multi-label
            model.
        agreeing: Those to which the variant gives the same answer.
        mean_worst: Mean over pictures of the largest difference of any class.
        worst: The largest difference of all.
    """

    pictures: int
    decided: int
    agreeing: int
    mean_worst: float
    worst: float

    @property
    def agreement(self) -> float:
        """Share of the decided answers that are equal; 1 if nothing was decided."""
        return self.agreeing / self.decided if self.decided else 1.0


def compare(plain: Scores, variant: Scores, *, kind: Literal["single", "multi"], threshold: float) -> Parity:
    """Compare scores [pictures, classes] of the plain module and of a variant, picture by picture."""
    if plain.shape != variant.shape:
        raise ValueError(f"scores {variant.shape} against {plain.shape}")
    finite = np.isfinite(variant)
    difference = np.where(finite, np.abs(variant - plain), np.inf).max(axis=1)
    if kind == "multi":
        decided = np.abs(plain - threshold) > DECIDED_MARGIN
        same = (plain >= threshold) == (variant >= threshold)
    else:
        decided = _margin(plain) > DECIDED_MARGIN
        same = plain.argmax(axis=1) == variant.argmax(axis=1)
    return Parity(
        pictures=len(plain),
        decided=int(decided.sum()),
        agreeing=int((decided & same).sum()),
        mean_worst=float(difference.mean()),
        worst=float(difference.max()),
    )


def reasons_against(parity: Parity, precision: Precision) -> tuple[str, ...]:
    """Why a variant must not serve; empty if it may."""
    if precision == "fp32":
        if not parity.worst <= FP32_TOLERANCE:
            return (f"a score differs by {parity.worst:.1e}, more than {FP32_TOLERANCE:g}",)
        few = f"{parity.pictures} pictures prove nothing ({MIN_FP32_PICTURES} are needed); set TUNE_SECONDS"
        return () if parity.pictures >= MIN_FP32_PICTURES else (few,)
    reasons = []
    if parity.pictures < MIN_PICTURES or parity.decided < MIN_DECIDED:
        reasons.append(
            f"{parity.pictures} pictures, {parity.decided} of them decided, prove nothing "
            f"({MIN_PICTURES} and {MIN_DECIDED} are needed)"
        )
    if parity.agreement < AGREEMENT:
        reasons.append(f"the answer is equal on {parity.agreement:.1%} of the decided pictures, less than 99 %")
    if not parity.mean_worst < MEAN_WORST:
        reasons.append(f"the largest difference of a class is {parity.mean_worst:.3f} in the mean, not under 0.02")
    if not parity.worst < WORST:
        reasons.append(f"a score differs by {parity.worst:.2f}, not under {WORST:g}")
    return tuple(reasons)


def _margin(scores: Scores) -> Scores:
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf, np.float32)
    best = np.partition(scores, -2, axis=1)[:, -2:]
    margin: Scores = best[:, 1] - best[:, 0]
    return margin
