"""The table at the end: what each scenario did, lost and doubled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEGEND: Final = (
    "recovery: seconds from the fault to the first commit of work that was in flight at that moment; 'all': to the "
    "last one; each of the slowest fault. Work in flight are the chunks under a lease, those of the victims where a "
    "fault has victims; an outage counts from its beginning. 'most': what 'all' may be."
)
PLAIN: Final = "plain"
SKIPPED: Final = "skipped"
PLAIN_LEGEND: Final = (
    "The same kills, plain Celery with acks_late (a task per image, visibility timeout 5 s instead of an hour):"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario. `lost` and `doubled` are images, None if not judged; `seconds` is what the whole scenario took."""

    number: str
    title: str
    images: int
    faults: int
    lost: int | None
    doubled: int | None
    first_seconds: float | None
    all_seconds: float | None
    seconds: float
    verdict: str
    most_seconds: float | None = None


def failed(number: str, title: str, images: int, faults: int) -> Row:
    """A scenario that did not get as far as its verdict."""
    return Row(number, title, images, faults, None, None, None, None, 0.0, "failed: not judged")


def skipped(number: str, title: str, why: str) -> Row:
    """A scenario that this machine does not allow: in the table, so that nobody takes its absence for success."""
    return Row(number, title, 0, 0, None, None, None, None, 0.0, f"{SKIPPED}: {why}")


_HEAD: Final = (
    *("scenario", "", "images", "faults", "lost", "doubled"),
    *("recovery s", "all s", "most", "took s", "verdict"),
)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of text, columns aligned."""
    cells = [_HEAD, *(_cells(row) for row in sorted(rows, key=_order))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    return ["  ".join(map(_align, row, widths, range(len(_HEAD)))).rstrip() for row in cells]


def _cells(row: Row) -> tuple[str, ...]:
    figures = (row.images, row.faults, row.lost, row.doubled)
    times = (row.first_seconds, row.all_seconds, row.most_seconds, row.seconds)
    return (
        row.number,
        row.title,
        *("-" if figure is None else str(figure) for figure in figures),
        *("-" if seconds is None else f"{seconds:.1f}" for seconds in times),
        row.verdict,
    )


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in (0, 1, len(_HEAD) - 1) else cell.rjust(width)


def _order(row: Row) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, row.number)) or "0"
    return int(digits), row.number
