"""Redis goes away and comes back: nothing is lost, nothing is reported twice, and little is said."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifleet.ledger import _scripts
from classifleet.producer import Fleet, Job
from tests.support import RedisServer, wait_until
from tests.support.fleet import Worker, start_worker
from tests.support.proxy import lossy_proxy
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
IMAGES = 80
LEASE_SECONDS = 2
MOST_LINES = 12  # of warnings and worse, in an outage with 80 chunks, 8 threads and a dozen failed renewals


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "MODEL_REPOSITORY": str(tiny),
        "FILE_ROOTS": str(tmp_path),
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "CHUNKS_IN_FLIGHT": "8",
        "MAX_BATCH": "1",
    }


def submit(fleet: Fleet, folder: Path) -> Job:
    image = folder / "grey.png"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(image)
    return fleet.submit_many([(f"i{n}", f"file://{image}") for n in range(IMAGES)], models=MODEL)


def assert_each_once(job: Job) -> None:
    progress = job.wait(90)
    assert (progress.ok, progress.done, progress.accepted) == (IMAGES, IMAGES, IMAGES)
    assert sorted(result.id for result in job.results()) == sorted(f"i{n}" for n in range(IMAGES))


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def away_for(worker: Worker, seconds: float) -> bool:
    status, body = worker.probe("/livez")
    assert status == 200
    return float(body["away_seconds"].get("ledger", 0)) > seconds


def test_redis_is_killed_under_load_for_longer_than_a_lease(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGGED_SECONDS", "0.1")
    folder, log = tmp_path / "redis", tmp_path / "worker.log"
    with RedisServer.start(folder) as server:
        broker, port = f"{server.url}/0", server.port
        with start_worker(broker, log, settings=settings, command=RIGGED) as worker:
            with Fleet(broker, chunk_size=1) as fleet:
                job = submit(fleet, tmp_path)
                wait_until(lambda: 4 < job.progress().done < IMAGES / 2, "the job to be at work", 60)
            server.process.signal(signal.SIGKILL)
            server.process.process.wait()
            wait_until(lambda: away_for(worker, 2 * LEASE_SECONDS), "an outage longer than a lease", 30)
            with RedisServer.start(folder, port=port), Fleet(broker) as fleet:
                assert_each_once(fleet.job(job.id))
                wait_until(lambda: worker.probe("/livez")[1]["away_seconds"] == {}, "the end of the outage")
                said = lines(log)
    states = Counter((line["event"], line["dependency"]) for line in said if "dependency" in line)
    assert states == {
        ("away; tried again until it is back", "ledger"): 1,
        ("away; tried again until it is back", "broker"): 1,
        ("back", "ledger"): 1,
        ("back", "broker"): 1,
    }
    loud = [line for line in said if line["level"] in ("warning", "error", "critical")]
    assert len(loud) <= MOST_LINES, loud


@pytest.mark.parametrize("script", ["BEGIN", "COMMIT"])
def test_an_answer_is_lost(settings: dict[str, str], tmp_path: Path, script: str) -> None:
    """The chunk was granted, or committed, and its worker does not know: it asks again and hears the same."""
    log = tmp_path / "worker.log"
    with RedisServer.start(tmp_path / "redis") as server, lossy_proxy(server.port) as proxy:
        broker = f"{server.url}/0"
        through = {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "LEASE_SECONDS": "600"}
        with start_worker(broker, log, settings=settings | through, command=RIGGED), Fleet(broker) as fleet:
            image = tmp_path / "grey.png"
            Image.new("RGB", (32, 32), (90, 90, 90)).save(image)
            proxy.lose(getattr(_scripts, script).sha1.encode())
            result = fleet.submit(f"file://{image}", models=MODEL).result(60)
            assert result.ok
            assert proxy.lost == 1
            assert result.to_dict()["attempt"] == 1
            assert fleet.queues()["classify.default.interactive"].leased_chunks == 0
