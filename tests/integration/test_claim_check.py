"""Large images through an object store: parked by a producer, read and checked by a worker, deleted, swept."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import ErrorCode, ImageError, Payload, Settings, StorageUnavailable, parse_reference
from classifleet.config.claims import Claims
from classifleet.producer import AsyncFleet, Fleet, QueueFull
from classifleet.producer.testing import AsyncInMemoryFleet, InMemoryFleet
from classifleet.worker.ingest import Fetcher
from tests.conftest import S3, SettingsFactory
from tests.fixtures_ledger import Bench
from tests.support.hand_worker import LABEL, HandWorker

SECONDS = 60.0
CHUNK = "00000000"
LARGE = b"x" * 300_000
SHA = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture(params=["file", "s3", "s3 by boto3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings that name a claim store."""
    if request.param == "file":
        return {"claim_store": f"file://{tmp_path}/claims"}
    s3: S3 = request.getfixturevalue("s3")
    client = "boto3" if "boto3" in request.param else "auto"
    return {"claim_store": f"{s3.url}/claims/", "s3_client": client, **s3.settings_kwargs}


@pytest.fixture
def own(settings: SettingsFactory, store: dict[str, Any]) -> Settings:
    """They are no place that jobs may name."""
    return settings(**store, source_allow=["s3://elsewhere"])


@pytest.fixture
def fleet(own: Settings, store: dict[str, Any]) -> Iterator[Fleet]:
    with Fleet(own.broker_url, namespace=own.namespace, **store) as fleet:
        yield fleet


def fetch(settings: Settings, sha256: str = SHA, job: str = "j", chunk: str = CHUNK) -> bytes:
    async def main() -> bytes:
        fetcher = Fetcher(settings, read_blob=lambda *_: None)
        await fetcher.start()
        try:
            return await fetcher.fetch(parse_reference(f"claim:{sha256}"), job=job, chunk=chunk)
        finally:
            await fetcher.close()

    return asyncio.run(main())


def failure(settings: Settings, **changes: str) -> ErrorCode:
    with pytest.raises(ImageError) as raised:
        fetch(settings, **changes)
    return raised.value.code


def names(settings: Settings) -> list[str]:
    return list(Claims(settings)._store().names())


def payload(bench: Bench, job: str = "j") -> Payload:
    return Payload.model_validate_json(bench.run(bench.ledger.chunk(job, CHUNK))["payload"])


def test_a_large_image_goes_by_the_store_and_not_by_redis(fleet: Fleet, own: Settings, bench: Bench) -> None:
    fleet.submit(LARGE, models="m", id="j")
    assert names(own) == [f"{own.namespace}/j/{CHUNK}/{SHA}"]
    assert payload(bench).items[0].ref == f"claim:{SHA}"
    assert not bench.redis.exists(bench.keys.blob("j", CHUNK, SHA))
    assert fetch(own) == LARGE
    Claims(own).delete(payload(bench))
    assert names(own) == []
    assert failure(own) is ErrorCode.NOT_FOUND


def test_only_its_own_chunk_leads_to_an_image(fleet: Fleet, own: Settings) -> None:
    fleet.submit(LARGE, models="m", id="j")
    assert failure(own, job="k") is ErrorCode.NOT_FOUND
    assert failure(own, chunk="00000001") is ErrorCode.NOT_FOUND
    assert failure(own.model_copy(update={"namespace": "other"})) is ErrorCode.NOT_FOUND


def test_other_bytes_than_those_that_were_parked_are_refused(fleet: Fleet, own: Settings) -> None:
    fleet.submit(LARGE, models="m", id="j")
    Claims(own).put("j", CHUNK, {SHA: b"y" * 300_000})
    assert failure(own) is ErrorCode.FETCH_FAILED


def test_a_worker_s_limits_hold(fleet: Fleet, own: Settings) -> None:
    fleet.submit(LARGE, models="m", id="j")
    assert failure(own.model_copy(update={"max_bytes": 299_999})) is ErrorCode.TOO_LARGE
    assert failure(own.model_copy(update={"claim_store": None})) is ErrorCode.FETCH_FAILED


def test_a_job_of_many(fleet: Fleet, own: Settings, tmp_path: Path, bench: Bench) -> None:
    paths = []
    for number in range(30):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(bytes([number]) * 50_000)
    job = fleet.submit_many(paths, models="m", job_id="j", chunk_size=10)
    assert len(names(own)) == 30
    with HandWorker(own) as worker:
        worker.answer()
    assert {result.top for result in job.results()} == {LABEL}
    assert Claims(own).sweep(-60) == 30


def test_a_repetition_stores_nothing_again(fleet: Fleet, own: Settings, bench: Bench) -> None:
    fleet.submit(LARGE, models="m", id="j")
    Claims(own).delete(payload(bench))
    fleet.submit(LARGE, models="m", id="j")
    assert names(own) == []


def test_what_is_refused_is_taken_back(own: Settings, store: dict[str, Any]) -> None:
    limits: dict[str, Any] = {"max_queued_images": {"interactive": 1}}
    with Fleet(own.broker_url, namespace=own.namespace, **store, **limits) as fleet:
        fleet.submit("https://example.com/a", models="m")
        with pytest.raises(QueueFull):
            fleet.submit(LARGE, models="m")
    assert names(own) == []


def test_from_an_event_loop(own: Settings, store: dict[str, Any]) -> None:
    async def main() -> None:
        async with AsyncFleet(own.broker_url, namespace=own.namespace, **store) as fleet:
            await fleet.submit(LARGE, models="m", id="j")

    asyncio.run(main())
    assert fetch(own) == LARGE


# --- a store that is away ---------------------------------------------------------------------------------------


@pytest.fixture
def silent(s3: S3, settings: SettingsFactory) -> Iterator[dict[str, Any]]:
    """Settings of a store that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield {
            "url": settings().broker_url,
            "claim_store": "s3://bucket",
            "s3_endpoint_url": url,
            "s3_path_style": True,
            "connect_timeout_seconds": 0.3,
        }


def test_a_store_that_is_away_is_an_error_in_time(silent: dict[str, Any]) -> None:
    begun = time.monotonic()
    with Fleet(**silent) as fleet:
        with pytest.raises(StorageUnavailable):
            fleet.submit(LARGE, models="m", id="j")
        assert fleet.jobs() == []
    assert time.monotonic() - begun < SECONDS / 6


def test_an_event_loop_goes_on_meanwhile(silent: dict[str, Any]) -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async with AsyncFleet(**silent) as fleet, asyncio.TaskGroup() as group:
            ticking = group.create_task(tick())
            with pytest.raises(StorageUnavailable):
                await fleet.submit(LARGE, models="m")
            ticking.cancel()
        return ticks

    assert asyncio.run(main()) > 10


# --- the twin ---------------------------------------------------------------------------------------------------


def test_a_fleet_in_memory_needs_no_store() -> None:
    with InMemoryFleet({LARGE: {"cat": 1.0}}, claim_store="s3://no-such-bucket") as fleet:
        assert fleet.submit(LARGE, models="m").result(1).top == "cat"
        assert (fleet.submitted[0].ref, fleet.submitted[0].data) == (f"claim:{SHA}", LARGE)

    async def main() -> str:
        async with AsyncInMemoryFleet({LARGE: {"cat": 1.0}}, claim_store="s3://no-such-bucket") as fleet:
            return (await (await fleet.submit(LARGE, models="m")).result(1)).top

    assert asyncio.run(main()) == "cat"
