"""The content cache that workers share: a Redis of its own, which may evict, and may be away.

What images ask for and what they leave, while one round trip is under way, goes with the next one. A failure is
nobody's failure: what is asked for is not there, and for a while nobody asks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from classifleet.config import Keys, Settings
from classifleet.config.urls import for_redis_py
from classifleet.worker.cache import ContentCache
from classifleet.worker.headers import DecodeLimits
from classifleet.worker.instruments import CACHE_FAILURES

log = structlog.get_logger(__name__)
TIMEOUT_SECONDS: Final = 0.25
"""Of a connection, and of an answer: an image that waits for longer had better be decoded."""
REST_SECONDS: Final = 5.0
"""For so long after a failure nobody asks."""
TOGETHER: Final = 256
"""Keys in one round trip, at most."""
UNSAVED: Final = 1024
"""Entries that wait to be written; of more, the oldest are not written."""

_Wanted = tuple[bytes, asyncio.Future[bytes | None]]


class SharedCache:
    """Entries by key, in Redis. Lives on one event loop.

    Args:
        url: Of the Redis.
        keys: Of the namespace.
        ttl_seconds: How long an entry is kept after it was written.
    """

    def __init__(self, url: str, keys: Keys, *, ttl_seconds: int) -> None:
        self._client = redis.asyncio.Redis.from_url(
            for_redis_py(url),
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name="classifleet-cache",
        )
        self._keys = keys
        self._ttl = ttl_seconds
        self._wanted: deque[_Wanted] = deque()
        self._unsaved: deque[tuple[bytes, bytes]] = deque(maxlen=UNSAVED)
        self._task: asyncio.Task[None] | None = None
        self._rests_until = 0.0
        self._away = False

    async def get(self, key: bytes) -> bytes | None:
        """An entry; None if it is not there, or nobody can say."""
        if self._rests():
            return None
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((key, future))
        self._wake()
        return await future

    def put(self, key: bytes, entry: bytes) -> None:
        """Keep an entry, soon, unless the Redis is away."""
        if not self._rests():
            self._unsaved.append((key, entry))
            self._wake()

    async def close(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._client.aclose()

    def _rests(self) -> bool:
        return asyncio.get_running_loop().time() < self._rests_until

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        wanted: list[_Wanted] = []
        try:
            while (self._wanted or self._unsaved) and not self._rests():
                wanted = _take(self._wanted)
                unsaved = _take(self._unsaved)
                _answer(wanted, await self._exchange([key for key, _ in wanted], unsaved))
        finally:
            self._task = None
            left = [*wanted, *self._wanted]
            self._wanted.clear()
            _answer(left, [None] * len(left))

    async def _exchange(self, wanted: Sequence[bytes], unsaved: Sequence[tuple[bytes, bytes]]) -> Sequence[Any]:
        pipe = self._client.pipeline(transaction=False)
        if wanted:
            pipe.mget([self._keys.content(key.hex()) for key in wanted])
        for key, entry in unsaved:
            pipe.set(self._keys.content(key.hex()), entry, ex=self._ttl)
        try:
            answers = await pipe.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - no failure of this is any image's
            self._failed(str(error) or type(error).__name__)
            return [None] * len(wanted)
        if bad := next((answer for answer in answers if isinstance(answer, Exception)), None):
            self._failed(str(bad))  # full, or read-only
        elif self._away:
            self._away = False
            log.info("the shared content cache is back")
        found = answers[0] if wanted else []
        return found if isinstance(found, list) else [None] * len(wanted)

    def _failed(self, why: str) -> None:
        CACHE_FAILURES.inc()
        self._rests_until = asyncio.get_running_loop().time() + REST_SECONDS
        self._unsaved.clear()
        if not self._away:
            self._away = True
            log.warning("the shared content cache is away; pictures are classified without it", error=why)


def _take(queue: deque[Any]) -> list[Any]:
    return [queue.popleft() for _ in range(min(TOGETHER, len(queue)))]


def _answer(wanted: Sequence[_Wanted], found: Sequence[bytes | None]) -> None:
    for (_, future), entry in zip(wanted, found, strict=True):
        if not future.done():  # its image has given up
            future.set_result(entry)


def open_cache(settings: Settings, limits: DecodeLimits) -> ContentCache | None:
    """The content cache of a worker; None if no model has one."""
    if not settings.content_cache:
        return None
    url, remote = settings.content_cache_url, None
    if url:
        remote = SharedCache(url, Keys(settings.namespace), ttl_seconds=settings.content_cache_ttl_seconds)
    return ContentCache(
        settings.content_cache,
        limits=limits,
        promise=f"{version('classifleet')} {settings.precision}",
        limit_bytes=settings.content_cache_bytes,
        remote=remote,
    )
