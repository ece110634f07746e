"""What /livez and /readyz say: facts gathered by the runtime, judged by pure functions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from classifleet.worker.health import Health
from classifleet.worker.lanes import SPARE_TIMES
from classifleet.worker.outages import Dependency

PULSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """The state of a worker's threads; durations in seconds. Of its decoders: how many it may have, and has lost."""

    device_alive: bool = True
    device_lost: str = ""
    loop_alive: bool = True
    leases_alive: bool = True
    forward_seconds: float = 0.0
    loop_still_seconds: float = 0.0
    consumer_still_seconds: float = 0.0
    chunks_still_seconds: float = 0.0
    decoders: int = 1
    decoders_lost: int = 0
    away: Mapping[Dependency, float] = field(default_factory=dict)


def problems(vitals: Vitals, *, stuck_seconds: float, chunk_seconds: float) -> list[str]:
    """Why only a restart helps; empty if the worker is well, or waits for something that is away."""
    found = [
        (bool(vitals.device_lost), f"the device is lost: {vitals.device_lost}"),
        (not (vitals.device_alive or vitals.device_lost), "the device thread has died"),
        (not vitals.loop_alive, "the event loop's thread has died"),
        (not vitals.leases_alive, "the thread that renews leases has died"),
        (
            vitals.forward_seconds > stuck_seconds,
            f"a forward pass has been running for {vitals.forward_seconds:.0f} s",
        ),
        (
            vitals.loop_still_seconds > stuck_seconds,
            f"the event loop has stood still for {vitals.loop_still_seconds:.0f} s",
        ),
        (
            vitals.consumer_still_seconds > stuck_seconds,
            f"the consumer has stood still for {vitals.consumer_still_seconds:.0f} s",
        ),
        (
            not vitals.away and vitals.chunks_still_seconds > chunk_seconds + stuck_seconds,
            f"chunks are at work and none has ended for {vitals.chunks_still_seconds:.0f} s",
        ),
        (
            vitals.decoders_lost > SPARE_TIMES * vitals.decoders,
            f"{vitals.decoders_lost} decode threads are stuck in their images",
        ),
    ]
    return [text for wrong, text in found if wrong]


def live(vitals: Vitals | None, *, stuck_seconds: float, chunk_seconds: float) -> Health:
    """The answer of /livez; no vitals while the worker starts."""
    if vitals is None:
        return Health(True, {"state": "starting"})
    found = problems(vitals, stuck_seconds=stuck_seconds, chunk_seconds=chunk_seconds)
    away = {name: round(seconds, 1) for name, seconds in vitals.away.items()}
    return Health(not found, {"state": "stuck" if found else "live", "problems": found, "away_seconds": away})


class Pulse:
    """Whether an event loop turns: it beats once a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._loop = loop
        self._thread = thread
        self._beat = time.monotonic()
        loop.call_soon_threadsafe(self._again)

    def alive(self) -> bool:
        """Whether the loop's thread runs."""
        return self._thread.is_alive()

    def still_seconds(self) -> float:
        """How long ago the loop last turned."""
        return max(0.0, time.monotonic() - self._beat - PULSE_SECONDS)

    def _again(self) -> None:
        self._beat = time.monotonic()
        self._loop.call_later(PULSE_SECONDS, self._again)
