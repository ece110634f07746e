"""A namespace on a real Redis, and consumers of both lanes of it, without Celery's worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from kombu import Consumer

from classifleet.config import Keys, Settings, message
from classifleet.config.celery_app import Publisher, make_app
from classifleet.worker import transport
from tests.support.waiting import wait_until

BULK, INTERACTIVE = "classify.default.bulk", "classify.default.interactive"


class Client:
    """A consumer of both lanes."""

    def __init__(self, settings: Settings, connection: Any, slots: int) -> None:
        self.got: list[Any] = []
        self.connection = connection
        self.channel = connection.default_channel
        self.channel.basic_qos(0, slots, False)
        self.reserver = self.channel.reserver
        self.consumer = Consumer(
            self.channel, queues=make_app(settings).conf.task_queues, on_message=self.got.append, accept=["json"]
        )
        self.consumer.consume()

    def drain(self, until: Callable[[], object], seconds: float = 5) -> None:
        def step() -> object:
            if until():
                return True
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.05)
            return until()

        wait_until(step, "messages", seconds)

    def take(self, count: int) -> list[Any]:
        """The next messages, and all that comes with them."""
        self.drain(lambda: len(self.got) >= count)
        taken = list(self.got)
        self.got.clear()
        return taken

    def nothing_comes(self) -> bool:
        """For long enough to take a turn."""
        self.reserver._must_turn = True
        for _ in range(3):
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.05)
        return not self.got


class Bench:
    """Redis, a publisher, and clients."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis = redis.Redis.from_url(settings.broker_url or "")
        self.publisher = Publisher(settings)
        self.prefix = Keys(settings.namespace).broker

    def publish(self, count: int, queue: str = BULK, job: str = "j") -> None:
        self.publisher.publish([(queue, message(job, str(number))) for number in range(count)])

    @contextmanager
    def client(self, slots: int = 32, **changes: Any) -> Iterator[Client]:
        settings = self.settings.model_copy(update=changes)
        app = make_app(settings)
        transport.install(app, settings)
        with app.connection_for_read() as connection:
            yield Client(settings, connection, slots)

    def held(self) -> int:
        held, index = self.redis.hlen(f"{self.prefix}reserved"), self.redis.zcard(f"{self.prefix}deadlines")
        assert held == index
        return int(held)

    def garbage(self) -> list[bytes]:
        return list(self.redis.lrange(f"{self.prefix}garbage", 0, -1))

    def overdue(self) -> None:
        """All that is held has been so for too long."""
        for tag in self.redis.zrange(f"{self.prefix}deadlines", 0, -1):
            self.redis.zadd(f"{self.prefix}deadlines", {tag: 1})
