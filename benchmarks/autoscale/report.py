"""The outcomes as a table in Markdown and, over time, as a picture in SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final

from benchmarks.autoscale.model import Sample
from benchmarks.autoscale.scenarios import Outcome

COLORS: Final = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#d55e00",
    "#e69f00",
    "#555555",
)  # told apart by the colour-blind, too
WIDTH: Final = 972
TOP: Final = 46
MARGIN: Final = 12
LEGEND: Final = 162
ROW: Final = 150
LEFT: Final = 62
PLOT_WIDTH: Final = 390
PLOT_HEIGHT: Final = 96
COLUMN: Final = 470
_DAY_SHOWN_HOURS: Final = 6.0
_MINUTES: Final = 120.0

Value = Callable[[Sample], int]


def table(outcomes: Iterable[Outcome]) -> str:
    """One row an outcome."""
    lines = [
        "| scenario | scaled by | drained after | p95 age | replica-hours | most replicas | interrupted images |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for _, group in groupby(outcomes, key=lambda outcome: outcome.scenario):
        for index, outcome in enumerate(group):
            cells = (
                f"**{outcome.scenario}**" if not index else "",
                outcome.contestant,
                "**never**" if outcome.drain_seconds is None else seconds(outcome.drain_seconds),
                seconds(outcome.p95_age_seconds),
                f"{outcome.replica_hours:.1f}",
                str(outcome.most_replicas),
                f"{outcome.interrupted:,}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """`42 s` or `12 min`; a dash for what there is not."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f} s" if value < _MINUTES else f"{value / 60:.0f} min"


def picture(outcomes: Sequence[Outcome]) -> str:
    """A row a scenario: outstanding images on the left, replicas on the right, a line a contestant."""
    groups = [list(group) for _, group in groupby(outcomes, key=lambda outcome: outcome.scenario)]
    parts: list[str] = []
    for index, group in enumerate(groups):
        top = TOP + ROW * index
        parts += _panel(group, LEFT, top, "outstanding images", lambda sample: sample.outstanding)
        parts += _panel(group, LEFT + COLUMN, top, "replicas", lambda sample: sample.replicas)
    return framed(parts, TOP + ROW * len(groups), [outcome.contestant for outcome in groups[0]])


def framed(parts: Iterable[str], height: int, names: Sequence[str]) -> str:
    """A picture of these parts, below a legend of the contestants."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    )
    return "\n".join([*head, *_legend(names), *parts, "</svg>", ""])


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for index, (name, color) in enumerate(zip(names, COLORS, strict=True)):
        x = MARGIN + index * LEGEND
        parts.append(
            f'<path d="M{x} 18h14" stroke="{color}" stroke-width="3"/><text x="{x + 18}" y="22">{name}</text>'
        )
    return parts


def _panel(group: Sequence[Outcome], left: int, top: int, what: str, value: Value) -> list[str]:
    most = max(1, *(value(sample) for outcome in group for sample in outcome.samples))
    ends = group[0].samples[-1].at
    bottom = top + 22 + PLOT_HEIGHT
    parts = [
        f'<text x="{left}" y="{top + 14}" font-weight="bold">{group[0].scenario}: {what}</text>',
        f'<path d="M{left} {bottom - PLOT_HEIGHT}v{PLOT_HEIGHT}h{PLOT_WIDTH}" fill="none" stroke="#999999"/>',
        f'<text x="{left - 6}" y="{bottom - PLOT_HEIGHT + 10}" text-anchor="end">{_short(most)}</text>',
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>',
        *_hours(left, bottom, ends / 3600),
    ]
    for outcome, color in reversed(list(zip(group, COLORS, strict=True))):  # ours is drawn last
        line = _steps([(s.at / ends, value(s) / most) for s in outcome.samples], left, bottom)
        parts.append(f'<path d="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    return parts


def _hours(left: int, bottom: int, hours: float) -> list[str]:
    step = 0.5 if hours < _DAY_SHOWN_HOURS else 4.0
    return [
        f'<text x="{left + PLOT_WIDTH * tick * step / hours:.1f}" y="{bottom + 15}" text-anchor="middle">'
        f"{tick * step:g} h</text>"
        for tick in range(int(hours / step) + 1)
    ]


def _steps(points: Sequence[tuple[float, float]], left: int, bottom: int) -> str:
    """A path through points given as shares of the panel; what lies on a straight line is left out."""
    path: list[str] = []
    last = ""
    for index, (x, y) in enumerate(points):
        level = f"{bottom - PLOT_HEIGHT * y:.1f}"
        if level != last or index == len(points) - 1:
            at = f"{left + PLOT_WIDTH * x:.1f}"
            path.append(f"H{at}V{level}" if path else f"M{at} {level}")
        last = level
    return "".join(path)


def _short(number: int) -> str:
    """`1.2 M`, `45 k` or `20`."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
