"""What a fleet is judged by, as bars: how late it was done, what that cost, and what was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from benchmarks.autoscale.report import COLORS, MARGIN, TOP, framed, seconds
from benchmarks.autoscale.scenarios import Outcome

COLUMN: Final = 324
LONGEST: Final = 244
BAR: Final = 14
HEAD: Final = 22
ROW: Final = HEAD + 6 * BAR + 24


@dataclass(frozen=True, slots=True)
class Figure:
    """One of them, and how it is written; None stands for never."""

    title: str
    value: Callable[[Outcome], float | None]
    text: Callable[[float], str]


FIGURES: Final = (
    Figure("time to drain", lambda outcome: outcome.drain_seconds, seconds),
    Figure("replica-hours", lambda outcome: outcome.replica_hours, "{:.1f}".format),
    Figure("images interrupted", lambda outcome: outcome.interrupted, "{:,.0f}".format),
)


def bars(outcomes: Sequence[Outcome]) -> str:
    """A row a scenario, a column a figure, a bar a contestant; less is better everywhere."""
    groups = [list(group) for _, group in groupby(outcomes, key=lambda outcome: outcome.scenario)]
    parts = [
        part
        for row, group in enumerate(groups)
        for column, figure in enumerate(FIGURES)
        for part in _panel(group, figure, MARGIN + COLUMN * column, TOP + ROW * row)
    ]
    return framed(parts, TOP + ROW * len(groups), [outcome.contestant for outcome in groups[0]])


def _panel(group: Sequence[Outcome], figure: Figure, left: int, top: int) -> Iterator[str]:
    values = [figure.value(outcome) for outcome in group]
    most = max((value for value in values if value is not None), default=0.0) or 1.0
    yield f'<text x="{left}" y="{top + 14}" font-weight="bold">{group[0].scenario}: {figure.title}</text>'
    yield f'<path d="M{left} {top + HEAD - 2}v{BAR * len(group) + 2}" stroke="#999999"/>'
    for index, (value, color) in enumerate(zip(values, COLORS, strict=True)):
        y = top + HEAD + BAR * index
        if value is None:
            yield f'<text x="{left + 4}" y="{y + 10}" fill="{color}" font-weight="bold">never</text>'
            continue
        length = LONGEST * value / most
        yield f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR - 3}" fill="{color}"/>'
        yield f'<text x="{left + length + 4:.1f}" y="{y + 10}">{figure.text(value)}</text>'
