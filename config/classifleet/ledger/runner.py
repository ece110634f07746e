"""Runs the ledger's calls on redis-py, in a thread or on an event loop. Every call is safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from classifleet.config.errors import LedgerUnavailable
from classifleet.config.settings import Settings, mask_url
from classifleet.ledger._scripts import Script
from classifleet.ledger.calls import Call

T = TypeVar("T")
_RETRIES = 2
# A dropped connection is retried at once. A timeout is not: the caller's time is up.
_RETRIED = (redis.ConnectionError, redis.BusyLoadingError)
_BACKOFF_BASE_SECONDS = 0.05
_BACKOFF_CAP_SECONDS = 0.5


def _options(settings: Settings) -> dict[str, Any]:
    tcp = {} if settings.ledger_url().startswith("unix:") else {"socket_keepalive": True}
    return {
        **tcp,
        "max_connections": settings.max_connections,
        "timeout": settings.connect_timeout_seconds,
        "socket_connect_timeout": settings.connect_timeout_seconds,
        "socket_timeout": settings.connect_timeout_seconds,
        "health_check_interval": 15,
        "client_name": "classifleet",
    }


def _backoff() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(base=_BACKOFF_BASE_SECONDS, cap=_BACKOFF_CAP_SECONDS)


def connect(settings: Settings, *, max_connections: int | None = None) -> redis.Redis:
    """A client with a bounded pool; redis-py opens new sockets after a fork."""
    options = _options(settings) | ({"max_connections": max_connections} if max_connections else {})
    pool = redis.BlockingConnectionPool.from_url(
        settings.ledger_url(), **options, retry=Retry(_backoff(), _RETRIES, _RETRIED)
    )
    return redis.Redis(connection_pool=pool)


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """The same on the running event loop."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.ledger_url(),
        **_options(settings),
        retry=AsyncRetry(_backoff(), _RETRIES, _RETRIED),
    )
    return redis.asyncio.Redis(connection_pool=pool)


class SyncRunner:
    """Runs calls in the calling thread."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self._url = url

    def run(self, call: Call[T]) -> T:
        """Run one call.

        Raises:
            LedgerUnavailable: Redis did not answer in time, or refused.
        """
        answer: T = self.run_all([call])[0]
        return answer

    def run_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run calls in one round trip; they are not a transaction."""
        try:
            replies = self._send(calls)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                _load(self.client, [calls[i] for i in missing])
                for i, reply in zip(missing, self._send([calls[i] for i in missing]), strict=True):
                    replies[i] = reply
        except (RedisError, OSError) as error:
            raise _unavailable(self._url, error) from error
        return _read(calls, replies, self._url)

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        pipe: Any = self.client.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command(*_command(call))
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.client.connection_pool.disconnect()


class AsyncRunner:
    """Runs calls on the event loop that made the client."""

    def __init__(self, client: redis.asyncio.Redis, url: str) -> None:
        self.client = client
        self._url = url

    async def run(self, call: Call[T]) -> T:
        """Run one call; see `SyncRunner.run`."""
        answer: T = (await self.run_all([call]))[0]
        return answer

    async def run_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run calls in one round trip; they are not a transaction."""
        try:
            replies = await self._send(calls)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                for script in _scripts_of([calls[i] for i in missing]):
                    await self.client.script_load(script.source)
                for i, reply in zip(missing, await self._send([calls[i] for i in missing]), strict=True):
                    replies[i] = reply
        except (RedisError, OSError) as error:
            raise _unavailable(self._url, error) from error
        return _read(calls, replies, self._url)

    async def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command(*_command(call))
        return await pipe.execute(raise_on_error=False)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()


def _command(call: Call[Any]) -> tuple[Any, ...]:
    if isinstance(call.ask, Script):
        return ("EVALSHA", call.ask.sha1, len(call.keys), *call.keys, *call.args)
    return (call.ask, *call.keys, *call.args)


def _scripts_of(calls: Sequence[Call[Any]]) -> list[Script]:
    return list({call.ask.sha1: call.ask for call in calls if isinstance(call.ask, Script)}.values())


def _load(client: redis.Redis, calls: Sequence[Call[Any]]) -> None:
    for script in _scripts_of(calls):
        client.script_load(script.source)


def _read(calls: Sequence[Call[Any]], replies: Sequence[Any], url: str) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise _unavailable(url, reply) from reply
    return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]


def _unavailable(url: str, error: Exception) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger's Redis {mask_url(url)} did not answer: {error}")
