"""Whether a Redis server is fit to hold a ledger. Used at worker start and by `classifleet doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import redis

from classifleet.config.errors import LedgerUnavailable, SettingsError
from classifleet.config.keys import SCHEMA_VERSION, Keys
from classifleet.config.urls import mask_url

OLDEST_REDIS: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the server and what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def problems(client: redis.Redis, keys: Keys, *, ephemeral: bool) -> list[Problem]:
    """Everything that makes this server unfit; empty when it is fit.

    Raises:
        redis.RedisError: It does not answer.
    """
    info: dict[str, Any] = client.info()
    found = [
        _version_problem(str(info.get("redis_version", "0"))),
        _cluster_problem(info),
        _eviction_problem(info),
        None if ephemeral else _persistence_problem(client, info),
        _schema_problem(client, keys),
    ]
    return [problem for problem in found if problem is not None]


def advice(client: redis.Redis) -> list[Problem]:
    """What is better mended, though the server can hold a ledger as it is.

    Raises:
        redis.RedisError: It does not answer.
    """
    memory: dict[str, Any] = client.info("memory")
    if int(memory.get("maxmemory", 0)):
        return []
    return [
        Problem(
            "it has no maxmemory, so that nobody hears QueueFull before the machine's memory is gone",
            "set maxmemory to what it may have",
        )
    ]


def require_fit(client: redis.Redis, keys: Keys, url: str, *, ephemeral: bool) -> None:
    """Refuse an unfit server, and mark a new one with the schema's version.

    Raises:
        LedgerUnavailable: It does not answer.
        SettingsError: It is unfit; the message says why and what to do.
    """
    try:
        found = problems(client, keys, ephemeral=ephemeral)
        if not found:
            client.set(keys.shared("schema"), SCHEMA_VERSION, nx=True)
    except redis.RedisError as error:
        raise LedgerUnavailable(f"the ledger's Redis {mask_url(url)} did not answer: {error}") from error
    if found:
        raise SettingsError(f"the Redis {mask_url(url)} cannot hold a ledger: " + "; ".join(map(str, found)))


def _version_problem(version: str) -> Problem | None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_REDIS:
        return None
    return Problem(f"it is version {version}", "use Redis 6.2 or newer, or Valkey")


def _cluster_problem(info: dict[str, Any]) -> Problem | None:
    if not info.get("cluster_enabled"):
        return None
    return Problem("it is a Redis Cluster", "use a single primary (with replicas, at an address that follows it)")


def _eviction_problem(info: dict[str, Any]) -> Problem | None:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return None
    return Problem(f"it deletes keys when full (maxmemory-policy {policy})", "set maxmemory-policy noeviction")


def _persistence_problem(client: redis.Redis, info: dict[str, Any]) -> Problem | None:
    if info.get("aof_enabled"):
        return None
    try:
        snapshots = bool(client.config_get("save").get("save"))
    except redis.ResponseError:  # CONFIG is closed on most managed services; those persist or replicate
        return None
    if snapshots:
        return None
    return Problem(
        "it persists nothing, so a restart loses accepted work",
        "set appendonly yes, or accept that with CLASSIFLEET_EPHEMERAL=true",
    )


def _schema_problem(client: redis.Redis, keys: Keys) -> Problem | None:
    value = client.get(keys.shared("schema"))
    if value is None:
        return None
    version = value.decode() if isinstance(value, bytes) else str(value)
    if version == str(SCHEMA_VERSION):
        return None
    return Problem(
        f"its keys have schema version {version}, this classifleet writes {SCHEMA_VERSION}",
        "use another CLASSIFLEET_NAMESPACE, or the matching version of classifleet",
    )
