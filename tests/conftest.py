"""Fixtures that every test can use.

redis_server    a real Redis, one for the session: its URL without a database
redis_url       the same with an empty database, one a test
namespace       a namespace that no other test uses
settings        settings(**overrides) -> Settings on redis_url and namespace
s3_server       a real S3 server, one for the session
s3              .settings_kwargs .client .bucket (new and empty) .url; credentials are in the environment
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from classifleet.config import Settings
from tests.support.services import ACCESS_KEY, REDIS_DATABASES, SECRET_KEY, RedisServer, S3Server

pytest_plugins = ["tests.fixtures_models", "tests.fixtures_fleet", "tests.fixtures_ledger", "tests.fixtures_cli"]

_OURS = ("CLASSIFLEET_", "CELERY_")
_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
_buckets = itertools.count(1)
_databases = itertools.cycle(range(REDIS_DATABASES))

# Several workers share the cores of a test machine: threads that spin at OpenMP's barriers would take them away.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


class SettingsFactory(Protocol):
    """Makes settings on the test's own Redis database and namespace."""

    def __call__(self, **overrides: Any) -> Settings: ...


@dataclass(frozen=True, slots=True)
class S3:
    """An S3 server as one test sees it."""

    settings_kwargs: dict[str, Any]
    client: Any
    bucket: str

    @property
    def url(self) -> str:
        """`s3://` and the bucket."""
        return f"s3://{self.bucket}"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No settings of the person or the CI who runs the tests, and no writes to their home."""
    for name in list(os.environ):
        if name.upper().startswith(_OURS):
            monkeypatch.delenv(name)
    for name in ("COLUMNS", "LINES"):  # xdist's, for its own output; a terminal of a test has a size of its own
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.getbasetemp() / "xdg"
    for name in _XDG:
        monkeypatch.setenv(name, str(home / name.lower()))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that persists, as production does."""
    with RedisServer.start(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """An empty database of that server."""
    import redis

    url = f"{redis_server}/{next(_databases)}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def namespace() -> str:
    """A namespace of the test's own, the same for all settings that the test makes."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def settings(request: pytest.FixtureRequest, namespace: str) -> SettingsFactory:
    """Settings for the test: `settings(lease_seconds=1)`. Redis starts unless `broker_url` is given."""

    def make(**overrides: Any) -> Settings:
        if "broker_url" not in overrides:
            overrides["broker_url"] = request.getfixturevalue("redis_url")
        return Settings.load(**{"namespace": namespace, **overrides})

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    with S3Server.start(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    """An empty bucket on that server, with its credentials in the environment and nobody else's configuration."""
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"bucket-{next(_buckets)}"
    s3_server.client().create_bucket(Bucket=bucket)
    yield S3(s3_server.settings_kwargs, s3_server.client(), bucket)
    s3_server.client().delete_bucket(Bucket=bucket)  # this server deletes what is in it, too
