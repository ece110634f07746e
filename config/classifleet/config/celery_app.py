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

from classifleet.config.errors import BrokerUnavailable
from classifleet.config.payload import TASK_NAME, Message
from classifleet.config.settings import Settings, for_kombu, is_redis, mask_url

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

PUBLISH_CONNECTIONS: Final = 4  # per process; a publish holds one for well under a millisecond
_RETRIES: Final = 1  # each attempt gets its share of the caller's time
_RETRY_PAUSE_SECONDS: Final = 0.05

# Redelivery is the ledger's business (see docs/guarantees.md); these only make the stock transport behave.
_REDIS_OPTIONS: Final[dict[str, Any]] = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "unacked_restore_limit": 100,
    "priority_steps": [0],  # one list a queue: lanes are queues, not priorities
    "queue_order_strategy": "priority",  # interactive is listed first
    "socket_keepalive": True,
    "socket_timeout": 15,
    "health_check_interval": 10,
}

_CONF: Final[dict[str, Any]] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "task_acks_late": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": False,
    "task_ignore_result": True,
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,  # leaves the backlog where an autoscaler can see it
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "worker_disable_rate_limits": True,
    "worker_eta_task_limit": 100,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}


def transport_options(url: str, connect_timeout_seconds: float) -> dict[str, Any]:
    """Options for kombu's transport of this URL."""
    if not is_redis(url):
        return {}
    return {**_REDIS_OPTIONS, "socket_connect_timeout": connect_timeout_seconds}


def make_app(settings: Settings) -> Celery:
    """Build the Celery application of a fleet.

    Raises:
        BrokerUnavailable: No broker is configured.
    """
    from classifleet.config._celery import IsolatedCelery

    url = broker_url(settings)
    app = IsolatedCelery("classifleet", broker=url)
    app.conf.update(
        _CONF,
        broker_url=url,
        broker_read_url=url,
        broker_write_url=url,
        broker_transport_options=transport_options(url, settings.connect_timeout_seconds),
        broker_connection_timeout=settings.connect_timeout_seconds,
        worker_concurrency=settings.chunks_in_flight,
    )
    return app


def broker_url(settings: Settings) -> str:
    """The broker, or one clear error."""
    if settings.broker_url:
        return for_kombu(settings.broker_url)
    raise BrokerUnavailable("no broker is configured: set CLASSIFLEET_BROKER_URL, or pass its URL")


class Publisher:
    """Publishes wake-up messages on connections of its own; safe across threads and fork."""

    def __init__(self, settings: Settings) -> None:
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
        """
        with self._errors(), self._connections().acquire(block=True, timeout=self._timeout) as connection:
            self._publish_on(connection, list(messages))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from kombu.exceptions import KombuError
        from redis import RedisError

        try:
            yield
        except (KombuError, RedisError, OSError) as error:
            raise BrokerUnavailable(f"the broker {mask_url(self._url)} did not answer: {error}") from error

    def _publish_on(self, connection: Connection, messages: list[tuple[str, Message]]) -> None:
        from kombu import Producer

        def send() -> None:
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

    def depth(self, queue: str) -> int:
        """How many messages wait on a queue; 0 if it does not exist.

        Raises:
            BrokerUnavailable: See `publish`.
        """
        with self._errors(), self._connections().acquire(block=True, timeout=self._timeout) as connection:
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

                self._pid = os.getpid()
                seconds = self._timeout / (1 + _RETRIES)
                # kombu's own pause after a refused connection is two seconds
                options = transport_options(self._url, seconds) | {
                    "max_retries": _RETRIES,
                    "interval_start": _RETRY_PAUSE_SECONDS,
                }
                if is_redis(self._url):
                    options["socket_timeout"] = seconds
                connection = Connection(self._url, connect_timeout=seconds, transport_options=options)
                self._pool = connection.Pool(limit=PUBLISH_CONNECTIONS)
            return self._pool


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
