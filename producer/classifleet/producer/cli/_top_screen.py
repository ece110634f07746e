"""What `classifleet top` shows, as a function of what was seen: no clock, no terminal, no Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from classifleet.ledger import QueueDepth, WorkerInfo
from classifleet.producer.cli._queue import as_numbers, drain_seconds, hints
from classifleet.producer.cli._terminal import plain
from classifleet.producer.cli._times import duration

SILENT_SECONDS: Final = 20.0  # two words of a worker are missing
WIDE_COLUMNS: Final = 110
NAME_AT_LEAST: Final = 12
WORKERS_AT_LEAST: Final = 3
CODES_SHOWN: Final = 6
WHOLE_FROM: Final = 1000  # a decimal says nothing above it

ORDERS: Final[Mapping[str, Callable[[WorkerInfo], Any]]] = {
    "name": lambda worker: worker.owner,
    "images/s": lambda worker: (-worker.figures.images_per_second, worker.owner),
    "fill": lambda worker: (worker.figures.batch_fill, worker.owner),
    "failed": lambda worker: (-sum(worker.figures.failed.values()), worker.owner),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fleet at one time. `workers` are all processes that live, exporters with them."""

    at: datetime
    namespace: str
    queues: Mapping[str, QueueDepth]
    dead_letters: int
    workers: Sequence[WorkerInfo]


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The same for programs; `drain_seconds` is null when a queue does not drain."""
    return {
        "at": snapshot.at.astimezone(UTC).isoformat(),
        "namespace": snapshot.namespace,
        "queues": {name: as_numbers(depth) for name, depth in snapshot.queues.items()},
        "dead_letters": snapshot.dead_letters,
        "workers": [asdict(worker) for worker in snapshot.workers],
        "failed": dict(failures(snapshot.workers)),
    }


def failures(workers: Sequence[WorkerInfo]) -> Counter[str]:
    """Images without a full answer by error code, since each worker's start."""
    found: Counter[str] = Counter()
    for worker in workers:
        found.update(worker.figures.failed)
    return found


def screen(
    snapshot: Snapshot | None, *, order: str = "name", trouble: str = "", width: int = 80, height: int | None = None
) -> Group:
    """All of it.

    Args:
        snapshot: The last that was seen; None before the first.
        order: One of `ORDERS`, of the workers.
        trouble: Why there is no newer one.
        width: Columns of the terminal.
        height: Its lines; workers that have no room are only counted.
    """
    parts: list[RenderableType] = []
    if trouble:
        parts.append(Text.assemble(("! ", "bold red"), plain(trouble)))
    if snapshot is None:
        return Group(*(parts or [Text("looking…", "dim")]))
    notes = [
        Text.assemble(("→ ", "bold yellow"), plain(hint)) for hint in hints(snapshot.queues, snapshot.dead_letters)
    ]
    parts = [_summary(snapshot), *parts, Text(""), _queues(snapshot.queues, width), Text("")]
    errors = _errors(failures(snapshot.workers))
    taken = 8 + len(snapshot.queues) + len(errors) + sum(-(-len(note) // width) for note in notes)
    rows = None if height is None else max(WORKERS_AT_LEAST, height - taken)
    return Group(*parts, *_workers(snapshot.workers, order, width, rows), *errors, *notes)


def _summary(snapshot: Snapshot) -> Text:
    depths = snapshot.queues.values()
    workers = sum(bool(worker.pools) for worker in snapshot.workers)
    exporters = len(snapshot.workers) - workers
    outstanding = sum(depth.queued_images + depth.leased_images for depth in depths)
    done = sum(depth.done_rate for depth in depths)
    return Text.assemble(
        (f"{snapshot.at.astimezone(UTC):%H:%M:%S} UTC", "dim"),
        f"  {plain(snapshot.namespace)}  ",
        (_count(outstanding, "image"), "bold"),
        f" at {_rate(done)}/s  ",
        (_count(workers, "worker"), "bold" if workers else "bold red"),
        f"  {_count(exporters, 'exporter')}",
    )


def _queues(depths: Mapping[str, QueueDepth], width: int) -> RenderableType:
    if not depths:
        return Text("there are no queues: nothing was ever submitted")
    columns = {"queued": 10, "running": 8, "oldest": 9, "in/s": 7, "out/s": 7, "drained in": 12}
    table = _table("queue", width, columns)
    for name, depth in depths.items():
        drain = drain_seconds(depth)
        table.add_row(
            _cut(name.removeprefix("classify."), _room(width, columns)),
            Text(f"{depth.queued_images:,}"),
            Text(f"{depth.leased_images:,}"),
            Text(duration(depth.oldest_seconds) if depth.queued_chunks else ""),
            Text(_rate(depth.accepted_rate)),
            Text(_rate(depth.done_rate)),
            Text("not draining", "red") if drain is None else Text(duration(drain) if drain else ""),
        )
    return table


def _workers(known: Sequence[WorkerInfo], order: str, width: int, rows: int | None) -> list[RenderableType]:
    workers = sorted((worker for worker in known if worker.pools), key=ORDERS[order])
    if not workers:
        return [Text("no worker is running: `classifleet worker` starts one", "red")]
    shown = workers if rows is None or len(workers) <= rows else workers[: rows - 1]
    wide = width >= WIDE_COLUMNS
    columns = {
        **({"pools": 16, "models": 24, "images": 12} if wide else {"pools": 11}),
        **{"images/s": 9, "batch": 6, "fill": 6, "failed": 8, "heard": 6},
    }
    table = _table("worker", width, columns, order)
    for worker in shown:
        cells = {name: cell for name, cell in _cells(worker, columns).items() if name in columns}
        table.add_row(_cut(_name(worker.owner), _room(width, columns)), *(cells[name] for name in columns))
    more = len(workers) - len(shown)
    return [table, *([Text(f"and {more:,} more", "dim")] if more else [])]


def _cells(worker: WorkerInfo, columns: Mapping[str, int]) -> dict[str, Text]:
    figures, failed = worker.figures, sum(worker.figures.failed.values())
    heard = "now" if worker.silent_seconds < 1 else duration(worker.silent_seconds)
    return {
        "pools": _cut(",".join(worker.pools), columns["pools"]),
        "models": _cut(",".join(worker.models), columns.get("models", 0)),
        "images": Text(f"{figures.images:,}"),
        "images/s": Text(_rate(figures.images_per_second)),
        "batch": Text(f"{figures.batch_images:.1f}" if figures.batch_images else ""),
        "fill": Text(f"{figures.batch_fill:.0%}" if figures.batch_images else ""),
        "failed": Text(f"{failed:,}", "red" if failed else ""),
        "heard": Text(heard, "yellow" if worker.silent_seconds > SILENT_SECONDS else ""),
    }


def _table(first: str, width: int, columns: Mapping[str, int], order: str = "") -> Table:
    """A table of columns of fixed widths, of which the first has what is left."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first + ("*" if order == "name" else ""), width=_room(width, columns), no_wrap=True)
    for name, size in columns.items():
        justify: JustifyMethod = "left" if name in ("pools", "models") else "right"
        table.add_column(name + ("*" if name == order else ""), justify=justify, width=size, no_wrap=True)
    return table


def _room(width: int, columns: Mapping[str, int]) -> int:
    return max(NAME_AT_LEAST, width - sum(columns.values()) - len(columns))


def _cut(text: str, room: int) -> Text:
    """The end of a text that is too long: names of pods differ there."""
    shown = plain(text)
    return Text(shown if len(shown) <= room else "…" + shown[len(shown) - room + 1 :])


def _errors(failed: Counter[str]) -> list[Text]:
    if not failed:
        return []
    most = failed.most_common(CODES_SHOWN)
    rest = failed.total() - sum(count for _, count in most)
    codes = [f"{code} {count:,}" for code, count in most] + ([f"others {rest:,}"] if rest else [])
    return [Text(""), Text.assemble(("failed  ", "bold"), plain("  ".join(codes)))]


def _name(owner: str) -> str:
    """Host and process; what makes it unique for ever is left out."""
    return owner.rpartition(":")[0] or owner


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= WHOLE_FROM else f"{per_second:.1f}"
