"""When which duty is done: three threads, so that none waits for a slow store that another one talks to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection
from typing import Final

import structlog

from classifleet.config import ClassifleetError, LedgerUnavailable, Settings
from classifleet.config.celery_app import Publisher
from classifleet.config.errors import Unavailable
from classifleet.ledger import Ledger, SyncRunner
from classifleet.worker.outages import is_away
from classifleet.worker.reconciler import leases
from classifleet.worker.reconciler.context import Context, Duty, Interrupted, each
from classifleet.worker.reconciler.finaliser import Finaliser
from classifleet.worker.reconciler.messages import LostMessages
from classifleet.worker.reconciler.parked import ParkedChunks
from classifleet.worker.reconciler.upkeep import Upkeep
from classifleet.worker.sink import Sinks

log = structlog.get_logger(__name__)
INTERVAL_SECONDS: Final = 1.0
SLOW_INTERVAL_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0


class Reconciler:
    """Looks after the ledger, as far as no other process does. `close` ends it between two steps of its work."""

    def __init__(
        self,
        ledger: Ledger,
        runner: SyncRunner,
        publisher: Publisher,
        sinks: Sinks,
        settings: Settings,
        owner: str,
        *,
        is_worker: bool = True,
        left_to_others: Callable[[Collection[str], str], bool] = lambda *_: False,
    ) -> None:
        self.context = context = Context(ledger, runner, publisher, sinks, settings, owner, is_worker, left_to_others)
        self._duty = Duty(context, "reconciler")
        self._contact = leases.Contact(settings.lease_seconds)
        self._messages = LostMessages(context)
        self._finalisers = [Finaliser(context, with_sink=False)]
        if is_worker or settings.sink_allow:
            self._finalisers.append(Finaliser(context, with_sink=True))
        self._parked = ParkedChunks(context)
        self._upkeep = Upkeep(context)
        self._threads = [
            _Repeated("classifleet-reconciler", context.closing, INTERVAL_SECONDS, self.round),
            _Repeated("classifleet-finaliser", context.closing, INTERVAL_SECONDS, self.finalise),
            _Repeated("classifleet-upkeep", context.closing, SLOW_INTERVAL_SECONDS, self.look_after),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        """Whether all its threads are."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the threads; one that waits for a store for longer than so many seconds ends with the process."""
        self.context.closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)

    def round(self) -> bool:
        """Leases and messages, once; false if another process has the duty.

        Raises:
            Unavailable: Redis or the broker is away.
        """
        try:
            settled = self._contact.settled(self.context.now_ms())
            if not self._duty.hold():
                return False
            queues = self.context.queues()
            if settled:
                each(queues, lambda queue: leases.expire(self.context, queue))
            each(queues, self._look_for_lost_messages)
        except LedgerUnavailable as error:
            if is_away(error):
                self._contact.lost()
            raise
        return True

    def _look_for_lost_messages(self, queue: str) -> None:
        self._duty.keep()
        self._messages.round(queue)

    def finalise(self) -> None:
        """Ends of jobs, once; raises as `round` does."""
        each(self._finalisers, Finaliser.round)

    def look_after(self) -> None:
        """Parked chunks and upkeep, once; raises as `round` does, and StorageError."""
        try:
            self._parked.round()
        finally:
            if self._duty.hold():
                self._upkeep.round()


class _Repeated(threading.Thread):
    """Does something again and again; says of a failure that lasts only once that it is there, and that it is gone."""

    def __init__(self, name: str, closing: threading.Event, seconds: float, work: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._closing = closing
        self._seconds = seconds
        self._work = work
        self._failed = False

    def run(self) -> None:
        """Until the event is set."""
        while not self._closing.wait(self._seconds * random.uniform(0.8, 1.2)):
            try:
                self._work()
            except Interrupted:
                continue
            except Unavailable as error:
                self._say(log.warning, str(error))
            except ClassifleetError as error:
                self._say(log.error, str(error))
            except Exception:  # a defect must not end the duty for ever
                log.exception("reconciler", duty=self.name)
            else:
                if self._failed:
                    log.warning("reconciler works again", duty=self.name)
                self._failed = False

    def _say(self, write: Callable[..., object], error: str) -> None:
        if not self._failed:
            write("reconciler waits", duty=self.name, error=error)
        self._failed = True
