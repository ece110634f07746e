"""How messages reach a worker from a Redis broker: nothing is lost, whoever dies when.

It reads the lists that kombu's own transport writes and reads, so either end may be exchanged for a stock one. It
keeps its own account of what is reserved (`reserved` and `deadlines` in place of `unacked` and `unacked_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from classifleet.config import Lane
from classifleet.config.brokers import is_amqp
from classifleet.config.settings import Settings
from classifleet.config.urls import is_redis

if TYPE_CHECKING:
    from celery import Celery


def install(app: Celery, settings: Settings, waiting: Callable[[Lane], int] = lambda _: 0) -> None:
    """Have an application's workers use this transport, if the broker is a Redis and the settings do not forbid.

    Args:
        app: The application.
        settings: Of the worker.
        waiting: How many chunks of a lane hold a message and no slot.
    """
    if is_amqp(app.conf.broker_url):
        app.conf.worker_consumer = "classifleet.worker.amqp:Consumer"
    if settings.transport == "atomic" and is_redis(app.conf.broker_url):
        from classifleet.worker.transport import channel

        channel.Channel.waiting = staticmethod(waiting)
        app.amqp.Connection = channel.AtomicConnection


def look() -> None:
    """Slots may be free that no message has freed; from any thread."""
    from classifleet.worker.transport.channel import open_channels

    for channel in open_channels():
        channel.reserver.look()


def stop_reserving() -> None:
    """Take no message from now on, in this process. Only sets flags: a signal handler may call it.

    What Redis had on the way at that moment is handed back unseen.
    """
    from classifleet.worker.transport.channel import open_channels

    for channel in open_channels():
        channel.reserver.stop()


def hand_back(tags: Iterable[str] | None = None) -> int:
    """Put messages back on their queues, by delivery tag, or all that are held; one call of Redis a channel.

    Any thread may call it. A later acknowledgement of such a message does nothing. Returns how many were held.

    Raises:
        redis.RedisError: Redis is away; the messages come back by their deadlines.
    """
    from classifleet.worker.transport.channel import open_channels

    wanted = None if tags is None else list(tags)
    return sum(
        channel.reserver.hand_back(channel.reserver.held if wanted is None else wanted) for channel in open_channels()
    )
