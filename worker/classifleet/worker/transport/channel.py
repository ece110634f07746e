"""kombu's Redis transport, with reserve, acknowledge, reject and restore in Lua (`reserver.py`).

What stays kombu's: URLs and TLS, publishing, sizes and purging of queues. What is replaced is pinned by
`tests/unit/test_transport_internals.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from queue import Empty
from typing import Any, Final

import redis
import structlog
from kombu import Connection
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.eventio import ERR, READ, poll
from kombu.utils.json import loads
from redis.backoff import NoBackoff
from redis.retry import Retry

from classifleet.config import Lane
from classifleet.worker.transport.reserver import Options, Reserver
from classifleet.worker.transport.turns import Reserved

TICK_SECONDS: Final = 0.5  # at least so often the loop looks whether something is due
UNLIMITED_SLOTS: Final = 64  # of a consumer that names no limit
# A connection that fails twice is lost: Celery then waits, and makes a new channel.
_POOL: Final[dict[str, Any]] = {"retry": Retry(NoBackoff(), 1), "max_connections": 1000}
log = structlog.get_logger(__name__)


class GarbageError(ValueError):
    """A message that is no message."""


class Message(virtual.Message):  # type: ignore[misc]
    """A message, or one clear error."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **options)
        except Exception as error:  # whatever a stranger wrote
            raise GarbageError(f"not a message: {error!r}") from error


class QoS(virtual.QoS):  # type: ignore[misc]
    """Keeps kombu's account of what was delivered; the messages themselves are the reserver's."""

    def ack(self, delivery_tag: str) -> None:
        """Remove a message for good."""
        self._quick_ack(delivery_tag)
        self.channel.reserver.ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back on its queue, or on the list of garbage."""
        self._quick_ack(delivery_tag)
        if requeue:
            self.channel.reserver.hand_back([delivery_tag])
        else:
            self.channel.reserver.park(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        """Put everything back; nothing fails to be restored, for what is not comes back by its deadline."""
        self.channel.reserver.hand_back(self.channel.reserver.held)
        self._delivered.clear()
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The same at the end of the channel or the process, if the connection lives."""
        self._on_collect.cancel()
        self.channel.reserver.close()


class Loop:
    """What kombu calls the transport's cycle: watches sockets, on Celery's event loop or in `drain_events`."""

    _in_protected_read = False  # kombu asks before it cancels a consumer

    def __init__(self) -> None:
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._poller = poll()
        self._hub: Any = None
        self._timer: Any = None

    @property
    def driven(self) -> bool:
        """Whether an event loop calls `tick`."""
        return self._hub is not None

    def add(self, channel: Channel) -> None:
        """Serve a channel."""
        self._channels.add(channel)

    def discard(self, channel: Channel) -> None:
        """Serve it no more."""
        self._channels.discard(channel)

    def attach(self, hub: Any) -> None:
        """Let Celery's event loop drive the channels."""
        self._hub = hub
        for fd, callback in self._callbacks.items():
            hub.add_reader(fd, callback)
        hub.on_tick.add(self.tick)
        self._timer = hub.call_repeatedly(TICK_SECONDS, _nothing)  # it is the tick that counts
        for channel in list(self._channels):
            channel.update()

    def close(self) -> None:
        """Leave the event loop."""
        if self._hub is not None:
            self._hub.on_tick.discard(self.tick)
            self._timer.cancel()
            for fd in self._callbacks:
                self._hub.remove(fd)
            self._hub = None
        self._poller.close()

    def tick(self) -> None:
        """Let each channel send what is due."""
        for channel in list(self._channels):
            channel.reserver.advance()

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """One round of `drain_events`.

        Raises:
            queue.Empty: Nothing was delivered.
        """
        before = sum(channel.delivered for channel in self._channels)
        self.tick()
        seconds = TICK_SECONDS if timeout is None else min(timeout, TICK_SECONDS)
        for fd, _ in self._poller.poll(seconds) or ():
            self._callbacks[fd]()
        if sum(channel.delivered for channel in self._channels) == before:
            raise Empty

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """See `line.Watcher`."""
        self._callbacks[fd] = on_readable
        if self._hub is not None:
            self._hub.add_reader(fd, on_readable)
        else:
            self._poller.register(fd, READ | ERR)

    def unwatch(self, fd: int) -> None:
        """See `line.Watcher`."""
        del self._callbacks[fd]
        if self._hub is not None:
            self._hub.remove(fd)
        else:
            self._poller.unregister(fd)

    def wake(self) -> None:
        """See `line.Watcher`."""
        if hub := self._hub:
            hub.call_soon(_nothing)


def _nothing() -> None:
    """The loop goes round, and `tick` does the rest."""


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel whose consumers are served by a reserver."""

    QoS = QoS
    Message = Message
    supports_fanout = False
    waiting: Callable[[Lane], int] = staticmethod(lambda _: 0)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.delivered = 0
        self._no_ack: set[str] = set()
        super().__init__(*args, **options)
        self.reserver = Reserver(
            redis.ConnectionPool(**self._connparams() | _POOL),
            self.connection.cycle,
            Options(self.global_keyprefix, self.visibility_timeout, self.socket_timeout or 15.0),
            deliver=self._deliver,
            slots=self._slots,
            waiting=self.waiting,
        )
        _channels.add(self)

    def update(self) -> None:
        """Reserve from the queues that have consumers now."""
        self.reserver.consume(self._active_queues, driven=self.connection.cycle.driven)

    def _slots(self) -> int:
        """What is still at work for a channel whose connection was lost has its thread, too."""
        lost = sum(len(channel.reserver.held) for channel in list(_channels) if channel.closed)
        return (self.qos.prefetch_count or UNLIMITED_SLOTS) - lost

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> None:
        """Consume from a queue."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        (self._no_ack.add if no_ack else self._no_ack.discard)(queue)
        self.update()

    def _basic_cancel(self, consumer_tag: str) -> None:
        super()._basic_cancel(consumer_tag)
        self.update()

    def _on_connection_disconnect(self, connection: Any) -> None:
        """Nothing waits on kombu's own connection; it is used once, to see whether Redis answers."""

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> None:
        """Not offered: it would take a message without a way back."""
        raise NotImplementedError("consume instead")

    def close(self) -> None:
        """Hand back what is not acknowledged, and close."""
        if not self.closed:
            self.reserver.close()
        super().close()

    def _deliver(self, reserved: Reserved) -> None:
        """Give a message to its consumer; one that cannot be read, or that breaks it, must not stop the others."""
        self.delivered += 1
        try:
            self.connection._deliver(_payload(reserved), reserved.queue)
        except Exception as error:
            known = isinstance(error, GarbageError)
            log.error("garbage", queue=reserved.queue, error=str(error), exc_info=None if known else error)
            self.reserver.park(reserved.tag)
            return
        if reserved.queue in self._no_ack:
            self.reserver.ack(reserved.tag)


def _payload(reserved: Reserved) -> Any:
    try:
        payload = loads(reserved.body.decode())
        properties = payload["properties"]
        properties["delivery_tag"] = reserved.tag
        properties["delivery_info"] = {"exchange": "", "routing_key": reserved.queue}
    except Exception as error:  # whatever a stranger wrote
        raise GarbageError(f"not a message: {error!r}") from error
    return payload


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def open_channels() -> Iterable[Channel]:
    """This process's channels."""
    return [channel for channel in list(_channels) if not channel.closed]


class Transport(stock.Transport):  # type: ignore[misc]
    """The transport."""

    Channel = Channel
    implements = stock.Transport.implements.extend(exchange_type=frozenset(["direct"]))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = Loop()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let Celery's event loop drive it."""
        self.cycle.attach(loop)


class AtomicConnection(Connection):  # type: ignore[misc]
    """A connection that uses this transport for any URL of a Redis (kombu would choose by the URL's scheme)."""

    def get_transport_cls(self) -> type[Transport]:
        """The transport."""
        return Transport
