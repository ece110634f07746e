"""Images that are parked in Redis, when that Redis hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from classifleet.config import ErrorCode, ImageError, Keys, Settings, parse_reference
from classifleet.ledger import Ledger, SyncRunner, connect
from classifleet.worker.ingest import Fetcher
from classifleet.worker.ingest.sources import BLOB_THREADS
from tests.support.services import RedisServer

SHA256 = "ab" * 32


def test_a_redis_that_hangs_is_given_up_at_the_deadline_and_keeps_no_thread(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / "redis") as server:
        settings = Settings(broker_url=f"{server.url}/0", connect_timeout_seconds=1.0, fetch_timeout_seconds=0.5)
        ledger, url = Ledger(Keys("default")), settings.ledger_url()
        runner = SyncRunner(connect(settings), url)
        runner.client.ping()  # a connection that is open when the server begins to hang

        async def scenario() -> None:
            fetcher = Fetcher(settings, read_blob=lambda *blob: runner.run(ledger.get_blob(*blob)))
            await fetcher.start()
            try:
                server.process.signal(signal.SIGSTOP)
                began = time.monotonic()
                codes = await asyncio.gather(*(code_of(fetcher) for _ in range(BLOB_THREADS + 1)))
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


async def code_of(fetcher: Fetcher) -> ErrorCode:
    """Ask for an image that is not there."""
    with pytest.raises(ImageError) as caught:
        await fetcher.fetch(parse_reference(f"blob:{SHA256}"), job="j", chunk="c")
    return caught.value.code
