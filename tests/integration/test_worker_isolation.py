"""An image that kills the process is convicted, and nobody else: not its neighbours, not other chunks in flight."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from PIL import Image

from classifleet.producer import ErrorCode, Fleet, Job
from tests.chaos.hostile import harmful
from tests.support import RedisServer, wait_until
from tests.support.fleet import Worker, start_worker
from tests.support.rigged_worker import MAGENTA
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
DECODER = (sys.executable, "-m", "tests.chaos.saboteur", "decoder")
SUSPECT_DEATHS = 2
DEATHS = SUSPECT_DEATHS + 2  # and the two alone with it


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with RedisServer.start(tmp_path / "redis") as server:
        yield f"{server.url}/0"


def paint(folder: Path, name: str, color: tuple[int, int, int]) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    Image.new("RGB", (32, 32), color).save(path)
    return f"file://{path}"


def outcome(worker: Worker, jobs: list[Job]) -> str:
    if not worker.process.running():
        return "died"
    return "done" if all(job.progress().state == "done" for job in jobs) else ""


def finish_with_restarts(
    broker: str, settings: dict[str, str], log: Path, jobs: list[Job], command: tuple[str, ...] = RIGGED
) -> int:
    """Start a worker again whenever it dies, as Kubernetes does; how often it died."""
    deaths = 0
    while True:
        with start_worker(broker, log, settings=settings, command=command, wait=False) as worker:
            died = wait_until(partial(outcome, worker, jobs), "the jobs to end, or the worker", 60) == "died"
        if not died:
            return deaths
        deaths += 1
        assert deaths <= DEATHS, log.read_text()


def test_only_the_image_that_kills_is_poison(broker: str, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    grey, killer = paint(folder, "grey", (90, 90, 90)), paint(folder, "killer", MAGENTA)
    settings = {
        "MODEL_REPOSITORY": str(tiny),
        "FILE_ROOTS": str(folder),
        "LEASE_SECONDS": "1",
        "DECODE_ISOLATION": "never",
        "CHUNKS_IN_FLIGHT": "8",
    }
    with Fleet(broker, chunk_size=4) as fleet, redis.Redis.from_url(broker) as client:
        items = [(f"i{n}", killer if n == 6 else grey) for n in range(16)]
        guilty = fleet.submit_many(items, models=MODEL)
        others = [fleet.submit_many([(f"o{n}", grey) for n in range(8)], models=MODEL) for _ in range(2)]
        deaths = finish_with_restarts(broker, settings, tmp_path / "worker.log", [guilty, *others])
        assert deaths == DEATHS
        results = {result.id: result for result in guilty.results()}
        assert len(results) == 16
        assert [name for name, result in results.items() if not result.ok] == ["i6"]
        assert results["i6"].error is not None
        assert results["i6"].error.code is ErrorCode.POISON
        assert [result.ok for job in others for result in job.results()] == [True] * 16
        [key] = client.zrange("classifleet:{default}:dead", 0, -1)
        letter = client.hgetall(b"classifleet:{default}:dead:" + key)
        assert json.loads(letter[b"letter"])["item"] == {"id": "i6", "ref": killer}
        ended = [json.loads(line)["ended"] for line in letter[b"history"].decode().splitlines()]
        assert ended == ["died"] * DEATHS


def test_the_sandbox_dies_in_the_place_of_the_third_worker(broker: str, tiny: Path, tmp_path: Path) -> None:
    """A decoder that segfaults: two workers die of it, and then a process that decodes this image alone."""
    folder = tmp_path / "images"
    grey = paint(folder, "grey", (90, 90, 90))
    (folder / "killer.png").write_bytes(harmful((folder / "grey.png").read_bytes(), "segfault"))
    settings = {"MODEL_REPOSITORY": str(tiny), "FILE_ROOTS": str(folder), "LEASE_SECONDS": "1"}
    with Fleet(broker, chunk_size=4) as fleet:
        items = [(f"i{n}", f"file://{folder}/killer.png" if n == 2 else grey) for n in range(4)]
        guilty = fleet.submit_many(items, models=MODEL)
        log = tmp_path / "worker.log"
        assert finish_with_restarts(broker, settings, log, [guilty], DECODER) == SUSPECT_DEATHS
        results = {result.id: result for result in guilty.results()}
    assert [name for name, result in results.items() if not result.ok] == ["i2"]
    assert results["i2"].error.code is ErrorCode.POISON
    assert "SIGSEGV" in results["i2"].error.message
