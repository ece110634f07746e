"""What waits in each queue, for Prometheus and for autoscalers; from the ledger, so it is right with any broker."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from classifleet.config.errors import Unavailable
from classifleet.ledger import Ledger, QueueDepth, SyncRunner, read_depth
from classifleet.worker.health import Health
from classifleet.worker.instruments import (
    DEAD_LETTERS_KEPT,
    OUTSTANDING_CHUNKS,
    OUTSTANDING_IMAGES,
    QUEUE_DRAIN,
    QUEUE_OLDEST,
    QUEUE_RATE,
)

log = structlog.get_logger(__name__)
INTERVAL_SECONDS: Final = 1.0
STALE_SECONDS: Final = 15.0
STATES: Final = ("queued", "leased", "parked")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All queues at one time (of this process's monotonic clock)."""

    queues: dict[str, QueueDepth]
    dead_letters: int
    at: float


def drain_seconds(depth: QueueDepth) -> float:
    """How long the queue's images take at the rate of the last minute; infinite if nothing is done."""
    waiting = depth.queued_images + depth.leased_images
    if not waiting:
        return 0.0
    return waiting / depth.done_rate if depth.done_rate else math.inf


def as_json(depth: QueueDepth) -> dict[str, Any]:
    """A queue for `/queues.json`; an estimate that is infinite is null."""
    seconds = drain_seconds(depth)
    return {
        **{f"{state}_images": getattr(depth, f"{state}_images") for state in STATES},
        **{f"{state}_chunks": getattr(depth, f"{state}_chunks") for state in STATES},
        "accepted_per_second": round(depth.accepted_rate, 3),
        "done_per_second": round(depth.done_rate, 3),
        "oldest_seconds": round(depth.oldest_seconds, 3),
        "drain_seconds": None if math.isinf(seconds) else round(seconds, 1),
    }


class Overview:
    """Reads the ledger once a second, in `look`, which its thread calls. What is stale is not shown."""

    def __init__(self, ledger: Ledger, runner: SyncRunner, closing: threading.Event) -> None:
        self._ledger = ledger
        self._runner = runner
        self._closing = closing
        self._last: Snapshot | None = None
        self._thread = threading.Thread(target=self._watch, name="classifleet-overview", daemon=True)

    def start(self) -> None:
        """Start the thread, which ends when `closing` is set."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether its thread is."""
        return self._thread.is_alive()

    def look(self) -> None:
        """Read all queues.

        Raises:
            LedgerUnavailable: Redis is away.
        """
        run, ledger = self._runner.run_all, self._ledger
        names, now_ms = run([ledger.queues(), ledger.now()])
        depths = {name: read_depth(run(ledger.depth(name))) for name in names}
        [dead] = run([ledger.dead_letter_count(now_ms)])
        self._last = Snapshot(depths, dead, time.monotonic())
        self._show(self._last)

    def fresh(self) -> Snapshot | None:
        """The last look, unless it was too long ago."""
        last = self._last
        return last if last and time.monotonic() - last.at < STALE_SECONDS else None

    def queues(self) -> Health:
        """The answer of `/queues.json`: never old figures, by which an autoscaler would act."""
        last = self.fresh()
        if last is None:
            return Health(False, {"error": "the ledger's Redis does not answer"})
        return Health(
            True,
            {
                "v": 1,
                "age_seconds": round(time.monotonic() - last.at, 3),
                "dead_letters": last.dead_letters,
                "queues": {name: as_json(depth) for name, depth in last.queues.items()},
            },
        )

    def _watch(self) -> None:
        failed = False
        while not self._closing.wait(INTERVAL_SECONDS):
            try:
                self.look()
                failed = False
            except Unavailable as error:
                if not failed:
                    log.warning("queues not read", error=str(error))
                failed = True
            if self.fresh() is None:
                _hide()

    def _show(self, snapshot: Snapshot) -> None:
        DEAD_LETTERS_KEPT.set(snapshot.dead_letters)
        for name, depth in snapshot.queues.items():
            for state in STATES:
                OUTSTANDING_IMAGES.labels(name, state).set(getattr(depth, f"{state}_images"))
                OUTSTANDING_CHUNKS.labels(name, state).set(getattr(depth, f"{state}_chunks"))
            QUEUE_OLDEST.labels(name).set(depth.oldest_seconds)
            QUEUE_RATE.labels(name, "accepted").set(depth.accepted_rate)
            QUEUE_RATE.labels(name, "done").set(depth.done_rate)
            QUEUE_DRAIN.labels(name).set(drain_seconds(depth))


def _hide() -> None:
    for gauge in (OUTSTANDING_IMAGES, OUTSTANDING_CHUNKS, QUEUE_OLDEST, QUEUE_RATE, QUEUE_DRAIN):
        gauge.clear()
