"""`classifleet top`: the fleet on one screen, for whoever has only a shell.

All of it comes from the ledger: what the queues hold, and what each worker tells of itself every ten seconds.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from classifleet.config import Unavailable
from classifleet.ledger import Ledger, WorkerInfo
from classifleet.producer._effects import Ask, Flow
from classifleet.producer.cli._connect import running_fleet
from classifleet.producer.cli._options import BrokerUrl
from classifleet.producer.cli._terminal import print_json
from classifleet.producer.cli._times import duration
from classifleet.producer.cli._top_screen import ORDERS, Snapshot, as_json, screen
from classifleet.producer.fleet import Fleet

REDRAW_SECONDS: Final = 0.5
KEYS: Final = "q quits  s sorts the workers"


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    broker_url: BrokerUrl = None,
) -> None:
    """Watch the fleet: queues, rates, time to drain, workers, how full their batches are, errors by code.

    `q` quits, `s` sorts the workers by another column. Where there is no terminal it prints one look and ends. What a
    worker has done is as of its last word, at most some ten seconds ago; `failed` is since its start.

    **Examples**

    ```
    classifleet top
    classifleet top --once
    classifleet top --json | jq .workers
    ```
    """
    console = Console(highlight=False)
    with running_fleet(broker_url) as fleet:
        if json:
            print_json(as_json(look(fleet)))
        elif once or not (console.is_terminal and sys.stdin.isatty()):
            console.print(screen(look(fleet), width=console.width))
        else:
            _watch(fleet, console, interval)


def look(fleet: Fleet) -> Snapshot:
    """The fleet now.

    Raises:
        LedgerUnavailable: Redis is away.
    """
    depths = fleet.queues()
    dead_letters, workers = fleet._engine.drive(_beside_queues(fleet._flows.ledger))
    return Snapshot(datetime.now(UTC), fleet.settings.namespace, depths, dead_letters, workers)


def _beside_queues(ledger: Ledger) -> Flow[tuple[int, list[WorkerInfo]]]:
    [now_ms] = yield Ask([ledger.now()])
    dead_letters, workers = yield Ask([ledger.dead_letter_count(now_ms), ledger.workers()])
    return dead_letters, workers


class Watcher:
    """Looks again and again on a thread of its own, so that keys are answered while Redis is not."""

    def __init__(self, see: Callable[[], Snapshot], interval: float) -> None:
        self._see = see
        self._interval = interval
        self._closing = threading.Event()
        self._seen: Snapshot | None = None
        self._trouble: tuple[str, float] | None = None
        self._thread = threading.Thread(target=self._look, name="classifleet-top", daemon=True)
        self._thread.start()

    def latest(self) -> tuple[Snapshot | None, str]:
        """What was seen last, and why nothing newer, or an empty text."""
        trouble = self._trouble
        if trouble is None:
            return self._seen, ""
        error, since = trouble
        return self._seen, f"no answer for {duration(time.monotonic() - since)}: {error}"

    def close(self) -> None:
        """Have the thread end after its present look; not waited for."""
        self._closing.set()

    def _look(self) -> None:
        while not self._closing.is_set():
            try:
                self._seen = self._see()
                self._trouble = None
            except Unavailable as error:
                since = time.monotonic() if self._trouble is None else self._trouble[1]
                self._trouble = (" ".join(str(error).split()), since)
            self._closing.wait(self._interval)


def _watch(fleet: Fleet, console: Console, interval: float) -> None:
    orders = cycle(ORDERS)
    order = next(orders)
    watcher = Watcher(lambda: look(fleet), interval)
    try:
        with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                seen, trouble = watcher.latest()
                picture = screen(seen, order=order, trouble=trouble, width=console.width, height=console.height - 1)
                picture.renderables.append(f"[dim]{KEYS}[/dim]")
                live.update(picture, refresh=True)
                match key(REDRAW_SECONDS):
                    case "q" | "Q":
                        return
                    case "s" | "S":
                        order = next(orders)
    finally:
        watcher.close()


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits so many seconds for a key; Ctrl-C still interrupts. The terminal is left as it was."""
    import termios  # not on Windows, where all other commands work
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        if not ready:
            return ""
        typed = os.read(terminal, 64).decode(errors="replace")
        return typed[:1] or "q"  # the terminal is gone

    tty.setcbreak(terminal)
    try:
        yield key
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
