"""The Celery application, and how messages reach its queues.

One factory serves both sides. Inside a Django project with a Celery of its own neither sees the other (`_celery.py`
says how).
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from classifleet.config.brokers import (
    AMQP_QUEUE,
    broker_queue,
    is_amqp,
    require_transport,
    transport_options,
    woken,
)
from classifleet.config.errors import BrokerFull, BrokerUnavailable
from classifleet.config.payload import TASK_NAME, Lane, Message
from classifleet.config.settings import Settings, queue_name
from classifleet.config.urls import for_kombu, is_redis, mask_url

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection, Queue

LANES: Final[tuple[Lane, ...]] = ("interactive", "bulk")
PUBLISH_CONNECTIONS: Final = 4  # per process; a publish holds one for well under a millisecond
_RETRIES: Final = 1  # each attempt gets its share of the caller's time
# Redis at its maxmemory. redis-py takes the OOM in front away, except from a script's error.
_OUT_OF_MEMORY: Final = "command not allowed when used memory"
_RETRY_PAUSE_SECONDS: Final = 0.05

_CONF: Final[dict[str, Any]] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "task_acks_late": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": False,
    "task_ignore_result": True,
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "worker_disable_rate_limits": True,
    "worker_eta_task_limit": 100,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}


def make_app(settings: Settings) -> Celery:
    """Build the Celery application of a fleet.

    Raises:
        BrokerUnavailable: No broker is configured.
        SettingsError: The broker is one that kombu does not know.
        MissingExtra: It needs a package that is not installed.
    """
    from classifleet.config._celery import IsolatedCelery

    url = broker_url(settings)
    require_transport(url)
    app = IsolatedCelery("classifleet", broker=url)
    app.conf.update(
        _CONF,
        broker_url=url,
        broker_read_url=url,
        broker_write_url=url,
        broker_transport_options=transport_options(settings, url, settings.connect_timeout_seconds),
        broker_connection_timeout=settings.connect_timeout_seconds,
        # Threads; how many chunks are taken is bounded by `worker/places.py`, which the reduction would undo.
        worker_concurrency=settings.chunks_in_flight + settings.chunks_waiting,
        worker_enable_prefetch_count_reduction=False,
        # It leaves the backlog where an autoscaler can see it; of what they take our transport and AMQP keep count.
        worker_disable_prefetch=is_redis(url) and settings.transport == "stock",
        task_queues=_queues(settings, url),
    )
    return app


def _queues(settings: Settings, url: str) -> list[Queue]:
    """The queues that a worker serves, interactive ones first."""
    from kombu import Queue

    names = [broker_queue(settings, url, queue_name(pool, lane)) for lane in LANES for pool in settings.queues]
    arguments = AMQP_QUEUE if is_amqp(url) else None
    # The default exchange routes by queue name, with any broker.
    return [Queue(name, exchange="", routing_key=name, queue_arguments=arguments) for name in names]


def broker_url(settings: Settings) -> str:
    """The broker, or one clear error."""
    if settings.broker_url:
        return for_kombu(settings.broker_url)
    raise BrokerUnavailable("no broker is configured: set CLASSIFLEET_BROKER_URL, or pass its URL")


class Publisher:
    """Publishes wake-up messages on connections of its own; safe across threads and fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = broker_url(settings)
        self._timeout = settings.connect_timeout_seconds
        self._origin = f"{os.getpid()}@{socket.gethostname()}"
        self._pool: Any = None
        self._pid = 0
        self._locks: dict[int, threading.Lock] = {}

    def publish(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put `(queue, message)` pairs on their queues, in one round trip where the transport can.

        Raises:
            BrokerUnavailable: Within `connect_timeout_seconds`.
            BrokerFull: Its Redis is at its maxmemory.
            SettingsError: The broker is one that kombu does not know.
            MissingExtra: It needs a package that is not installed.
        """
        named = [(broker_queue(self._settings, self._url, queue), message) for queue, message in messages]
        with self._errors(), self._connections().acquire(block=True, timeout=self._timeout) as connection:
            self._publish_on(connection, named)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from kombu.exceptions import KombuError
        from redis import RedisError

        try:
            yield
        except (KombuError, RedisError, OSError) as error:
            if _is_full(error):
                raise BrokerFull(f"the broker {mask_url(self._url)} is full: {error}") from error
            raise BrokerUnavailable(f"the broker {mask_url(self._url)} did not answer: {error}") from error

    def _publish_on(self, connection: Connection, messages: list[tuple[str, Message]]) -> None:
        from kombu import Producer

        def send() -> None:
            for queue in dict.fromkeys(queue for queue, _ in messages):
                self._declare(connection, queue)
            with Producer(connection.default_channel) as producer, producer.batch():
                for queue, message in messages:
                    producer.publish(
                        _body(message),
                        routing_key=queue,
                        exchange="",
                        serializer="json",
                        headers=_headers(message, self._origin),
                        delivery_mode=2,
                    )

        # Given the connection as the object to revive, kombu drops its old default channel.
        connection.ensure(connection, send, max_retries=_RETRIES, interval_start=_RETRY_PAUSE_SECONDS)()

    def _declare(self, connection: Connection, queue: str) -> None:
        """RabbitMQ drops what is published to a queue that does not exist."""
        if is_amqp(self._url) and queue not in connection.declared_entities:
            connection.default_channel.queue_declare(
                queue=queue, durable=True, auto_delete=False, arguments=AMQP_QUEUE
            )
            connection.declared_entities.add(queue)

    def depth(self, queue: str) -> int:
        """How many messages wait on a queue; 0 if it does not exist.

        Raises:
            BrokerUnavailable, SettingsError, MissingExtra: See `publish`.
        """
        queue = broker_queue(self._settings, self._url, queue)
        with self._errors(), self._connections().acquire(block=True, timeout=self._timeout) as connection:
            if is_redis(self._url):
                return sum(int(connection.default_channel._size(name)) for name in (queue, woken(queue)))
            try:
                declared = connection.default_channel.queue_declare(queue=queue, passive=True)
            except connection.channel_errors:
                connection.close()  # AMQP closes the channel of a queue that does not exist
                return 0
            return int(declared.message_count)

    def close(self) -> None:
        """Close the connections."""
        with self._lock():
            if self._pool is not None and self._pid == os.getpid():
                self._pool.force_close_all()
            self._pool = None

    def _lock(self) -> threading.Lock:
        """The process's own: a thread of the parent may have held the parent's at the moment of the fork."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _connections(self) -> Any:
        with self._lock():
            if self._pool is None or self._pid != os.getpid():  # a forked child must not use its parent's sockets
                from kombu import Connection

                require_transport(self._url)
                self._pid = os.getpid()
                seconds = self._timeout / (1 + _RETRIES)
                # kombu's own pause after a refused connection is two seconds
                options = transport_options(self._settings, self._url, seconds) | {
                    "max_retries": _RETRIES,
                    "interval_start": _RETRY_PAUSE_SECONDS,
                }
                if is_redis(self._url):
                    options["socket_timeout"] = seconds
                connection = Connection(self._url, connect_timeout=seconds, transport_options=options)
                self._pool = connection.Pool(limit=PUBLISH_CONNECTIONS)
            return self._pool


def _is_full(error: BaseException | None) -> bool:
    """Whether it comes of Redis at its maxmemory. kombu puts errors of its own over that of Redis."""
    while error is not None:
        if _OUT_OF_MEMORY in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _body(message: Message) -> tuple[list[Any], Message, dict[str, None]]:
    """Celery's message protocol 2: args, kwargs, embed."""
    return [], message, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _headers(message: Message, origin: str) -> dict[str, Any]:
    """Celery's message protocol 2, headers (docs.celeryq.dev, "Message Protocol")."""
    task_id = uuid.uuid4().hex
    return {
        "lang": "py",
        "task": TASK_NAME,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": f"{message['job']}/{message['chunk']}",
        "origin": origin,
        "ignore_result": True,
    }
