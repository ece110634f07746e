"""Prometheus and its promtool, from Debian's package `prometheus`."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from classifleet.producer.embedded import free_ports
from tests.support.processes import ManagedProcess
from tests.support.services import require_service
from tests.support.waiting import wait_until

PACKAGE: Final = "Prometheus (apt-get install prometheus)"
SCRAPE_SECONDS: Final = 1
NAMESPACE: Final = "fleet"
_START_SECONDS: Final = 30.0
_LONGEST_SECONDS: Final = 60


def executable(name: str) -> Path:
    """`prometheus` or `promtool`; without it the test is skipped, or fails when `CI` is set."""
    found = shutil.which(name)
    return require_service(PACKAGE, Path(found) if found else None)


def promtool(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    command = [str(executable("promtool")), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False)


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query; each has `metric` and `value`."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def get(self, what: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]


@contextmanager
def start_prometheus(folder: Path, targets: Mapping[str, str], rules: Path) -> Iterator[Prometheus]:
    """A server that scrapes these targets (job: host:port) every second, and has these rules.

    All are of one namespace. Labels that a target gives itself are kept, as is usual for kube-state-metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    [port] = free_ports(1)
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": job,
                "honor_labels": True,
                "static_configs": [{"targets": [target], "labels": {"namespace": NAMESPACE}}],
            }
            for job, target in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command: list[str | Path] = [
        executable("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with ManagedProcess(command, folder / "prometheus.log") as process:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(lambda: _answers(server, process), "Prometheus", _START_SECONDS)
        yield server


def _answers(server: Prometheus, process: ManagedProcess) -> bool:
    if not process.running():
        raise RuntimeError(f"Prometheus ended:\n{process.tail()}")
    try:
        return {target["health"] for target in server.get("targets")["activeTargets"]} == {"up"}
    except OSError:
        return False
