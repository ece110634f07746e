"""SIGTERM, and SIGTERM again: nothing is lost, nobody is said to have died, and others take the work at once."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from classifleet.producer import Fleet, Job
from classifleet.worker.exits import EXIT_MEMORY
from tests.support import RedisServer, wait_until
from tests.support.fleet import Worker, start_worker
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
IMAGES = 24
LEASE_SECONDS = 600  # whatever is done within a test was not waiting for a lease to run out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with RedisServer.start(tmp_path / "redis") as server:
        yield f"{server.url}/0"


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "MODEL_REPOSITORY": str(tiny),
        "FILE_ROOTS": str(tmp_path),
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "CHUNKS_IN_FLIGHT": "4",
        "MAX_BATCH": "1",
    }


def submit(fleet: Fleet, folder: Path) -> Job:
    image = folder / "grey.png"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(image)
    return fleet.submit_many([(f"i{n}", f"file://{image}") for n in range(IMAGES)], models=MODEL)


def at_work(worker: Worker, job: Job) -> bool:
    return 0 < job.progress().done < IMAGES and 'classifleet_chunks_total{outcome="run"}' in worker.metrics()


def ended(worker: Worker, seconds: float = 40) -> int:
    return worker.process.process.wait(seconds)


def logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def events(log: Path) -> Counter[str]:
    return Counter(line["event"] for line in logged(log))


def nobody_died(client: redis.Redis) -> bool:
    return all(int(client.hget(key, "deaths") or 0) == 0 for key in client.keys("classifleet:{default}:chunk:*"))


def assert_each_once(job: Job) -> None:
    progress = job.wait(60)
    assert (progress.ok, progress.accepted) == (IMAGES, IMAGES)
    assert sorted(result.id for result in job.results()) == sorted(f"i{n}" for n in range(IMAGES))


def test_what_is_at_work_is_finished(
    broker: str, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGGED_SECONDS", "0.3")
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with Fleet(broker, chunk_size=2) as fleet, redis.Redis.from_url(broker) as client:
        job = submit(fleet, tmp_path)
        with start_worker(broker, first, settings=settings, command=RIGGED) as worker:
            wait_until(lambda: at_work(worker, job), "the job to be at work", 60)
            worker.process.signal(signal.SIGTERM)
            wait_until(lambda: worker.probe("/readyz")[1].get("state") == "draining", "the drain")
            assert worker.probe("/readyz")[0] == 503
            assert worker.probe("/livez")[0] == 200
            assert ended(worker) == 0
        said = events(first)
        assert said["drained"] == 1
        assert not said["handed back"]
        assert job.progress().done == 2 * said["chunk"] < IMAGES
        depth = fleet.queues()["classify.default.bulk"]
        assert depth.leased_chunks == 0
        assert nobody_died(client)
        with start_worker(broker, second, settings=settings, command=RIGGED):
            assert_each_once(job)
        assert "Traceback" not in first.read_text()


@pytest.mark.parametrize("why", ["twice", "too slow"])
def test_what_is_not_finished_is_handed_back(
    broker: str, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setenv("RIGGED_SECONDS", "2")
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    drain = {"DRAIN_SECONDS": "3600" if why == "twice" else "0.2"}
    with Fleet(broker, chunk_size=2) as fleet, redis.Redis.from_url(broker) as client:
        job = submit(fleet, tmp_path)
        with start_worker(broker, first, settings=settings | drain, command=RIGGED) as worker:
            run = 'classifleet_chunks_total{outcome="run"}'
            wait_until(lambda: run in worker.metrics(), "the job to be at work", 60)
            worker.process.signal(signal.SIGTERM)
            if why == "twice":
                wait_until(lambda: events(first)["draining"], "the drain")
                worker.process.signal(signal.SIGTERM)
            assert ended(worker) == 0
        assert events(first)["handed back"] > 0
        assert not events(first)["the worker does not end by itself; ended"]
        assert fleet.queues()["classify.default.bulk"].leased_chunks == 0
        assert nobody_died(client)
        monkeypatch.setenv("RIGGED_SECONDS", "0")
        with start_worker(broker, second, settings=settings, command=RIGGED):
            assert_each_once(job)
        assert "published again" not in second.read_text()
        assert "Traceback" not in first.read_text()


def test_too_much_memory_drains(
    broker: str, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGGED_SECONDS", "0.3")
    monkeypatch.setenv("RIGGED_LEAN", "1")
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    limit = {"MAX_RSS_BYTES": str(1 << 20)}
    with Fleet(broker, chunk_size=2) as fleet, redis.Redis.from_url(broker) as client:
        job = submit(fleet, tmp_path)
        with start_worker(broker, first, settings=settings | limit, command=RIGGED, wait=False) as worker:
            assert ended(worker, 90) == EXIT_MEMORY
        said = events(first)
        assert said["too much memory"] == said["draining"] == said["drained"] == 1
        [chunks] = [line["chunks"] for line in logged(first) if line["event"] == "draining"]
        assert chunks > 0, "at work when it began to drain"
        assert not said["handed back"]
        assert 0 < job.progress().done == 2 * said["chunk"] < IMAGES
        assert fleet.queues()["classify.default.bulk"].leased_chunks == 0
        assert nobody_died(client)
        monkeypatch.setenv("RIGGED_SECONDS", "0")
        with start_worker(broker, second, settings=settings, command=RIGGED):
            assert_each_once(job)
