"""Peers on Celery: a task for each photo, results in Redis; `group(…)().get()` for all of them."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import celery
from benchmarks._machine import version
from benchmarks.peers import environments, processes
from tests.support.processes import ManagedProcess
from tests.support.services import RedisServer

RESULT_SECONDS: Final = 600.0
_KEY: Final = b"celery-task-meta-"


@dataclass(slots=True)
class CeleryPeer:
    """A worker on a Redis of its own.

    Attributes:
        name: As in tables.
        model_file: What it serves.
        app: Module of the application.
        options: Of `celery worker`.
        environment: Of `requirements-<environment>.txt`; empty: this one.
    """

    name: str
    model_file: Path
    app: str
    options: Sequence[str]
    environment: str = ""
    details: str = ""
    _stack: ExitStack = field(default_factory=ExitStack)
    _client: Any = None
    _server: RedisServer | None = None
    _process: ManagedProcess | None = None

    def start(self, folder: Path) -> None:
        """Redis first, then the worker."""
        python = environments.python(self.environment) if self.environment else Path(sys.executable)
        self.details = environments.pinned(self.environment) if self.environment else f"celery {version('celery')}"
        self._server = self._stack.enter_context(RedisServer.start(folder / "redis"))
        url = f"{self._server.url}/0"
        command: list[str | Path] = [
            python,
            "-m",
            "celery",
            "-A",
            self.app,
            "worker",
            "--loglevel",
            "WARNING",
            *self.options,
        ]
        self._process = processes.start(command, folder, self.model_file, {"BENCH_REDIS": url})
        self._stack.enter_context(self._process)
        self._client = celery.Celery(broker=url, backend=url, set_as_current=False)

    def ready(self, path: Path) -> None:
        """Wait until a photo is answered."""
        self.classify([path])

    def classify(self, paths: Sequence[Path]) -> list[int]:
        """One group of tasks."""
        signature = self._client.signature
        tasks = celery.group((signature("classify", args=[str(path)]) for path in paths), app=self._client)
        answers: list[int] = tasks.apply_async().get(timeout=RESULT_SECONDS)
        return answers

    def open_loop(self, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
        """A task at each moment; its result is heard of as a client's `get` hears of it, by a subscription."""
        assert self._server is not None
        due: dict[str, float] = {str(number): 0.0 for number in range(len(arrivals))}
        ended: dict[str, float] = {}
        listening = threading.Event()
        thread = threading.Thread(target=_listen, args=(self._server, len(arrivals), ended, listening))
        thread.start()
        listening.wait()
        began = time.perf_counter()
        for number, at in enumerate(arrivals):
            time.sleep(max(0.0, began + at - time.perf_counter()))
            due[str(number)] = began + at
            path = str(paths[number % len(paths)])
            self._client.send_task("classify", args=[path], task_id=f"{began}-{number}")
        thread.join()
        return [ended[task] - due[task.rpartition("-")[2]] for task in ended]

    def stop(self) -> None:
        """The worker, then Redis."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._stack.close()


def _listen(server: RedisServer, count: int, ended: dict[str, float], listening: threading.Event) -> None:
    """Note when each result is announced."""
    with server.client() as client, client.pubsub() as subscription:
        subscription.psubscribe(_KEY.decode() + "*")
        for message in subscription.listen():
            if message["type"] == "psubscribe":
                listening.set()
            elif json.loads(message["data"])["status"] == "SUCCESS":
                ended[message["channel"].removeprefix(_KEY).decode()] = time.perf_counter()
                if len(ended) == count:
                    return
