"""A queue, the parked images or Redis at their limit: refused with a time to try again, or waited for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from classifleet.config import Settings
from classifleet.ledger import Ledger, SyncRunner, connect
from classifleet.producer import (
    AsyncFleet,
    Fleet,
    InvalidRequest,
    JobAbandoned,
    QueueFull,
    UnknownJob,
    _submitting,
)
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import Bench
from tests.support import RedisServer
from tests.support.hand_worker import LABEL, HandWorker
from tests.support.waiting import wait_until

SECONDS = 60.0
REF = "https://example.com/a.jpg"
LARGE = b"x" * 50_000  # over the inline cap


@pytest.fixture
def own(settings: SettingsFactory) -> Settings:
    return settings()


@pytest.fixture
def worker(own: Settings) -> Iterator[HandWorker]:
    with HandWorker(own) as worker:
        yield worker


def fleet_of(own: Settings, **settings: Any) -> Fleet:
    return Fleet(own.broker_url, namespace=own.namespace, **settings)


# --- the queue's limit ------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_try_again(own: Settings, worker: HandWorker) -> None:
    with fleet_of(own, max_queued_images={"interactive": 2}) as fleet:
        for number in range(2):
            fleet.submit(REF, models="m", id=f"taken{number}")
        with pytest.raises(QueueFull, match=r"MAX_QUEUED_IMAGES=2\); 2 images wait in classify") as raised:
            fleet.submit(REF, models="m", id="refused")
        assert raised.value.retry_after_seconds == 60.0  # nothing is done yet
        assert fleet.submit(REF, models="m", id="taken1").id == "taken1", "what is in already is not refused"
        with pytest.raises(UnknownJob):
            fleet.handle("refused").done()
        worker.answer()
        assert fleet.submit(REF, models="m", id="refused").id == "refused"


def test_lanes_have_limits_of_their_own(own: Settings) -> None:
    with fleet_of(own, max_queued_images={"bulk": 2}) as fleet:
        fleet.submit_many([REF, REF], models="m")
        with pytest.raises(QueueFull):
            fleet.submit(REF, models="m", lane="bulk")
        for _ in range(5):
            fleet.submit(REF, models="m")


def test_room_is_waited_for_if_that_is_asked(own: Settings, worker: HandWorker) -> None:
    with fleet_of(own, max_queued_images={"interactive": 1}) as fleet, ThreadPoolExecutor(1) as pool:
        fleet.submit(REF, models="m")
        with pytest.raises(QueueFull):
            fleet.submit(REF, models="m", wait_seconds=0.1)
        waiting = pool.submit(fleet.submit, REF, models="m", wait_seconds=SECONDS)
        wait_until(lambda: worker.answer() >= 0 and waiting.done(), "room")
        worker.answer()
        assert waiting.result().result(SECONDS).top == LABEL


def test_an_image_is_parked_anew_while_its_chunk_waits(
    own: Settings, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was parked an hour ago for no chunk that the ledger knows is taken back."""
    monkeypatch.setattr(_submitting, "PARKED_SECONDS", 0.1)
    with fleet_of(own, max_queued_images={"bulk": 1}) as fleet, ThreadPoolExecutor(1) as pool, connect(own) as client:
        fleet.submit(REF, models="m", lane="bulk")
        waiting = pool.submit(fleet.submit_many, [LARGE], models="m", job_id="waits")
        for _ in range(2):
            wait_until(lambda: client.keys("*:blob:waits:*"), "the image to be parked")
            client.delete(*client.keys("*:blob*"))
        wait_until(lambda: worker.answer() >= 0 and waiting.done(), "room")


def test_a_job_of_many_waits_for_room(own: Settings, worker: HandWorker) -> None:
    with fleet_of(own, max_queued_images={"bulk": 4}) as fleet, ThreadPoolExecutor(1) as pool:
        future = pool.submit(fleet.submit_many, [REF] * 20, models="m", job_id="many", chunk_size=2)
        wait_until(lambda: fleet.jobs() and fleet.job("many").progress().accepted == 4, "a full queue")
        wait_until(lambda: worker.answer() >= 0 and future.done(), "the end of the submission", SECONDS)
        worker.answer()
        assert future.result().wait(SECONDS).ok == 20


def test_a_job_of_many_may_give_up_and_be_resumed(own: Settings, worker: HandWorker) -> None:
    items = [REF] * 6
    with fleet_of(own, max_queued_images={"bulk": 4}) as fleet:
        with pytest.raises(QueueFull):
            fleet.submit_many(items, models="m", job_id="many", chunk_size=2, wait_seconds=0.1)
        assert fleet.job("many").progress().state == "open"
        worker.answer()
        job = fleet.submit_many(items, models="m", job_id="many", chunk_size=2)
        worker.answer()
        assert job.wait(SECONDS).ok == 6


def test_a_job_whose_first_chunk_is_refused_is_not_unknown(own: Settings, worker: HandWorker) -> None:
    with fleet_of(own, max_queued_images={"bulk": 2}) as fleet, ThreadPoolExecutor(1) as pool:
        fleet.submit_many([REF] * 2, models="m")
        with pytest.raises(QueueFull):
            fleet.submit_many([REF] * 4, models="m", job_id="k", chunk_size=1, wait_seconds=0.05)
        with pytest.raises(UnknownJob):
            fleet.job("k").progress()
        future = pool.submit(fleet.submit_many, [REF] * 4, models="m", job_id="k", chunk_size=1)
        wait_until(lambda: worker.answer() >= 0 and future.done(), "the end of the submission", SECONDS)
        worker.answer()
        assert future.result().wait(SECONDS).ok == 4


def test_a_chunk_that_never_fits_is_not_waited_for(own: Settings) -> None:
    with fleet_of(own, max_queued_images={"bulk": 4}) as fleet, pytest.raises(InvalidRequest, match="chunk_size"):
        fleet.submit_many([REF] * 10, models="m", chunk_size=5)


def test_on_an_event_loop(own: Settings) -> None:
    async def main() -> tuple[float, int]:
        async with AsyncFleet(
            own.broker_url, namespace=own.namespace, max_queued_images={"interactive": 1, "bulk": 2}
        ) as fleet:
            await fleet.submit(REF, models="m")
            with pytest.raises(QueueFull) as raised:
                await fleet.submit(REF, models="m")
            with pytest.raises(QueueFull):
                await fleet.submit_many([REF] * 4, models="m", job_id="j", chunk_size=1, wait_seconds=0.1)
            return raised.value.retry_after_seconds, (await fleet.job("j").progress()).accepted

    assert asyncio.run(main()) == (60.0, 2)


# --- parked images ----------------------------------------------------------------------------------------------


def test_images_of_what_was_refused_take_no_room(own: Settings, bench: Bench, worker: HandWorker) -> None:
    with fleet_of(own, max_queued_images={"interactive": 1}, blob_max_total_bytes=120_000) as fleet:
        fleet.submit(REF, models="m")
        for number in range(5):
            with pytest.raises(QueueFull, match="MAX_QUEUED_IMAGES"):
                fleet.submit(LARGE, models="m", id=f"refused{number}")
        assert not bench.redis.keys("*:blob:*")
        assert int(bench.redis.get(bench.keys.shared("blob_bytes"))) == 0
        worker.answer()
        fleet.submit(LARGE, models="m")


def test_a_chunk_half_of_whose_images_found_room_leaves_none(own: Settings, bench: Bench) -> None:
    with fleet_of(own, blob_max_total_bytes=120_000) as fleet:
        images = [bytes([number]) + LARGE for number in range(4)]
        with pytest.raises(QueueFull, match="CLAIM_STORE"):
            fleet.submit_many(images, models="m", wait_seconds=0.1)
        assert not bench.redis.keys("*:blob:*")


def test_a_repetition_parks_nothing(own: Settings, bench: Bench, worker: HandWorker) -> None:
    with fleet_of(own) as fleet:
        for _ in range(2):
            fleet.submit(LARGE, models="m", id="j")
        worker.answer()
        fleet.submit(LARGE, models="m", id="j")
        assert not bench.redis.keys("*:blob:*")
        assert not bench.redis.zcard(bench.keys.shared("blobs"))


# --- Redis' memory ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer.start(tmp_path_factory.mktemp("small"), "--maxmemory", "100mb") as server:
        yield server


@pytest.fixture
def small(small_redis: RedisServer, namespace: str) -> Iterator[Settings]:
    settings = Settings.load(broker_url=f"{small_redis.url}/0", namespace=namespace)
    yield settings
    with small_redis.client() as client:
        client.config_set("maxmemory", "100mb")


def test_new_work_may_not_fill_redis(small: Settings) -> None:
    with fleet_of(small, max_memory_share=0.001) as fleet:
        for image in (REF, LARGE):
            with pytest.raises(QueueFull, match=r"MAX_MEMORY_SHARE=0.001\); 0 images wait") as raised:
                fleet.submit(image, models="m")
            assert raised.value.retry_after_seconds == 60.0
    with fleet_of(small, max_memory_share=0) as fleet:
        fleet.submit(REF, models="m")


def test_room_for_records_is_kept_free(small: Settings) -> None:
    many: dict[str, Any] = {"models": "m", "chunk_size": 256, "wait_seconds": 0.1}
    with fleet_of(small) as fleet:
        assert fleet.submit_many([REF] * 2_000, **many).progress().accepted == 2_000
        with pytest.raises(QueueFull, match="MAX_MEMORY_SHARE"):  # 80 MB of records are 1,300 images
            fleet.submit_many([REF] * 2_000, **many, scores="all", job_id="all")
        assert 900 < fleet.job("all").progress().accepted < 1_400
        fleet.submit_many([REF] * 2_000, **many, scores="all", sink="file:///out")


@pytest.mark.parametrize("image", [REF, LARGE], ids=["put", "park"])
def test_a_redis_that_refuses_writes_is_a_full_queue(small: Settings, small_redis: RedisServer, image: Any) -> None:
    with small_redis.client() as client, fleet_of(small, max_memory_share=0) as fleet, ThreadPoolExecutor(1) as pool:
        fleet.submit(REF, models="m")
        client.config_set("maxmemory", 1)
        with pytest.raises(QueueFull, match="1 images wait"):
            fleet.submit(image, models="m")
        with pytest.raises(QueueFull):
            fleet.submit_many(itertools.repeat(image, 3), models="m", wait_seconds=0.1)
        with pytest.raises(QueueFull):
            fleet.submit_many([], models="m", wait_seconds=0.1)  # the seal alone
        waiting = pool.submit(fleet.submit_many, [image] * 3, models="m")
        client.config_set("maxmemory", "100mb")
        assert waiting.result(SECONDS).progress().total == 3


# --- references that only a producer makes ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["blob", "claim", "BLOB", "Claim"])
def test_a_parked_image_cannot_be_named_by_hand(own: Settings, scheme: str) -> None:
    ref = f"{scheme}:{'0' * 64}"
    with fleet_of(own) as fleet:
        with pytest.raises(InvalidRequest, match="scheme"):
            fleet.submit(ref, models="m")
        with pytest.raises(InvalidRequest, match="scheme"):
            fleet.submit_many([("a", ref)], models="m")


# --- jobs that come and go --------------------------------------------------------------------------------------


def test_an_abandoned_job_says_what_to_do(own: Settings, worker: HandWorker) -> None:
    def items() -> Iterator[str]:
        yield from [REF] * 2
        raise KeyboardInterrupt

    client = connect(own)
    runner, ledger = SyncRunner(client, own.ledger_url()), Ledger(Bench(own).keys)
    with fleet_of(own) as fleet:
        with pytest.raises(KeyboardInterrupt):
            fleet.submit_many(items(), models="m", job_id="j", chunk_size=1)
        assert fleet.jobs() == []  # nothing was sent yet
        with fleet_of(own, max_queued_images={"bulk": 1}) as small, pytest.raises(QueueFull):
            small.submit_many([REF] * 2, models="m", job_id="j", chunk_size=1, wait_seconds=0.05)
        assert runner.run(ledger.abandon(-1, 9)) == ["j"]
        progress = fleet.job("j").progress()
        assert (progress.state, progress.total) == ("abandoned", 1)
        fleet.submit_many([REF] * 2, models="m", job_id="j", chunk_size=1)  # it is not finished: it is opened again
        assert fleet.job("j").progress().state == "sealed"
    runner.close()


def test_an_abandoned_job_that_has_ended_takes_no_more(own: Settings, worker: HandWorker) -> None:
    client = connect(own)
    runner, ledger = SyncRunner(client, own.ledger_url()), Ledger(Bench(own).keys)
    with fleet_of(own, max_queued_images={"bulk": 1}) as fleet:
        with pytest.raises(QueueFull):
            fleet.submit_many([REF] * 2, models="m", job_id="j", chunk_size=1, wait_seconds=0.05)
        assert runner.run(ledger.abandon(-1, 9)) == ["j"]
        worker.answer()
        assert fleet.job("j").wait(SECONDS).state == "abandoned"
        with pytest.raises(JobAbandoned, match="as a new job"):
            fleet.submit_many([REF] * 2, models="m", job_id="j", chunk_size=1)
        assert len(list(fleet.job("j").results())) == 1
    runner.close()


def test_a_job_that_is_made_between_two_questions_is_found(own: Settings) -> None:
    with fleet_of(own) as fleet:
        for ask in (fleet._flows.progress, fleet._flows.info, fleet._flows.done, fleet._flows.cancel):
            job = fleet.new_id()
            flow: Any = ask(job)
            answer = fleet._engine._perform(next(flow))
            fleet.submit(REF, models="m", id=job)
            assert fleet._engine.drive(_carry_on(flow, answer)) is not None


def _carry_on(flow: Any, answer: Any) -> Any:
    """The rest of a flow that has been begun by hand."""
    try:
        effect = flow.send(answer)
        while True:
            effect = flow.send((yield effect))
    except StopIteration as ended:
        return ended.value
