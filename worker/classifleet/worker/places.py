"""How many chunks a worker takes: as many as it has places at work, and one more for each that waits for strangers.

Celery's pool has a thread for each chunk of both kinds, and would take as many. What it takes is bounded here: with
our transport by its slots, which leave out the chunks that wait; with any other by the prefetch count, which grows
and shrinks with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from classifleet.config import Settings
from classifleet.config.urls import is_redis
from classifleet.worker import transport
from classifleet.worker.waiting import WaitingRoom

if TYPE_CHECKING:
    from celery import Celery


def install(app: Celery, settings: Settings, room: WaitingRoom) -> None:
    """Bound what an application's workers take."""
    from celery import bootsteps

    class Places(bootsteps.StartStopStep):  # type: ignore[misc]
        """Between Celery's pool, which sets `max_concurrency`, and its consumer, which makes it the prefetch count."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, parent: Any, **_: Any) -> None:
            parent.max_concurrency = settings.chunks_in_flight

        def start(self, parent: Any) -> None:
            """Follow the chunks that wait."""
            atomic = settings.transport == "atomic" and is_redis(app.conf.broker_url)
            room.changed = transport.look if atomic else lambda: _follow(parent, settings.chunks_in_flight, room)

        def stop(self, parent: Any) -> None:
            """There is nothing to stop."""

        def terminate(self, parent: Any) -> None:
            """There is nothing to end."""

    app.steps["worker"].add(Places)


def _follow(worker: Any, places: int, room: WaitingRoom) -> None:
    worker.max_concurrency = places + room.count("interactive") + room.count("bulk")  # for `worker_disable_prefetch`
    if worker.consumer.qos is not None:  # None while a connection is made
        worker.consumer.qos.value = worker.max_concurrency  # its loop tells the broker
