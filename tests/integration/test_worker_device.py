"""A device that is lost: the process ends for a restart, and others do the work as if nothing had been."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import redis
from PIL import Image

from classifleet.producer import Fleet
from classifleet.worker.exits import EXIT_DEVICE
from tests.support import RedisServer, wait_until
from tests.support.fleet import start_worker
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
WHY = "the device is lost: RuntimeError: CUDA error: device-side assert triggered"
IMAGES = 24


def events(log: Path) -> Counter[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return Counter(line["event"] for line in lines)


def test_the_work_of_a_lost_device_is_done_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGGED_LOST", str(tmp_path / "lost"))
    first, second, image = tmp_path / "first.log", tmp_path / "second.log", tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(image)
    settings = {
        "MODEL_REPOSITORY": str(add_tiny(tmp_path / "models")),
        "FILE_ROOTS": str(tmp_path),
        "LEASE_SECONDS": "600",  # nothing here waits for a lease to run out
    }
    with (
        RedisServer.start(tmp_path / "redis") as server,
        Fleet(f"{server.url}/0", chunk_size=2) as fleet,
        redis.Redis.from_url(f"{server.url}/0") as client,
        start_worker(f"{server.url}/0", first, settings=settings, command=RIGGED) as lost,
    ):
        job = fleet.submit_many([(f"i{n}", f"file://{image}") for n in range(IMAGES)], models=MODEL)
        wait_until(lambda: WHY in lost.probe("/livez")[1].get("problems", ()), "/livez to say why", 30)
        assert lost.process.process.wait(40) == EXIT_DEVICE
        said = events(first)
        assert (said["the device is lost"], said["drained"]) == (1, 1)
        assert said["handed back"] > 0
        assert fleet.queues()["classify.default.bulk"].leased_chunks == 0
        deaths = [int(client.hget(key, "deaths") or 0) for key in client.keys("classifleet:{default}:chunk:*")]
        assert max(deaths) == 1, "an image that kills devices must become a suspect"
        with start_worker(f"{server.url}/0", second, settings=settings, command=RIGGED):
            progress = job.wait(60)
        assert (progress.ok, progress.accepted) == (IMAGES, IMAGES)
    assert "published again" not in second.read_text()
    assert "Traceback" not in first.read_text()
