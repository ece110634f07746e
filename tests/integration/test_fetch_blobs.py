"""Images that are parked in Redis, when that Redis hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from redis import RedisError

from classifleet.config import ErrorCode, ImageError, Keys, LedgerUnavailable, Settings, parse_reference
from classifleet.ledger import Ledger, SyncRunner, connect
from classifleet.worker.ingest import Fetcher
from classifleet.worker.ingest.sources import BLOB_THREADS
from tests.support.services import RedisServer
from tests.support.waiting import wait_until_async

SHA256 = "ab" * 32


def test_a_redis_that_hangs_is_given_up_at_the_deadline_and_keeps_no_thread(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "redis") as server:
        settings = Settings(broker_url=f"{server.url}/0", connect_timeout_seconds=1.0, fetch_timeout_seconds=0.2)
        ledger, url = Ledger(Keys("default")), settings.ledger_url()
        runner = SyncRunner(connect(settings), url)
        runner.client.ping()  # a connection that is open when the server begins to hang

        async def scenario() -> None:
            fetcher = Fetcher(settings, read_blob=lambda *blob: runner.run(ledger.get_blob(*blob)))
            await fetcher.start()
            try:
                server.process.signal(signal.SIGSTOP)
                began = time.monotonic()
                codes = await asyncio.gather(*(code_of(fetcher, seconds=0.5) for _ in range(BLOB_THREADS + 1)))
                assert set(codes) == {ErrorCode.FETCH_TIMEOUT}
                assert time.monotonic() - began < 3
                server.process.signal(signal.SIGCONT)
                async with asyncio.timeout(20):
                    while await code_of(fetcher) is not ErrorCode.NOT_FOUND:
                        pass  # the threads are still at the calls that hang
            finally:
                server.process.signal(signal.SIGCONT)
                await fetcher.close()

        try:
            asyncio.run(scenario())
        finally:
            runner.close()


def test_an_outage_of_redis_is_waited_for_and_not_the_image_s_error(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "redis") as server:
        settings = Settings(broker_url=f"{server.url}/0", connect_timeout_seconds=0.2, fetch_timeout_seconds=0.2)
        runner = SyncRunner(connect(settings), settings.ledger_url())
        failures = []

        def read(*_: str) -> bytes:
            try:
                runner.client.ping()
            except RedisError as error:
                failures.append(error)
                raise LedgerUnavailable("away") from error
            return b"image"

        async def scenario() -> bytes:
            fetcher = Fetcher(settings, read_blob=read)
            await fetcher.start()
            try:
                server.process.signal(signal.SIGSTOP)
                image = asyncio.create_task(fetcher.fetch(parse_reference(f"blob:{SHA256}"), job="j", chunk="c"))
                await wait_until_async(lambda: len(failures) > 2, "three tries")
                assert not image.done()
                server.process.signal(signal.SIGCONT)
                return await image
            finally:
                server.process.signal(signal.SIGCONT)
                await fetcher.close()

        try:
            assert asyncio.run(scenario()) == b"image"
        finally:
            runner.close()


async def code_of(fetcher: Fetcher, seconds: float | None = None) -> ErrorCode:
    """Ask for an image that is not there."""
    with pytest.raises(ImageError) as caught:
        await fetcher.fetch(parse_reference(f"blob:{SHA256}"), job="j", chunk="c", deadline_seconds=seconds)
    return caught.value.code
