"""What a worker cannot do anything about: a model that hangs, payloads and messages that it does not understand."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from PIL import Image

from classifleet.config import Keys, Settings
from classifleet.config.celery_app import Publisher
from classifleet.config.payload import Message, message
from classifleet.ledger import Ledger, Put, SyncRunner, connect
from classifleet.producer import Fleet
from tests.support import wait_until
from tests.support.fleet import start_worker
from tests.support.rigged_worker import CYAN
from tests.support.tiny import MODEL, add_tiny

RIGGED = (sys.executable, "-m", "tests.support.rigged_worker", "worker")
QUEUE = "classify.default.bulk"
SECRET = "a signed URL, for example"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def given(tiny: Path, tmp_path: Path) -> dict[str, str]:
    return {"MODEL_REPOSITORY": str(tiny), "FILE_ROOTS": str(tmp_path), "LEASE_SECONDS": "60"}


def test_a_model_that_hangs(redis_url: str, given: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    limits = {"STUCK_SECONDS": "1", "CHUNK_TIMEOUT_SECONDS": "2", "DRAIN_SECONDS": "1"}
    image = tmp_path / "cyan.png"
    Image.new("RGB", (32, 32), CYAN).save(image)
    with start_worker(redis_url, log, settings=given | limits, command=RIGGED) as worker, Fleet(redis_url) as fleet:
        assert worker.probe("/livez") == (200, {"state": "live", "problems": [], "away_seconds": {}})
        fleet.submit(f"file://{image}", models=MODEL)
        wait_until(lambda: worker.probe("/livez")[0] == 503, "the worker to be stuck", 30)
        body = worker.probe("/livez")[1]
        assert body["state"] == "stuck"
        [problem] = [text for text in body["problems"] if text.startswith("a forward pass")]
        assert "has been running for" in problem
        handed_back = 'classifleet_handed_back_total{reason="timeout"} 1.0'
        wait_until(lambda: handed_back in worker.metrics(), "the chunk to be handed back", 30)
        assert fleet.queues()["classify.default.interactive"].parked_chunks == 0
        worker.process.signal(signal.SIGTERM)
        assert worker.process.process.wait(40) == 0


def test_a_hang_that_ends_the_worker_counts_as_a_death(redis_url: str, given: dict[str, str], tmp_path: Path) -> None:
    """Or the image that did it would go from worker to worker: Kubernetes ends what is not live with a SIGTERM."""
    image = tmp_path / "cyan.png"
    Image.new("RGB", (32, 32), CYAN).save(image)
    limits = {"STUCK_SECONDS": "1", "DRAIN_SECONDS": "1"}
    log, keys = tmp_path / "worker.log", Keys("default")
    with start_worker(redis_url, log, settings=given | limits, command=RIGGED) as worker, Fleet(redis_url) as fleet:
        handle = fleet.submit(f"file://{image}", models=MODEL)
        wait_until(lambda: worker.probe("/livez")[0] == 503, "the worker to be stuck", 30)
        worker.process.signal(signal.SIGTERM)
        assert worker.process.process.wait(40) == 0
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        [name] = client.scan_iter(keys.chunk(handle.id, "*"))
        assert client.hmget(name, "state", "deaths") == ["queued", "1"]


def put_strange(runner: SyncRunner, ledger: Ledger) -> None:
    """A chunk of a classifleet that is newer than this one."""
    header = {"queue": QUEUE, "models": f'["{MODEL}"]', "options": "{}", "lane": "bulk", "ttl_seconds": "60"}
    payload = {"v": 2, "job": "strange", "chunk": "0", "items": [], "models": [MODEL], "hologram": SECRET}
    call = ledger.put(
        "strange", header=header, request="r", chunk="0", images=3, payload=json.dumps(payload).encode(),
        digest="0" * 16, window=10, seal=True,
    )  # fmt: skip
    assert runner.run(call).outcome is Put.QUEUED


def test_what_is_not_understood_is_put_aside(redis_url: str, given: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    settings = Settings.load(broker_url=redis_url)
    ledger = Ledger(Keys(settings.namespace))
    runner, publisher = SyncRunner(connect(settings), settings.ledger_url()), Publisher(settings)
    image = tmp_path / "grey.png"
    Image.new("RGB", (32, 32)).save(image)
    with start_worker(redis_url, log, settings=given, command=RIGGED) as worker, Fleet(redis_url) as fleet:
        put_strange(runner, ledger)
        publisher.publish([(QUEUE, message("strange", "0"))])
        publisher.publish([(QUEUE, cast("Message", {"v": 1, "job": SECRET, "chunk": ["0"]}))])
        parked = wait_until(lambda: runner.run(ledger.parked(QUEUE, 10)), "the chunk to be parked", 30)
        assert parked == [("strange", "0")]
        assert runner.run(ledger.chunk("strange", "0"))["deaths"] == "0"
        wait_until(lambda: 'classifleet_chunks_total{outcome="garbage"} 1.0' in worker.metrics(), "the garbage", 30)
        assert 'classifleet_chunks_total{outcome="not_understood"} 1.0' in worker.metrics()
        assert fleet.submit_many([f"file://{image}"], models=MODEL).wait(30).ok == 1
    publisher.close()
    runner.close()
    said = events(log)
    assert [line["level"] for line in said if line["event"] == "payload not understood; parked"] == ["warning"]
    [garbage] = [line for line in said if line["event"] == "not a message of ours"]
    assert garbage["fields"] == ["chunk", "job", "v"]
    assert SECRET not in log.read_text()


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
