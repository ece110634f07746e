"""That this process lives, and what it is, in the ledger. No promise rests on it.

`classifleet doctor` and `classifleet top` read it, and the exporter, for an alert on queues that no worker serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Final

import structlog

from classifleet.config import LedgerUnavailable
from classifleet.ledger import Ledger, SyncRunner, WorkerFigures, WorkerInfo

log = structlog.get_logger(__name__)
INTERVAL_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 1.0


class Roster:
    """Enlists this process every ten seconds, on a thread of its own, from `start` to `close`."""

    def __init__(self, ledger: Ledger, runner: SyncRunner) -> None:
        self._ledger = ledger
        self._runner = runner
        self._closed = False
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self,
        owner: str,
        *,
        pools: tuple[str, ...] = (),
        models: Callable[[], tuple[str, ...]] = tuple,
        loadable: Callable[[], tuple[str, ...]] = tuple,
        figures: Callable[[], WorkerFigures] = WorkerFigures,
    ) -> None:
        """Start the thread; a process without pools is an exporter. `figures` says what it has done."""
        info = WorkerInfo(owner, pools, (), version("classifleet"))

        def now() -> WorkerInfo:
            return replace(info, models=models(), figures=figures(), loadable=loadable())

        self._thread = threading.Thread(target=self._keep, args=(info, now), name="classifleet-roster", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Have the thread say at once what this process has now."""
        self._news.set()

    def close(self) -> None:
        """Have the thread strike this process off and end; not waited for, since a silent one is struck off anyway."""
        self._closed = True
        self._news.set()

    def ended(self) -> None:
        """Close, and wait a moment for the thread: the connection that it uses is closed next."""
        self.close()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _keep(self, info: WorkerInfo, now: Callable[[], WorkerInfo]) -> None:
        while not self._closed:
            self._tell(now())
            self._news.wait(INTERVAL_SECONDS)
            self._news.clear()
        self._tell(info, gone=True)

    def _tell(self, info: WorkerInfo, *, gone: bool = False) -> None:
        call = self._ledger.strike_off(info.owner) if gone else self._ledger.enlist(info)
        try:
            self._runner.run(call)
        except LedgerUnavailable as error:
            log.debug("not enlisted", error=str(error))
