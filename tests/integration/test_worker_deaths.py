"""What a real worker leaves behind when it dies, and how the next one finishes it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from classifleet.config import KEY_TABLE, Keys
from classifleet.producer import ErrorCode, Fleet, Job
from tests.support.fleet import start_worker
from tests.support.services import RedisServer
from tests.support.waiting import wait_until

IMAGES = 160


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with RedisServer.start(tmp_path / "redis") as server:
        yield f"{server.url}/0"


def refs(photos: Path, count: int) -> list[tuple[str, str]]:
    files = sorted(photos.iterdir())
    return [(f"image-{n}", "file://" + quote(str(files[n % len(files)]))) for n in range(count)]


def test_nothing_is_lost_or_doubled(broker: str, zoo: Path, photos: Path, tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    settings = {
        "MODEL_REPOSITORY": str(zoo),
        "MODELS": "imagenet",
        "FILE_ROOTS": str(photos),
        "SINK_ALLOW": f"file://{sink}",
        "LEASE_SECONDS": "2",
    }
    with Fleet(broker, chunk_size=8) as fleet, redis.Redis.from_url(broker) as client:
        with start_worker(broker, tmp_path / "first.log", settings=settings) as worker:
            killed = fleet.submit_many(refs(photos, IMAGES), models="imagenet")
            wait_until(lambda: 0 < killed.progress().done < IMAGES / 2, "the job to be at work", 60)
            depth = fleet.queues()["classify.default.bulk"]
            assert depth.leased_images > 0
            worker.process.signal(signal.SIGKILL)
            worker.process.process.wait()
        lost = fleet.submit_many(refs(photos, 16), models="imagenet")
        assert (
            client.delete(f"{Keys('default').broker}classify.default.bulk") == 1
        )  # the broker forgets; the ledger does not
        cancelled = fleet.submit_many(refs(photos, 24), models="imagenet", sink=f"file://{sink}")
        assert cancelled.cancel()
        assert cancelled.progress().state == "cancelled"
        with start_worker(broker, tmp_path / "second.log", settings=settings) as worker:
            assert_each_once(killed, IMAGES)
            assert_each_once(lost, 16)
            assert cancelled.wait(60).by_code == {"cancelled": 24}
            assert {result.error.code for result in cancelled.results()} == {ErrorCode.CANCELLED}
            manifest = json.loads((sink / cancelled.id / "manifest.json").read_text())
            assert manifest["state"] == "cancelled"
            assert sum(part["images"] for part in manifest["parts"]) == 24
            redeliveries = [line for line in worker.metrics().splitlines() if line.startswith("classifleet_redeliv")]
            assert float(redeliveries[0].split()[1]) > 0
        assert_clean(fleet, client)


def assert_each_once(job: Job, count: int) -> None:
    progress = job.wait(120)
    ids = [result.id for result in job.results()]
    assert sorted(ids) == sorted(f"image-{n}" for n in range(count))
    assert (progress.ok, progress.done, progress.accepted) == (count, count, count)


def assert_clean(fleet: Fleet, client: redis.Redis) -> None:
    """No lease, no queued chunk, no key outside the documented table."""
    for depth in fleet.queues().values():
        assert (depth.queued_chunks, depth.leased_chunks, depth.queued_images, depth.leased_images) == (0, 0, 0, 0)
    known = tuple(row.pattern.partition("<")[0] for row in KEY_TABLE)
    ours = [key.decode() for key in client.keys("classifleet:*")]
    assert ours
    assert [key for key in ours if not key.removeprefix("classifleet:{default}:").startswith(known)] == []
