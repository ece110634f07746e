"""What waits in each queue, for Prometheus and for autoscalers; from the ledger, so it is right with any broker.

The queues of all pools are shown from the start, with zeros: to an autoscaler a value that is missing is a failure.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, get_args

import structlog

from classifleet.config import Settings, queue_name
from classifleet.config.errors import Unavailable
from classifleet.config.payload import Lane
from classifleet.ledger import Call, Ledger, QueueDepth, SyncRunner, WorkerInfo, read_depth
from classifleet.worker.health import Health
from classifleet.worker.instruments import (
    DEAD_LETTERS_KEPT,
    DEPENDENCY_UP,
    LEDGER_MEMORY_MAX,
    LEDGER_MEMORY_RESERVED,
    LEDGER_MEMORY_USED,
    OUTSTANDING_CHUNKS,
    OUTSTANDING_IMAGES,
    QUEUE_DRAIN,
    QUEUE_OBJECTIVE,
    QUEUE_OLDEST,
    QUEUE_RATE,
    WORKERS,
)

log = structlog.get_logger(__name__)
INTERVAL_SECONDS: Final = 1.0
STALE_SECONDS: Final = 15.0
STATES: Final = ("queued", "leased", "parked")
LANES: Final[tuple[Lane, ...]] = get_args(Lane)
DEFAULT_POOL: Final = "default"
OBJECTIVE_SECONDS: Final[Mapping[str, int]] = MappingProxyType({"interactive": 60, "bulk": 3600})


@dataclass(frozen=True, slots=True)
class Memory:
    """What the ledger's Redis has room for, in bytes; see `instruments` for what each is."""

    used: int
    reserved: int
    most: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All queues at one time (of this process's monotonic clock)."""

    queues: dict[str, QueueDepth]
    dead_letters: int
    memory: Memory
    workers: dict[str, int]
    at: float


def queues_of(settings: Settings) -> frozenset[str]:
    """Both queues of every pool that the settings name, of those that this process would serve, and of `default`."""
    pools = {DEFAULT_POOL, *settings.pools.values(), *settings.queues}
    return frozenset(queue_name(pool, lane) for pool in pools for lane in LANES)


def workers_of(queues: Collection[str], workers: Collection[WorkerInfo]) -> dict[str, int]:
    """How many workers serve each pool, of those that have queues; 0 where there is none."""
    pools = {queue.removeprefix("classify.").rpartition(".")[0] for queue in queues}
    return {pool: sum(pool in worker.pools for worker in workers) for pool in sorted(pools)}


def objective_seconds(given: Mapping[str, int], queue: str) -> int:
    """How long an image of a queue may wait: what is given for the queue, else for its lane, else the default."""
    lane = queue.rpartition(".")[2]
    return given.get(queue, given.get(lane, OBJECTIVE_SECONDS.get(lane, OBJECTIVE_SECONDS["bulk"])))


def outstanding_images(depth: QueueDepth) -> int:
    """What an autoscaler acts on: all that present workers could do, and not what is parked for a newer version."""
    return depth.queued_images + depth.leased_images


def drain_seconds(depth: QueueDepth) -> float:
    """How long the queue's images take at the rate of the last minute; infinite if nothing is done."""
    waiting = outstanding_images(depth)
    if not waiting:
        return 0.0
    return waiting / depth.done_rate if depth.done_rate else math.inf


def as_json(depth: QueueDepth) -> dict[str, Any]:
    """A queue for `/queues.json`; an estimate that is infinite is null."""
    seconds = drain_seconds(depth)
    return {
        "outstanding_images": outstanding_images(depth),
        **{f"{state}_images": getattr(depth, f"{state}_images") for state in STATES},
        **{f"{state}_chunks": getattr(depth, f"{state}_chunks") for state in STATES},
        "accepted_per_second": round(depth.accepted_rate, 3),
        "done_per_second": round(depth.done_rate, 3),
        "oldest_seconds": round(depth.oldest_seconds, 3),
        "drain_seconds": None if math.isinf(seconds) else round(seconds, 1),
    }


class Overview:
    """Reads the ledger once a second, in `look`, which its thread calls. What is stale is not shown.

    Args:
        ledger: The ledger's calls.
        runner: Runs them.
        closing: Ends the thread.
        queues: Shown even if nothing was ever submitted to them.
        objectives: As in the settings, shown beside the ages.
    """

    def __init__(
        self,
        ledger: Ledger,
        runner: SyncRunner,
        closing: threading.Event,
        queues: Collection[str] = (),
        objectives: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._ledger = ledger
        self._runner = runner
        self._queues = frozenset(queues)
        self._objectives = objectives
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
        depths = {name: read_depth(run(ledger.depth(name))) for name in sorted(self._queues.union(names))}
        dead, workers, memory, reserved = run([ledger.dead_letter_count(now_ms), ledger.workers(), *_memory(ledger)])
        self._last = Snapshot(
            depths,
            dead,
            Memory(memory["used_memory"], reserved, memory["maxmemory"]),
            workers_of(depths, workers),
            time.monotonic(),
        )
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
            fresh = self.fresh() is not None
            DEPENDENCY_UP.labels("ledger").set(fresh)
            if not fresh:
                _hide()

    def _show(self, snapshot: Snapshot) -> None:
        DEAD_LETTERS_KEPT.set(snapshot.dead_letters)
        for pool, workers in snapshot.workers.items():
            WORKERS.labels(pool).set(workers)
        LEDGER_MEMORY_USED.set(snapshot.memory.used)
        LEDGER_MEMORY_RESERVED.set(snapshot.memory.reserved)
        LEDGER_MEMORY_MAX.set(snapshot.memory.most)
        for name, depth in snapshot.queues.items():
            for state in STATES:
                OUTSTANDING_IMAGES.labels(name, state).set(getattr(depth, f"{state}_images"))
                OUTSTANDING_CHUNKS.labels(name, state).set(getattr(depth, f"{state}_chunks"))
            QUEUE_OLDEST.labels(name).set(depth.oldest_seconds)
            QUEUE_RATE.labels(name, "accepted").set(depth.accepted_rate)
            QUEUE_RATE.labels(name, "done").set(depth.done_rate)
            QUEUE_DRAIN.labels(name).set(drain_seconds(depth))
            QUEUE_OBJECTIVE.labels(name).set(objective_seconds(self._objectives, name))


def _memory(ledger: Ledger) -> tuple[Call[dict[str, int]], Call[int]]:
    return (
        Call("INFO", ("memory",), (), lambda reply: reply),
        Call("GET", (ledger.keys.shared("room"),), (), lambda reply: int(reply or 0)),
    )


def _hide() -> None:
    for gauge in (OUTSTANDING_IMAGES, OUTSTANDING_CHUNKS, QUEUE_OLDEST, QUEUE_RATE, QUEUE_DRAIN, WORKERS):
        gauge.clear()
