"""The content cache of a real worker, and the Redis that several share: its answers, and its outages."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from classifleet.config import Keys
from classifleet.producer import Fleet
from classifleet.worker.cache import ON_LOOP_BYTES, ContentCache
from classifleet.worker.cache_shared import TIMEOUT_SECONDS, SharedCache, open_cache
from classifleet.worker.decode import DecodeLimits
from tests.conftest import SettingsFactory
from tests.support import RedisServer
from tests.support.fleet import Worker, start_worker
from tests.support.tiny import MODEL, add_tiny
from tests.support.waiting import wait_until, wait_until_async
from tests.unit.test_cache import Bench
from tests.unit.test_pipeline import Brightness, jpeg

COPIES = 40
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"top_k": 1}, {"scores": "all"}, {"threshold": 0.4})


# --- a worker ------------------------------------------------------------------------------------------------------


def counted(worker: Worker, outcome: str) -> float:
    found = re.search(rf'^classifleet_cache_total{{.*outcome="{outcome}".*}} (\S+)$', worker.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def records(fleet: Fleet, paths: list[Path], **options: Any) -> list[dict[str, Any]]:
    """The records of a job, without what differs between any two jobs."""
    job = fleet.submit_many([(f"{n}", path.as_uri()) for n, path in enumerate(paths)], models=MODEL, **options)
    found = sorted((result.to_dict() for result in job.results()), key=lambda record: int(record["id"]))
    return [
        {k: v for k, v in record.items() if k not in ("job", "worker", "timings_ms", "finished_at")}
        for record in found
    ]


def test_re_uploads_have_the_records_that_a_worker_without_a_cache_writes(tmp_path: Path, photos: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    paths = [*sorted(photos.iterdir()), broken]
    plain = {"MODEL_REPOSITORY": str(add_tiny(tmp_path / "models")), "FILE_ROOTS": f"{photos},{tmp_path}"}
    cached = {**plain, "CONTENT_CACHE": MODEL}
    with RedisServer.start(tmp_path / "redis") as server:
        databases = [f"{server.url}/{n}" for n in range(3)]
        shared = {**cached, "CONTENT_CACHE_URL": databases[2]}
        with (
            Fleet(databases[0]) as without,
            start_worker(databases[0], tmp_path / "plain.log", settings=plain),
        ):
            expected = [records(without, paths, **options) for options in OPTIONS]
        with Fleet(databases[1], chunk_size=8) as fleet:
            with start_worker(databases[1], tmp_path / "first.log", settings=shared) as worker:
                assert [records(fleet, paths, **options) for options in OPTIONS] == expected
                photos_seen = len(paths) - 1
                assert counted(worker, "hit") == photos_seen * (len(OPTIONS) - 1)
                assert len(records(fleet, paths[:1] * COPIES)) == COPIES
                assert counted(worker, "miss") == photos_seen + len(OPTIONS)
                with redis.Redis.from_url(databases[2]) as client:
                    wait_until(lambda: client.dbsize() == photos_seen, "all to be written")
                    assert {key.partition(b":content:")[0] for key in client.scan_iter()} == {b"classifleet:{default}"}
            with start_worker(databases[1], tmp_path / "second.log", settings=shared) as worker:
                assert [records(fleet, paths, **options) for options in OPTIONS] == expected
                assert counted(worker, "remote") == photos_seen
                assert counted(worker, "miss") == len(OPTIONS), "of the broken picture alone"
    lines = [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines()]
    assert [line for line in lines if "image failed" in line] == []


# --- the Redis that is shared --------------------------------------------------------------------------------------


@asynccontextmanager
async def shared_cache(url: str, **options: Any) -> AsyncIterator[SharedCache]:
    cache = SharedCache(url, Keys("n"), **{"ttl_seconds": 60, **options})
    try:
        yield cache
    finally:
        await cache.close()


def test_what_one_wrote_another_reads_in_few_round_trips(redis_url: str) -> None:
    entries = {hashlib.sha256(bytes([n])).digest(): bytes([n]) * 20 for n in range(64)}

    async def run() -> None:
        async with shared_cache(redis_url, ttl_seconds=77) as one, shared_cache(redis_url) as other:
            for key, entry in entries.items():
                one.put(key, entry)
            with redis.Redis.from_url(redis_url) as client:
                await wait_until_async(lambda: client.dbsize() == len(entries), "all to be written")
                assert {int(client.ttl(key)) for key in client.scan_iter()} <= {76, 77}
                client.config_resetstat()
                assert await asyncio.gather(*map(other.get, entries)) == list(entries.values())
                assert await other.get(b"unknown") is None
                assert client.info("commandstats")["cmdstat_mget"]["calls"] <= 4

    asyncio.run(run())


def test_a_redis_that_does_not_answer_costs_one_image_a_moment() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with shared_cache(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as cache:
                start = time.monotonic()
                assert await asyncio.gather(*(cache.get(bytes([n])) for n in range(32))) == [None] * 32
                assert time.monotonic() - start < 10 * TIMEOUT_SECONDS
                start = time.monotonic()
                for n in range(100):
                    cache.put(bytes([n]), b"x")
                    assert await cache.get(bytes([n])) is None
                assert time.monotonic() - start < TIMEOUT_SECONDS, "nobody asks for a while"

    asyncio.run(run())


def test_a_redis_that_comes_back_is_used_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifleet.worker.cache_shared.REST_SECONDS", 0.05)

    async def run() -> None:
        async with shared_cache(redis_url) as cache:
            with redis.Redis.from_url(redis_url) as client:
                for key in (b"a", b"b"):
                    client.set(Keys("n").content(key.hex()), key * 9)
                assert await cache.get(b"a") == b"a" * 9
                client.client_kill_filter(_type="normal", skipme=True)
                async with asyncio.timeout(10):
                    while await cache.get(b"b") is None:
                        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_redis_that_is_full_takes_nothing_and_is_still_read(tmp_path: Path) -> None:
    async def run(server: RedisServer) -> None:
        with server.client() as client:
            client.set(Keys("n").content(b"old".hex()), b"old")
            client.config_set("maxmemory", 1)
            client.config_set("maxmemory-policy", "noeviction")
        async with shared_cache(f"{server.url}/0") as cache:
            cache.put(b"new", bytes(1000))
            assert await cache.get(b"old") == b"old"

    with RedisServer.start(tmp_path) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("garbage", [b"", b"x", bytes(24), bytes(10_000)])
def test_what_others_put_into_it_is_no_answer(redis_url: str, settings: SettingsFactory, garbage: bytes) -> None:
    chosen = settings(content_cache=["*"], content_cache_url=redis_url)
    picture = jpeg(200)

    async def run() -> None:
        place = Bench({"a@1": Brightness()}, {"a": picture})
        cache = open_cache(chosen, DecodeLimits())
        assert isinstance(cache, ContentCache)
        place.pipeline._cache = cache
        plan = cache.plan(place.pipeline._models)
        assert plan is not None
        with redis.Redis.from_url(redis_url) as client:
            key = Keys(chosen.namespace).content((hashlib.sha256(picture).digest() + plan.key).hex())
            client.set(key, garbage)
            [record] = await place.classify("a")
            assert record["models"]["a@1"]["top"] == "light"
            await wait_until_async(lambda: client.get(key) != garbage, "the answer to be written")
        await cache.close()
        place.close()

    asyncio.run(run())


def test_a_worker_without_cached_models_has_no_cache(settings: SettingsFactory) -> None:
    assert open_cache(settings(content_cache_url="redis://127.0.0.1:1/0"), DecodeLimits()) is None


@pytest.mark.parametrize("size", [0, 100, ON_LOOP_BYTES, ON_LOOP_BYTES + 1, 1 << 20])
def test_large_images_are_hashed_beside_the_event_loop(settings: SettingsFactory, size: int) -> None:
    data = bytes(size)

    async def run() -> bytes:
        cache = open_cache(settings(content_cache=["*"]), DecodeLimits())
        assert cache is not None
        try:
            return await cache.digest(data, "bulk")
        finally:
            await cache.close()

    assert asyncio.run(run()) == hashlib.sha256(data).digest()
