"""`classifleet exporter`: what it shows, and a fleet that has no worker at all."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import QueueDepth
from classifleet.producer import Fleet
from classifleet.worker.overview import STALE_SECONDS, Overview, as_json, drain_seconds, queues_of
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import LONG_MS, QUEUE, Bench
from tests.support import RedisServer, wait_until
from tests.support.environments import make_environment, run
from tests.support.fleet import Worker, start_worker
from tests.support.hand_worker import HandWorker
from tests.support.tiny import MODEL, add_tiny

# The command, in a process in which what only a worker has cannot be imported.
WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "numpy", "PIL", "aiohttp", "obstore", "boto3"}:
            raise ModuleNotFoundError(f"the exporter imports {name}", name=name)
sys.meta_path.insert(0, Refuse())
from classifleet.producer.cli import main
main()
"""
ROOT = Path(__file__).parents[2]
RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
COMMAND = (sys.executable, "-W", "error", "-c", WITHOUT, "exporter")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer.start(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def own(server: RedisServer, settings: SettingsFactory) -> Settings:
    return settings(broker_url=f"{server.url}/0", lease_seconds=2)


@pytest.fixture
def exporter(own: Settings, tmp_path: Path) -> Iterator[Worker]:
    given = {"NAMESPACE": own.namespace, "LEASE_SECONDS": "2"}
    with start_worker(str(own.broker_url), tmp_path / "exporter.log", settings=given, command=COMMAND) as exporter:
        yield exporter


def read_queues(exporter: Worker) -> Mapping[str, Any]:
    with urllib.request.urlopen(f"{exporter.http_url}/queues.json", timeout=10) as answer:
        found: Mapping[str, Any] = json.load(answer)["queues"]
        return found


def test_without_any_worker_nothing_is_lost(own: Settings, exporter: Worker) -> None:
    """Half of the chunks were at work and half were reserved when the last worker died."""
    bench, publisher = Bench(own), Publisher(own)
    with Fleet(own.broker_url, namespace=own.namespace) as fleet, HandWorker(own) as hand:
        job = fleet.submit_many([f"https://example.com/{n}.jpg" for n in range(64)], models="m")
        cancelled = fleet.submit_many(["https://example.com/a.jpg"], models="m")
        assert cancelled.cancel()
        chunks = bench.run(bench.ledger.pending(job.id, 0, 99))
        assert len(chunks) == 2
        bench.begin(job.id, chunks[0], "dead", lease_ms=0)
        keys = [key for key in bench.redis.keys("*") if key.endswith(QUEUE.encode())]
        [key] = [key for key in keys if bench.redis.type(key) == b"list"]
        bench.redis.delete(key)
        wait_until(lambda: publisher.depth(QUEUE) >= 2, "both messages to be published again", 60)
        assert cancelled.wait(30).by_code == {"cancelled": 1}
        assert {result.error.code.value for result in cancelled.results() if result.error} == {"cancelled"}
        while hand.answer():
            pass
        assert (job.wait(30).done, job.progress().state) == (64, "done")
    publisher.close()
    bench.runner.close()


def test_its_extra_is_all_that_it_needs(own: Settings, tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = make_environment(
        tmp_path / "venv", wheel, [*project["dependencies"], *project["optional-dependencies"]["exporter"]]
    )
    assert run(python, "-c", "import torch").returncode == 1
    command = (str(python), "-m", "classifleet.producer.cli", "exporter")
    with start_worker(str(own.broker_url), tmp_path / "e.log", settings={}, command=command) as exporter:
        assert exporter.probe("/queues.json")[0] == 200


def test_it_shows_what_waits(own: Settings, exporter: Worker) -> None:
    bench = Bench(own)
    for index in range(3):
        bench.put("j", str(index), images=5)
    bench.begin("j", "0", lease_ms=LONG_MS)
    wait_until(lambda: read_queues(exporter).get(QUEUE, {}).get("leased_images") == 5, "it to look")
    shown = read_queues(exporter)[QUEUE]
    assert (shown["queued_images"], shown["queued_chunks"], shown["drain_seconds"]) == (10, 2, None)
    metrics = exporter.metrics()
    assert f'classifleet_outstanding_images{{queue="{QUEUE}",state="queued"}} 10.0' in metrics
    assert f'classifleet_queue_drain_seconds{{queue="{QUEUE}"}} +Inf' in metrics
    assert exporter.probe("/livez") == (200, {"dead_threads": []})
    bench.runner.close()


def test_a_fleet_at_zero_wakes_for_what_a_dead_worker_held(
    own: Settings, exporter: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`outstanding_images` is 1 from the submission until the record, though no message waits and no worker lives."""
    given = {
        **{"NAMESPACE": own.namespace, "LEASE_SECONDS": "2"},
        **{"MODELS": MODEL, "MODEL_REPOSITORY": str(add_tiny(tmp_path / "models"))},
    }
    url, publisher = str(own.broker_url), Publisher(own)

    def shown() -> Mapping[str, Any]:
        queue: Mapping[str, Any] = read_queues(exporter)[QUEUE]
        seen.append(queue["outstanding_images"])
        return queue

    with Fleet(url, namespace=own.namespace) as fleet:
        monkeypatch.setenv("RIGGED_SECONDS", "60")
        with start_worker(url, tmp_path / "killed.log", settings=given, command=RIGGED) as worker:
            job = fleet.submit_many([PIXEL], models=MODEL)
            wait_until(lambda: read_queues(exporter)[QUEUE]["outstanding_images"] == 1, "the job to be seen")
            seen: list[int] = []
            wait_until(lambda: shown()["leased_images"] == 1, "the worker to be at it")
            worker.process.signal(signal.SIGKILL)
            worker.process.process.wait()
        assert publisher.depth(QUEUE) == 0  # what LLEN says: there is nothing to do
        wait_until(lambda: shown()["queued_images"] == 1, "its lease to end", 30)
        wait_until(lambda: shown() and publisher.depth(QUEUE) == 1, "its message to be published again", 30)
        assert set(seen) == {1}
        with HandWorker(own) as hand:
            assert hand.answer() == 1
        assert job.wait(30).ok == 1
        wait_until(lambda: shown()["outstanding_images"] == 0, "the exporter to see it")
    publisher.close()


def test_every_queue_of_the_settings_is_shown_before_its_first_image(bench: Bench, settings: SettingsFactory) -> None:
    """An autoscaler that finds no value falls back to a fixed number of replicas."""
    given = settings(pools={"nsfw": "gpu", "imagenet": "default"}, queues=["cpu"])
    overview = Overview(bench.ledger, bench.runner, threading.Event(), queues_of(given))
    bench.put("j", "c", images=3)
    bench.put("k", "c", images=5)
    bench.begin("k", "c")
    lease = bench.begin("j", "c")
    assert bench.run(bench.ledger.park("j", "c", "w1", lease.attempt))
    overview.look()
    found = {name: queue["outstanding_images"] for name, queue in overview.queues().body["queues"].items()}
    pools = ("cpu", "default", "gpu")
    idle = {f"classify.{pool}.{lane}": 0 for pool in pools for lane in ("bulk", "interactive")}
    assert found == {**idle, QUEUE: 5}  # the parked ones are nothing that a worker of this fleet could do
    assert overview.queues().body["queues"][QUEUE]["parked_images"] == 3


def test_sigterm_ends_it_within_a_second(exporter: Worker) -> None:
    start = time.monotonic()
    exporter.process.signal(signal.SIGTERM)
    assert exporter.process.process.wait(5) == 0
    assert time.monotonic() - start < 1


def test_it_waits_for_redis_and_says_so(server: RedisServer, own: Settings, tmp_path: Path) -> None:
    server.process.signal(signal.SIGSTOP)
    try:
        given = {"CONNECT_TIMEOUT_SECONDS": "0.2"}
        with start_worker(
            str(own.broker_url), tmp_path / "e.log", settings=given, command=COMMAND, wait=False
        ) as exporter:
            wait_until(lambda: exporter.probe("/readyz")[0] == 503, "it to listen", 60)
            assert exporter.probe("/livez")[0] == 200
            assert exporter.probe("/queues.json") == (503, {"error": "the ledger's Redis does not answer"})
            server.process.signal(signal.SIGCONT)
            exporter.wait_ready()
    finally:
        server.process.signal(signal.SIGCONT)


def test_old_figures_are_not_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    overview = Overview(bench.ledger, bench.runner, threading.Event())
    assert overview.queues().ok is False
    bench.put("j", "c")
    overview.look()
    assert overview.queues().body["queues"][QUEUE]["queued_images"] == 2
    later = time.monotonic() + STALE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert overview.queues().ok is False


@pytest.mark.parametrize(
    ("queued", "leased", "rate", "expected"),
    [(0, 0, 0.0, 0.0), (0, 0, 5.0, 0.0), (90, 10, 5.0, 20.0), (1, 0, 0.0, math.inf)],
)
def test_how_long_a_queue_takes(queued: int, leased: int, rate: float, expected: float) -> None:
    depth = QueueDepth(1, 1, 0, queued, leased, 7, 0, 1.0, 0.0, rate)
    assert drain_seconds(depth) == expected
    assert as_json(depth)["outstanding_images"] == queued + leased
    assert as_json(depth)["drain_seconds"] == (None if math.isinf(expected) else expected)
