"""Brokers other than Redis for integration tests: RabbitMQ and an SQS server, on free ports of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from classifleet.producer.embedded import free_ports
from tests.support.processes import ManagedProcess
from tests.support.services import require_service
from tests.support.waiting import wait_until

_START_SECONDS = 120.0


def rabbitmq_executable() -> Path | None:
    """The server's own start script; the one on PATH changes the user."""
    installed = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    return installed[-1] if installed and shutil.which("epmd") else None


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """A node of its own, with its data in `folder`; yields its URL. About ten seconds."""
    executable = require_service("RabbitMQ (apt-get install rabbitmq-server)", rabbitmq_executable())
    folder.mkdir(parents=True, exist_ok=True)
    port, distribution, epmd = free_ports(3)
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    (folder / "enabled_plugins").write_text("[].\n")
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"classifleet-test-{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        # Makes the script become the node, which then ends with the test, and not stay beside it.
        "NOTIFY_SOCKET": str(folder / "no-systemd"),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with ExitStack() as stack:
        # In the foreground and ours: else the node leaves one behind.
        names = ManagedProcess(
            ["epmd", "-port", str(epmd), "-address", "127.0.0.1"], folder / "epmd.log", graceful=False
        )
        stack.enter_context(names)
        wait_until(lambda: _listens(epmd), "epmd")
        node = stack.enter_context(
            ManagedProcess([executable], folder / "rabbitmq.log", env=environment, graceful=False)
        )
        wait_until(lambda: _alive(node) and _listens(port), "RabbitMQ", _START_SECONDS)
        yield f"amqp://guest:guest@127.0.0.1:{port}//"


@contextmanager
def sqs(folder: Path) -> Iterator[str]:
    """moto's server; yields a broker's URL. What it holds is lost at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    [port] = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with ManagedProcess(command, folder / "moto.log", graceful=False) as process:
        wait_until(lambda: _alive(process) and _listens(port), "moto's server", _START_SECONDS)
        yield f"sqs://test-access-key:test-secret-key@127.0.0.1:{port}"


def _alive(process: ManagedProcess) -> bool:
    if not process.running():
        raise RuntimeError(f"the server ended:\n{process.tail()}")
    return True


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
