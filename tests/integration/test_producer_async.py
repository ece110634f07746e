"""`AsyncFleet`: the surface of `Fleet` on event loops, few threads and connections, cancelling."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import redis

from classifleet.config import Settings
from classifleet.producer import (
    AsyncFleet,
    ErrorCode,
    IdConflict,
    InvalidRequest,
    LedgerUnavailable,
    Result,
    ResultTimeout,
    UnknownJob,
    _flows,
)
from tests.conftest import SettingsFactory
from tests.fixtures_fleet import LiveFleet
from tests.support.hand_worker import LABEL, HandWorker
from tests.support.waiting import wait_until_async

T = TypeVar("T")
SECONDS = 60.0
REF = "https://example.com/a.jpg"


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, in which nothing may be left open or unfinished."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = asyncio.run(main)
        gc.collect()
    return result


@pytest.fixture
def own(settings: SettingsFactory) -> Settings:
    return settings()


@pytest.fixture
def worker(own: Settings) -> Iterator[HandWorker]:
    with HandWorker(own) as worker:
        yield worker


def connect(own: Settings, **settings: Any) -> AsyncFleet:
    return AsyncFleet(own.broker_url, namespace=own.namespace, **settings)


# --- on the live fleet ------------------------------------------------------------------------------------------


def test_one_image(live_fleet: LiveFleet) -> None:
    async def main() -> tuple[Result, str, bool, bool]:
        async with AsyncFleet(live_fleet.url) as fleet:
            photo = live_fleet.photos / "chelsea.jpg"
            handle = await fleet.submit(photo, models=["imagenet", "nsfw"], meta={"user": "42"})
            result = await handle.result(SECONDS)
            return result, pickle.loads(pickle.dumps(handle)), await handle.done(), await handle.cancel()

    result, pickled, done, cancelled = run(main())
    assert (result.ok, result.meta, result["nsfw"].top) == (True, {"user": "42"}, "sfw")
    assert (pickled, done, cancelled) == (result.id, True, False)


def test_a_job_from_an_async_generator(live_fleet: LiveFleet) -> None:
    async def items() -> AsyncIterator[Any]:
        yield f"{live_fleet.web}/rocket.jpg"
        await asyncio.sleep(0)
        yield ("mine", live_fleet.photos / "coffee.jpg")
        yield ("gone", f"{live_fleet.web}/gone.jpg", {"k": "v"})

    async def main() -> dict[str, Result]:
        async with AsyncFleet(live_fleet.url, submission_window=1) as fleet:
            job = await fleet.submit_many(items(), models="imagenet", chunk_size=1)
            results = {result.id: result async for result in job.results()}
            progress = await job.wait(SECONDS)
            assert (progress.ok, progress.by_code, progress.state) == (2, {"not_found": 1}, "done")
            assert len([result async for result in job.results(follow=False)]) == 3
            assert (await job.info()).id in [info.id for info in await fleet.jobs()]
            assert await job.delete()
            with pytest.raises(UnknownJob):
                await job.progress()
        return results

    results = run(main())
    assert set(results) == {"0", "mine", "gone"}
    assert results["gone"].error is not None
    assert results["gone"].error.code is ErrorCode.NOT_FOUND
    assert results["gone"].meta == {"k": "v"}


def test_cancel_a_job(live_fleet: LiveFleet) -> None:
    async def main() -> None:
        async with AsyncFleet(live_fleet.url) as fleet:
            job = await fleet.submit_many([f"{live_fleet.web}/rocket.jpg"] * 100, models="imagenet", chunk_size=1)
            assert await job.cancel()
            progress = await job.wait(SECONDS)
            assert (progress.state, progress.done) == ("cancelled", 100)
            assert progress.by_code["cancelled"] > 30

    run(main())


# --- on a ledger with a worker that answers by hand -------------------------------------------------------------


def test_errors_are_those_of_fleet(own: Settings) -> None:
    async def main() -> None:
        async with connect(own) as fleet:
            handle = await fleet.submit(REF, models="m", id="taken")
            with pytest.raises(IdConflict):
                await fleet.submit(REF, models="n", id="taken")
            with pytest.raises(InvalidRequest):
                await fleet.submit(REF, models="m", lane="fast")  # type: ignore[arg-type]
            with pytest.raises(ResultTimeout):
                await handle.result(0.05)
            with pytest.raises(UnknownJob):
                await fleet.handle("nobody").result(SECONDS)
            depths = await fleet.queues()
            assert depths["classify.default.interactive"].queued_images == 1

    run(main())


def test_cancelling_an_await_does_not_cancel_the_job(own: Settings, worker: HandWorker) -> None:
    async def main() -> Result:
        async with connect(own) as fleet:
            handle = await fleet.submit(REF, models="m")
            waiting = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle.result(), 0.05)
            assert worker.answer() == 1
            return await handle.result(SECONDS)

    assert run(main()).top == LABEL


def test_cancelling_a_submission_leaves_it_repeatable(own: Settings, worker: HandWorker) -> None:
    async def main() -> None:
        async with connect(own) as fleet:
            for pauses in range(12):  # at every place where it waits
                image_id = fleet.new_id()
                submitting = asyncio.create_task(fleet.submit(REF, models="m", id=image_id))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                submitting.cancel()
                await asyncio.gather(submitting, return_exceptions=True)
                handle = await fleet.submit(REF, models="m", id=image_id)
                assert worker.answer() == 1
                assert (await handle.result(SECONDS)).top == LABEL

    run(main())


def test_an_answer_is_heard_of(own: Settings, worker: HandWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flows, "FIRST_LISTEN_SECONDS", SECONDS)  # no re-reading: what is heard must do

    async def main() -> list[Result]:
        async with connect(own) as fleet:
            handles = [await fleet.submit(REF, models="m") for _ in range(3)]
            waiting = [asyncio.create_task(handle.result(SECONDS)) for handle in handles]
            await wait_until_async(lambda: _clients(own, "sub"), "the subscription")
            worker.answer()
            async with asyncio.timeout(SECONDS / 2):
                return await asyncio.gather(*waiting)

    assert [result.top for result in run(main())] == [LABEL] * 3


def test_a_thousand_waiters_share_few_threads_and_connections(own: Settings, worker: HandWorker) -> None:
    async def main() -> tuple[list[Result], int, int]:
        before = threading.active_count()
        async with connect(own) as fleet:
            handles = await asyncio.gather(*(fleet.submit(f"{REF}?{n}", models="m") for n in range(1000)))
            waiting = [asyncio.create_task(handle.result(SECONDS)) for handle in handles]
            await wait_until_async(lambda: _clients(own, "sub"), "the subscription")
            connections = len(_clients(own)) - 1  # one is the hand worker's
            threads = threading.active_count() - before
            assert await asyncio.to_thread(worker.answer) == 1000
            return await asyncio.gather(*waiting), threads, connections

    results, threads, connections = run(main())
    assert {result.top for result in results} == {LABEL}
    assert len({result.id for result in results}) == 1000
    assert threads < 10
    assert connections <= 10


def _clients(own: Settings, counter: str = "") -> list[dict[str, str]]:
    """The server's connections by the name of ours; with a counter (`sub`), those where it is not zero."""
    with redis.Redis.from_url(own.ledger_url()) as client:
        return [c for c in client.client_list() if c["name"] == "classifleet" and (not counter or c[counter] != "0")]


def test_one_fleet_serves_several_loops_one_after_the_other(own: Settings, worker: HandWorker) -> None:
    fleet = connect(own)

    async def main() -> str:
        handle = await fleet.submit(REF, models="m")
        worker.answer()
        return (await handle.result(SECONDS)).top

    async def close() -> None:
        await fleet.close()

    # nobody closes anything between: what a loop had opened ends with it
    assert [run(main()) for _ in range(3)] == [LABEL] * 3
    run(close())


def test_one_fleet_serves_several_loops_at_a_time(own: Settings, worker: HandWorker) -> None:
    fleet = connect(own)
    found: list[str] = []

    async def main() -> None:
        handles = await asyncio.gather(*(fleet.submit(REF, models="m") for _ in range(5)))
        results = await asyncio.gather(*(handle.result(SECONDS) for handle in handles))
        found.extend(result.top for result in results)

    async def close() -> None:
        await wait_until_async(lambda: worker.answer() >= 0 and len(found) == 20, "all answers", SECONDS)
        await fleet.close()

    threads = [threading.Thread(target=run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    run(close())
    for thread in threads:
        thread.join()
    assert found == [LABEL] * 20


def test_a_fleet_is_usable_after_it_was_closed(own: Settings, worker: HandWorker) -> None:
    async def main() -> None:
        fleet = connect(own)
        for _ in range(2):
            async with fleet:
                handle = await fleet.submit(REF, models="m")
                worker.answer()
                assert (await handle.result(SECONDS)).ok

    run(main())


def test_redis_is_away(own: Settings) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with AsyncFleet("redis://127.0.0.1:1", connect_timeout_seconds=0.5) as fleet:
            start = loop.time()
            with pytest.raises(LedgerUnavailable):
                await fleet.submit(REF, models="m")
            with pytest.raises(LedgerUnavailable):
                await fleet.handle("x").result(SECONDS)
            return loop.time() - start

    assert run(main()) < 3  # a second of it is spent on waiting for the subscription
