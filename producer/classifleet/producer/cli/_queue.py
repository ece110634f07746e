"""`classifleet queue stats`: how much waits, how fast it goes, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from classifleet.ledger import QueueDepth
from classifleet.producer import _dead_letters
from classifleet.producer.cli._connect import running_fleet
from classifleet.producer.cli._options import BrokerUrl
from classifleet.producer.cli._terminal import plain, print_json
from classifleet.producer.cli._times import duration
from classifleet.producer.fleet import Fleet

app = typer.Typer(help="See what waits in the queues.", no_args_is_help=True)
Depths = Mapping[str, QueueDepth]
WAITED_SECONDS: Final = 10.0  # a queue with live workers does not leave its oldest chunk alone for so long


@app.callback()
def _group() -> None:
    """Keep `stats` a sub-command."""


@app.command()
def stats(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks, with --watch.")] = 2.0,
    broker_url: BrokerUrl = None,
) -> None:
    """Show each queue: images queued, at work and parked, the oldest, the last minute's rates, the time to drain.

    **Examples**

    ```
    classifleet queue stats
    classifleet queue stats --watch
    classifleet queue stats --json
    ```
    """
    with running_fleet(broker_url) as fleet, _shower(as_json=as_json, in_place=watch) as show:
        show(fleet)
        while watch:  # until Ctrl-C
            time.sleep(interval)
            show(fleet)


@contextmanager
def _shower(*, as_json: bool, in_place: bool) -> Iterator[Callable[[Fleet], None]]:
    """What shows the queues once; again and again in the same place on a terminal."""
    console = Console(highlight=False)
    if as_json:
        yield _print_json
    elif in_place and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda fleet: live.update(_picture(fleet), refresh=True)
    else:
        yield lambda fleet: console.print(_picture(fleet))


def _print_json(fleet: Fleet) -> None:
    depths, dead_letters = _look(fleet)
    queues = {name: as_numbers(depth) for name, depth in depths.items()}
    print_json({"at": datetime.now(UTC).isoformat(), "queues": queues, "dead_letters": dead_letters})


def drain_seconds(depth: QueueDepth) -> float | None:
    """How long what is there takes at the last minute's rate; None when there is work and nothing is being done."""
    work = depth.queued_images + depth.leased_images
    if not work:
        return 0.0
    return work / depth.done_rate if depth.done_rate else None


def as_numbers(depth: QueueDepth) -> dict[str, Any]:
    """A queue as JSON: images, seconds, and images per second; `drain_seconds` is null when it does not drain."""
    return {**asdict(depth), "drain_seconds": drain_seconds(depth)}


def hints(depths: Depths, dead_letters: int) -> list[str]:
    """What a person should know or do."""
    found = []
    for name, depth in depths.items():
        if depth.parked_images:
            found.append(
                f"{name}: no worker understands {depth.parked_images} parked images, which a newer classifleet "
                "submitted: run workers of its version, and they go on by themselves"
            )
        if is_unserved(depth):
            found.append(f"{name}: nobody takes anything: is a worker running? `classifleet worker` starts one")
    if dead_letters:
        found.append(f"{dead_letters} dead letters: `classifleet dead-letters list` says why")
    return found


def is_unserved(depth: QueueDepth) -> bool:
    """Whether work has been waiting for a while and nothing is at work or was done within the last minute."""
    idle = not depth.leased_images and not depth.done_rate
    return idle and depth.queued_images > 0 and depth.oldest_seconds >= WAITED_SECONDS


def _look(fleet: Fleet) -> tuple[Depths, int]:
    return fleet.queues(), fleet._engine.drive(_dead_letters.count(fleet._flows.ledger))


def _picture(fleet: Fleet) -> Group:
    depths, dead_letters = _look(fleet)
    notes = [Text.assemble(("→ ", "bold yellow"), plain(hint)) for hint in hints(depths, dead_letters)]
    return Group(_table(depths) if depths else Text("there are no queues: nothing was ever submitted"), *notes)


def _table(depths: Depths) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("queue (images)", overflow="fold")
    for name in ("queued", "running", "parked", "oldest", "in/s", "out/s", "drained in"):
        table.add_column(name, justify="right", overflow="fold")
    for name, depth in depths.items():
        drain = drain_seconds(depth)
        table.add_row(
            Text(name),
            *map(str, (depth.queued_images, depth.leased_images, depth.parked_images)),
            duration(depth.oldest_seconds) if depth.queued_chunks else "",
            f"{depth.accepted_rate:.1f}",
            f"{depth.done_rate:.1f}",
            Text("not draining", "red") if drain is None else duration(drain) if drain else "",
        )
    return table
