"""The life of models in a real worker: they come without a restart, at their first use, as canaries and as shadows."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from classifleet.config import Keys
from classifleet.ledger import Ledger, SyncRunner
from classifleet.producer import Fleet, Result
from classifleet.worker import versions
from tests.support import RedisServer, wait_until
from tests.support.flavours import add_flavour
from tests.support.fleet import Worker, start_worker

CANARY = [("1", 50.0), ("2", 50.0)]


@dataclass(frozen=True, slots=True)
class Place:
    """A worker, its model repository, and an image that it may read."""

    worker: Worker
    models: Path
    image: str

    def states(self) -> dict[str, str]:
        body: dict[str, Any] = self.worker.probe("/readyz")[1]
        states: dict[str, str] = body["models"]
        return states

    def look(self) -> None:
        os.kill(self.worker.process.pid, signal.SIGHUP)

    def reaches(self, key: str, state: str) -> None:
        wait_until(lambda: self.states().get(key) == state, f"{key} to be {state}")

    def metric(self, name: str) -> float:
        lines = self.worker.metrics().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("lifecycle")
    models, images = folder / "models", folder / "images"
    for name, version in (("m", 1), ("z", 1), ("c", 1), ("c", 2), ("s", 1), ("s", 2)):
        add_flavour(models, name, version, says=version - 1)
    images.mkdir()
    Image.new("RGB", (32, 32), (90, 90, 90)).save(images / "grey.png")
    settings = {
        "MODEL_REPOSITORY": str(models),
        "FILE_ROOTS": str(images),
        "MODEL_POLL_SECONDS": "0",
        "LAZY_MODELS": "z,s@2",  # a shadow is not lazy
        "CANARY": "c=1:50,2:50",
        "SHADOW": "s=2:100",
        "DECODE_ISOLATION": "never",
    }
    with RedisServer.start(folder / "redis") as server:
        url = f"{server.url}/0"
        with start_worker(url, folder / "worker.log", settings=settings) as worker:
            yield Place(worker, models, f"file://{images / 'grey.png'}")


@pytest.fixture
def fleet(place: Place) -> Iterator[Fleet]:
    with Fleet(place.worker.broker_url) as fleet:
        yield fleet


def models_of(result: Result) -> list[str]:
    result.raise_for_error()
    return list(result.models)


def answered_by(fleet: Fleet, ref: str, model: str) -> str:
    """The version that an image was answered by."""
    [name] = models_of(fleet.submit(ref, models=model).result(30))
    return name


def test_what_is_loaded_is_shown(place: Place) -> None:
    assert place.states() == dict.fromkeys(("c@1", "c@2", "m@1", "s@1", "s@2"), "ready") | {"z@1": "lazy"}
    assert place.metric('classifleet_models{state="lazy"}') == 1


def test_a_lazy_model_is_loaded_when_it_is_asked_for(place: Place, fleet: Fleet) -> None:
    assert answered_by(fleet, place.image, "z") == "z@1"
    assert place.states()["z@1"] == "ready"
    with redis.Redis.from_url(place.worker.broker_url) as client:
        runner, ledger = SyncRunner(client, place.worker.broker_url), Ledger(Keys("default"))
        wait_until(lambda: "z@1" in runner.run(ledger.workers())[0].models, "the roster to show it", 5)


def test_a_job_is_answered_by_one_version_of_a_canary(place: Place, fleet: Fleet) -> None:
    jobs = [fleet.submit_many([place.image] * 6, models="c", chunk_size=2) for _ in range(10)]
    seen = set()
    for job in jobs:
        names = {name for result in job.results() for name in models_of(result)}
        assert names == {f"c@{versions.chosen(job.id, 'c', CANARY)}"}
        seen |= names
    assert seen <= {"c@1", "c@2"}


def test_a_shadow_is_compared_and_answers_nobody(place: Place, fleet: Fleet) -> None:
    for _ in range(5):
        assert answered_by(fleet, place.image, "s") == "s@1"
    counted = 'classifleet_shadow_total{model="s@2",outcome="disagree"}'
    wait_until(lambda: place.metric(counted) == 5, "the comparisons")
    assert place.metric('classifleet_shadow_difference_count{model="s@2"}') == 5
    assert answered_by(fleet, place.image, "s@2") == "s@2", "who asks for it gets it"


def test_a_new_version_comes_without_a_restart_and_is_for_new_jobs(place: Place, fleet: Fleet) -> None:
    """A job that began before keeps its version to its last image."""
    go_on = False

    def items() -> Iterator[str]:
        nonlocal go_on
        yield from [place.image] * 200  # more than are sent at one time
        wait_until(lambda: fleet.job("old").progress().done > 0, "the first chunks")
        add_flavour(place.models, "m", 2, says=1)
        place.look()
        place.reaches("m@2", "ready")
        assert answered_by(fleet, place.image, "m") == "m@2"
        yield from [place.image] * 4
        go_on = True

    job = fleet.submit_many(items(), models="m", job_id="old", chunk_size=1)
    assert {name for result in job.results() for name in models_of(result)} == {"m@1"}
    assert go_on
    assert job.progress().total == 204
    assert answered_by(fleet, place.image, "m@1") == "m@1"


def test_a_version_that_is_broken_says_so_and_ends_nothing(place: Place, fleet: Fleet) -> None:
    before = answered_by(fleet, place.image, "z")
    add_flavour(place.models, "z", 2)
    (place.models / "z" / "2" / "model.pt").write_bytes(b"half")
    place.look()
    place.reaches("z@2", "lazy")
    result = fleet.submit(place.image, models="z@2").result(30)
    assert result.error is not None
    assert (result.error.code, "sha256" in result.error.message) == ("model_failed", True)
    assert place.metric('classifleet_model_load_failures_total{model="z@2"}') == 1
    status, body = place.worker.probe("/readyz")
    assert (status, list(body["problems"])) == (200, ["z@2"])
    assert answered_by(fleet, place.image, "z") == before
    log = [json.loads(line) for line in place.worker.process.log.read_text().splitlines() if line.startswith("{")]
    assert [line["level"] for line in log if line["event"] == "model not loaded"] == ["error"]
