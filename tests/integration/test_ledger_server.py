"""Which Redis servers are refused: each problem provoked on a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from classifleet.config import Keys, LedgerUnavailable, SettingsError
from classifleet.config.keys import SCHEMA_VERSION
from classifleet.ledger import problems, require_fit
from tests.support import RedisServer

KEYS = Keys("server-test")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server whose configuration these tests may change."""
    with RedisServer.start(tmp_path_factory.mktemp("own-redis")) as server:
        yield server


@pytest.fixture
def client(own_server: RedisServer) -> Iterator[redis.Redis]:
    """Its client; the configuration is put back."""
    with own_server.client() as client:
        client.flushall()
        yield client
        for name, value in {"appendonly": "yes", "save": "", "maxmemory-policy": "noeviction"}.items():
            client.config_set(name, value)


def found(client: Any, *, ephemeral: bool = False) -> list[str]:
    return [problem.what for problem in problems(client, KEYS, ephemeral=ephemeral)]


def test_a_server_that_persists_and_does_not_evict_is_fit(client: redis.Redis) -> None:
    assert found(client) == []
    require_fit(client, KEYS, "redis://h", ephemeral=False)
    assert client.get(KEYS.shared("schema")) == str(SCHEMA_VERSION).encode()
    require_fit(client, KEYS, "redis://h", ephemeral=False)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(client: redis.Redis, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)
    assert found(client) == [f"it deletes keys when full (maxmemory-policy {policy})"]


@pytest.mark.parametrize(
    ("appendonly", "save", "ephemeral", "fit"),
    [
        ("yes", "", False, True),
        ("no", "3600 1", False, True),
        ("yes", "3600 1", False, True),
        ("no", "", False, False),
        ("no", "", True, True),
    ],
)
def test_a_server_that_persists_nothing_is_refused_unless_that_is_wanted(
    client: redis.Redis, appendonly: str, save: str, ephemeral: bool, fit: bool
) -> None:
    client.config_set("appendonly", appendonly)
    client.config_set("save", save)
    expected = [] if fit else ["it persists nothing, so a restart loses accepted work"]
    assert found(client, ephemeral=ephemeral) == expected


def test_a_client_that_decodes_its_answers_sees_the_same(own_server: RedisServer, client: redis.Redis) -> None:
    client.config_set("appendonly", "no")
    client.config_set("save", "3600 1")
    with redis.Redis.from_url(own_server.url, decode_responses=True) as decoding:
        assert found(decoding) == []
        decoding.set(KEYS.shared("schema"), "999")
        assert len(found(decoding)) == 1


def test_keys_of_another_schema_are_refused(client: redis.Redis) -> None:
    client.set(KEYS.shared("schema"), "999")
    assert found(client) == [f"its keys have schema version 999, this classifleet writes {SCHEMA_VERSION}"]
    client.set(Keys("other").shared("schema"), "1")
    with pytest.raises(SettingsError, match="use another CLASSIFLEET_NAMESPACE"):
        require_fit(client, KEYS, "redis://h", ephemeral=False)
    assert client.get(KEYS.shared("schema")) == b"999"


def test_all_problems_are_said_at_once_with_their_remedies_and_no_password(client: redis.Redis) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    with pytest.raises(SettingsError) as caught:
        require_fit(client, KEYS, "redis://:hunter2@host/0", ephemeral=False)
    assert str(caught.value) == (
        "the Redis redis://:***@host/0 cannot hold a ledger: "
        "it deletes keys when full (maxmemory-policy allkeys-lru); set maxmemory-policy noeviction; "
        "it persists nothing, so a restart loses accepted work; "
        "set appendonly yes, or accept that with CLASSIFLEET_EPHEMERAL=true"
    )
    assert client.get(KEYS.shared("schema")) is None, "an unfit server is left alone"


def test_a_server_that_hides_its_configuration_is_trusted_to_persist(tmp_path: Path) -> None:
    options = ("--appendonly", "no", "--rename-command", "CONFIG", "")
    with RedisServer.start(tmp_path / "managed", *options) as server, server.client() as client:
        assert found(client) == []


def test_a_server_that_is_down_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
    with pytest.raises(LedgerUnavailable, match=r"redis://h did not answer"):
        require_fit(client, KEYS, "redis://h", ephemeral=False)
    client.close()
