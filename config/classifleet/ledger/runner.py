"""Runs the ledger's calls on redis-py, in a thread or on an event loop. Every call is safe to repeat.

A batch with a durable call ends in WAIT on the same connection. Redis notes for a connection, after each of its
commands, how far the whole server had written, so WAIT covers a repetition that wrote nothing itself, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError
from redis.retry import Retry

from classifleet.config.errors import LedgerFull, LedgerUnavailable, NotReplicated
from classifleet.config.settings import Settings
from classifleet.config.urls import mask_url
from classifleet.ledger._scripts import Script
from classifleet.ledger.calls import Call

T = TypeVar("T")
_RETRIES = 2
# A dropped connection is retried at once. A timeout is not: the caller's time is up.
_RETRIED = (redis.ConnectionError, redis.BusyLoadingError)
_BACKOFF_BASE_SECONDS = 0.05
_BACKOFF_CAP_SECONDS = 0.5
_WAIT_SHARE = 0.5  # of the time that a call has: WAIT must answer before the socket's timeout
_OUT_OF_MEMORY = "OOM command not allowed"


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


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas must have what durable calls wrote, and for how long to wait for them."""

    count: int = 0
    wait_ms: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Replicas:
        """As the setting `durability` says."""
        return cls(settings.replicas, max(1, int(settings.connect_timeout_seconds * _WAIT_SHARE * 1000)))

    def are_needed_by(self, calls: Sequence[Call[Any]]) -> bool:
        """Whether one of the calls is durable."""
        return self.count > 0 and any(call.durable for call in calls)


_NO_REPLICAS = Replicas()


class SyncRunner:
    """Runs calls in the calling thread; durable ones until `replicas` have what they wrote."""

    def __init__(self, client: redis.Redis, url: str, replicas: Replicas = _NO_REPLICAS) -> None:
        self.client = client
        self._url = url
        self._replicas = replicas

    def run(self, call: Call[T]) -> T:
        """Run one call.

        Raises:
            LedgerUnavailable: Redis did not answer in time, or refused: `LedgerFull` if it is at its maxmemory.
            NotReplicated: It is done, but too few replicas have it.
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
        for command in _commands(calls, self._replicas):
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return _replicated(calls, replies, self._replicas, self._url)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.client.connection_pool.disconnect()


class AsyncRunner:
    """Runs calls on the event loop that made the client."""

    def __init__(self, client: redis.asyncio.Redis, url: str, replicas: Replicas = _NO_REPLICAS) -> None:
        self.client = client
        self._url = url
        self._replicas = replicas

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
        for command in _commands(calls, self._replicas):
            pipe.execute_command(*command)
        return _replicated(calls, await pipe.execute(raise_on_error=False), self._replicas, self._url)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        await self.client.connection_pool.disconnect()


def _commands(calls: Sequence[Call[Any]], replicas: Replicas) -> list[tuple[Any, ...]]:
    commands = [_command(call) for call in calls]
    return [*commands, ("WAIT", replicas.count, replicas.wait_ms)] if replicas.are_needed_by(calls) else commands


def _command(call: Call[Any]) -> tuple[Any, ...]:
    if isinstance(call.ask, Script):
        return ("EVALSHA", call.ask.sha1, len(call.keys), *call.keys, *call.args)
    return (call.ask, *call.keys, *call.args)


def _replicated(calls: Sequence[Call[Any]], replies: list[Any], replicas: Replicas, url: str) -> list[Any]:
    """The calls' own replies, if enough replicas have what the durable ones of them wrote."""
    if not replicas.are_needed_by(calls):
        return replies
    *own, reached = replies
    if all(isinstance(reply, Exception) for call, reply in zip(calls, own, strict=True) if call.durable):
        return own
    if isinstance(reached, Exception):
        raise _unavailable(url, reached) from reached
    if reached < replicas.count:
        raise NotReplicated(
            f"{reached} of {replicas.count} replicas (setting durability) of the ledger's Redis {mask_url(url)} "
            f"answered within {replicas.wait_ms} ms; what was asked may be done, and the same call with the same id "
            "may be repeated safely"
        )
    return own


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
    if isinstance(error, OutOfMemoryError) or _OUT_OF_MEMORY in str(error):  # inside a script it is no prefix
        return LedgerFull(f"the ledger's Redis {mask_url(url)} is at its maxmemory: {error}")
    return LedgerUnavailable(f"the ledger's Redis {mask_url(url)} did not answer: {error}")
