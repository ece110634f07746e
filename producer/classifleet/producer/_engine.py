"""Performs effects in the calling thread. Safe across threads and across fork."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import redis

from classifleet.config import ClassifleetError, Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import Replicas, SyncRunner, connect
from classifleet.producer._effects import Ask, Blocking, Effect, Flow, Listen, Pause, Publish, publish

T = TypeVar("T")
SUBSCRIBE_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 1.0


class SyncEngine:
    """One per `Fleet`; it makes its sockets at first use and makes new ones in a forked child."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self._settings = settings
        self._channel = channel
        self._locks: dict[int, threading.Lock] = {}
        self._pid = 0
        self._runner: SyncRunner
        self._listener: Listener
        self._publisher = Publisher(settings)

    def drive(self, flow: Flow[T]) -> T:
        """Run a flow to its end.

        Raises:
            ClassifleetError: What the flow raises, or could not handle.
        """
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect)
                except ClassifleetError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Ask(calls):
                return self._connected().run_all(calls)
            case Publish(messages):
                return publish(self._publisher, messages)
            case Listen(watch, seconds):
                watch.wait(seconds)
                watch.clear()
            case Pause(seconds):
                time.sleep(seconds)
            case Blocking(function):
                return function()
        return None

    @contextmanager
    def watch(self, job: str) -> Iterator[threading.Event]:
        """An event that is set whenever something is heard of the job."""
        self._connected()
        with self._listener.watch(job) as event:
            yield event

    def close(self) -> None:
        """Close the sockets and end the listening thread."""
        with self._lock():
            if self._pid == os.getpid():
                self._listener.close()
                self._runner.close()
            self._pid = 0
        self._publisher.close()

    def _connected(self) -> SyncRunner:
        with self._lock():
            if self._pid != os.getpid():
                client = connect(self._settings)
                self._runner = SyncRunner(client, self._settings.ledger_url(), Replicas.of(self._settings))
                self._listener = Listener(client, self._channel)
                self._pid = os.getpid()
            return self._runner

    def _lock(self) -> threading.Lock:
        """The process's own: a thread of the parent may have held the parent's at the moment of the fork."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


class Listener:
    """Hears of finished chunks on one channel, on one daemon thread that runs while somebody waits.

    Waiters re-read the ledger once a second anyway, so a lost notification costs time and nothing else.
    """

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._client: Any = client
        self._channel = channel
        self._lock = threading.Lock()
        self._events: dict[str, list[threading.Event]] = defaultdict(list)
        self._thread: threading.Thread | None = None
        self._subscribed = threading.Event()
        self._closed = threading.Event()

    @contextmanager
    def watch(self, job: str) -> Iterator[threading.Event]:
        """Register for a job."""
        event = threading.Event()
        with self._lock:
            self._events[job].append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="classifleet-listener", daemon=True)
                self._thread.start()
        self._subscribed.wait(SUBSCRIBE_SECONDS)
        try:
            yield event
        finally:
            with self._lock:
                self._events[job].remove(event)
                if not self._events[job]:
                    del self._events[job]

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._subscribed.is_set():
            with suppress(redis.RedisError):
                self._client.publish(self._channel, "")  # wakes it; without Redis it sees the flag within a second
        if self._thread is not None:
            self._thread.join(timeout=2 * RECONNECT_SECONDS)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=False) as pubsub:
                    pubsub.subscribe(self._channel)
                    while not self._closed.is_set():
                        self._hear(pubsub.get_message(timeout=RECONNECT_SECONDS))
            except (redis.RedisError, OSError):
                # Redis is away: the waiters' own reads raise a typed error; here there is only a later try.
                self._closed.wait(RECONNECT_SECONDS)
            finally:
                self._subscribed.clear()

    def _hear(self, heard: dict[str, Any] | None) -> None:
        if heard is None:
            return
        if heard["type"] == "subscribe":
            self._subscribed.set()
        elif heard["type"] == "message":
            job = heard["data"].decode("utf-8", "replace")
            with self._lock:
                for event in self._events.get(job, ()):
                    event.set()
