"""A real worker process on a real Redis, with the zoo's models."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifleet.producer.embedded import free_ports
from tests.support.processes import ManagedProcess
from tests.support.waiting import wait_until

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker."""

    broker_url: str
    http_url: str
    process: ManagedProcess

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        with urllib.request.urlopen(f"{self.http_url}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body of /livez or /readyz; status 0 while nothing listens."""
        try:
            with urllib.request.urlopen(self.http_url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait_ready(self) -> None:
        """Wait for /readyz."""

        def ready() -> bool:
            if not self.process.running():
                raise RuntimeError(f"the worker ended:\n{self.process.tail()}")
            return self.probe("/readyz")[0] == 200

        wait_until(ready, "the worker to be ready", START_SECONDS)


@contextmanager
def start_worker(
    broker_url: str,
    log: Path,
    *,
    settings: Mapping[str, str],
    command: tuple[str, ...] = (sys.executable, "-m", "classifleet.producer.cli", "worker"),
    wait: bool = True,
) -> Iterator[Worker]:
    """Start `classifleet worker` (or another command that starts one) with these settings by name."""
    [port] = free_ports(1)
    quick = {"TUNE_SECONDS": "0", "LOG_FORMAT": "json"}
    given = {"BROKER_URL": broker_url, "HTTP_PORT": str(port), **quick, **settings}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLASSIFLEET_")}
    environment |= {f"CLASSIFLEET_{name}": value for name, value in given.items()}
    with ManagedProcess(command, log, env=environment) as process:
        worker = Worker(broker_url, f"http://127.0.0.1:{port}", process)
        if wait:
            worker.wait_ready()
        yield worker
