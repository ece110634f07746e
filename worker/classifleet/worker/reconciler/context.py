"""What all duties share, and who has which duty."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from classifleet.config import ImageError, LedgerUnavailable, Settings, message
from classifleet.config.celery_app import Publisher
from classifleet.config.claims import Claims
from classifleet.ledger import Ledger, SyncRunner
from classifleet.worker.outages import is_away
from classifleet.worker.sink import GAP_SECONDS, Sinks

DUTY_LEASE_SECONDS: Final = 15.0
DUTY_LEASE_LEAST_SECONDS: Final = 3.0
PUBLISH_PAGE: Final = 500
Chunk = tuple[str, str]
T = TypeVar("T")


class Interrupted(Exception):
    """The process is ending, or another one has the duty now: what was begun is gone on with later."""


def each(things: Iterable[T], work: Callable[[T], object]) -> None:
    """Work on each of them, also when the keys of one are garbage.

    Raises:
        LedgerUnavailable: At once if Redis is away; else of one that failed, when the others are done.
    """
    failed: LedgerUnavailable | None = None
    for thing in things:
        try:
            work(thing)
        except LedgerUnavailable as error:
            if is_away(error):
                raise
            failed = error
    if failed is not None:
        raise failed


@dataclass(frozen=True, slots=True)
class Context:
    """What all duties need. `is_worker` is false for an exporter, which has neither models nor, perhaps, a sink.

    `left_to_others` says of models and a queue whether another worker must do what this one cannot.
    """

    ledger: Ledger
    runner: SyncRunner
    publisher: Publisher
    sinks: Sinks
    settings: Settings
    owner: str
    is_worker: bool = True
    left_to_others: Callable[[Collection[str], str], bool] = lambda *_: False
    closing: threading.Event = field(default_factory=threading.Event)
    claims: Claims = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", Claims(self.settings))

    def now_ms(self) -> int:
        """The ledger's clock."""
        return self.runner.run(self.ledger.now())

    def queues(self) -> list[str]:
        """Names of all queues."""
        return self.runner.run(self.ledger.queues())

    def publish(self, queue: str, chunks: Sequence[Chunk]) -> None:
        """Publish wake-up calls.

        Raises:
            BrokerUnavailable: Those that were not published are found missing later.
        """
        for start in range(0, len(chunks), PUBLISH_PAGE):
            page = chunks[start : start + PUBLISH_PAGE]
            self.publisher.publish([(queue, message(job, chunk)) for job, chunk in page])

    def writes_to(self, sink: str) -> bool:
        """Whether this process may write there."""
        try:
            self.sinks.require_allowed(sink)
        except ImageError:
            return False
        return True

    def gives_up_sink(self, job: str, chunks: Iterable[str] = ("",)) -> bool:
        """Note that a sink took no parts of these chunks (or not the manifest): has it been so for long enough?"""
        gap_ms = int(max(GAP_SECONDS, 4 * self.settings.keep_results_seconds) * 1000)
        failed = self.runner.run_all([self.ledger.sink_failed(job, chunk, gap_ms=gap_ms) for chunk in chunks])
        return bool(min(failed) >= self.settings.sink_patience_seconds * 1000)

    def answers(self, job: Mapping[str, str]) -> bool:
        """Whether this process can write the records of a job: an exporter need not have the sink's credentials."""
        return self.is_worker or "sink" not in job or self.writes_to(job["sink"])


class Duty:
    """A duty that one process has at a time."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        # No longer than a lease: until the next process takes the duty over, nobody's leases run out.
        seconds = max(DUTY_LEASE_LEAST_SECONDS, min(DUTY_LEASE_SECONDS, context.settings.lease_seconds))
        self._call = context.ledger.hold(name, context.owner, lease_ms=int(seconds * 1000))

    def hold(self) -> bool:
        """Take the duty, or keep it; false if another process has it."""
        return self._context.runner.run(self._call)

    def keep(self) -> None:
        """Keep the duty through long work.

        Raises:
            Interrupted: The process is ending, or the duty was lost.
        """
        if self._context.closing.is_set() or not self.hold():
            raise Interrupted
