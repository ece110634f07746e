"""Performs effects on an event loop. One engine serves several loops, each with sockets of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import redis
import redis.asyncio

from classifleet.config import ClassifleetError, Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import AsyncRunner, Replicas, connect_async
from classifleet.producer._effects import Ask, Blocking, Effect, Flow, Listen, Pause, Publish, publish

T = TypeVar("T")
BLOCKING_THREADS: Final = 4  # for publishing (kombu blocks) and for reading files
SUBSCRIBE_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 10.0  # stated, because the socket's own timeout would end a quiet subscription


class AsyncEngine:
    """One per `AsyncFleet`."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self._settings = settings
        self._channel = channel
        self._publisher = Publisher(settings)
        self._locks: dict[int, threading.Lock] = {}
        self._pid = 0
        self._threads: ThreadPoolExecutor
        self._loops: dict[asyncio.AbstractEventLoop, _LoopResources]

    async def drive(self, flow: Flow[T]) -> T:
        """Run a flow to its end. Cancelling the await abandons the flow between two effects; no job is cancelled.

        Raises:
            ClassifleetError: What the flow raises, or could not handle.
        """
        try:
            effect = next(flow)
            while True:
                try:
                    answer = await self._perform(effect)
                except ClassifleetError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Ask(calls):
                return await self._here().runner.run_all(calls)
            case Publish(messages):
                return await self.in_thread(publish, self._publisher, messages)
            case Listen(watch, seconds):
                await _wait(watch, seconds)
                watch.clear()
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Blocking(function):
                return await self.in_thread(function)
        return None

    async def in_thread(self, function: Any, *args: Any) -> Any:
        """Call something that blocks on one of a few threads."""
        self._here()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    @asynccontextmanager
    async def watch(self, job: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something is heard of the job."""
        async with self._here().listener.watch(job) as event:
            yield event

    async def close(self) -> None:
        """Close this loop's sockets, and with the last loop the threads and the broker's connections."""
        with self._lock():
            mine = self._pid == os.getpid()
            here = self._loops.pop(asyncio.get_running_loop(), None) if mine else None
            last = mine and all(loop.is_closed() for loop in self._loops)
            if last:
                self._threads.shutdown(wait=False)
                self._publisher.close()
                self._pid = 0
        if here is not None:
            await here.close()

    def _here(self) -> _LoopResources:
        loop = asyncio.get_running_loop()
        with self._lock():
            if self._pid != os.getpid():  # also in a forked child, whose parent's sockets and threads are not its own
                self._pid = os.getpid()
                self._threads = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="classifleet")
                self._loops = {}
            if loop not in self._loops:
                self._loops = {known: its for known, its in self._loops.items() if not known.is_closed()}
                self._loops[loop] = _LoopResources(self._settings, self._channel)
            return self._loops[loop]

    def _lock(self) -> threading.Lock:
        """The process's own: a thread of the parent may have held the parent's at the moment of the fork."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


class _LoopResources:
    """The sockets of one event loop. They close with the loop, if nobody closes them before."""

    def __init__(self, settings: Settings, channel: str) -> None:
        client = connect_async(settings)
        self.runner = AsyncRunner(client, settings.ledger_url(), Replicas.of(settings))
        self.listener = _AsyncListener(client, channel)
        # asyncio.run cancels the tasks that are left at its end, and waits for them.
        self._guard = asyncio.get_running_loop().create_task(self._stay_open(), name="classifleet-sockets")

    async def close(self) -> None:
        self._guard.cancel()
        await asyncio.gather(self._guard, return_exceptions=True)
        await self._close_sockets()  # again: a task that is cancelled before it began does nothing

    async def _stay_open(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self._close_sockets()

    async def _close_sockets(self) -> None:
        await self.listener.close()
        await self.runner.close()


class _AsyncListener:
    """Hears of finished chunks on one channel, on one task."""

    def __init__(self, client: redis.asyncio.Redis, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._events: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    @asynccontextmanager
    async def watch(self, job: str) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        self._events[job].append(event)
        try:
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._listen(), name="classifleet-listener")
            await _wait(self._subscribed, SUBSCRIBE_SECONDS)
            yield event
        finally:
            self._events[job].remove(event)
            if not self._events[job]:
                del self._events[job]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        self._hear(await pubsub.get_message(timeout=READ_SECONDS))
            except (redis.RedisError, OSError):
                # Redis is away: the waiters' own reads raise a typed error; here there is only a later try.
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                self._subscribed.clear()

    def _hear(self, heard: dict[str, Any] | None) -> None:
        if heard is None:
            return
        if heard["type"] == "subscribe":
            self._subscribed.set()
        elif heard["type"] == "message":
            for event in self._events.get(heard["data"].decode("utf-8", "replace"), ()):
                event.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event; it is no error if it does not come."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
