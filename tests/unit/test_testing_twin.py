"""The fleet in memory, as a user's tests meet it. That it is like a real one: `integration/test_twin_parity.py`."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import ImageError
from classifleet.producer import (
    AsyncFleet,
    BrokerUnavailable,
    ErrorCode,
    Fleet,
    LedgerUnavailable,
    QueueFull,
    ResultExpired,
    ResultTimeout,
    UnknownJob,
)
from classifleet.producer.testing import Answer, AsyncInMemoryFleet, InMemoryFleet, Submission
from tests.support.waiting import wait_until, wait_until_async

REF = "https://example.com/tom.jpg"
CAT = {"tabby": 0.9, "tiger cat": 0.07, "lynx": 0.03}


def cat(_image: Submission) -> Answer:
    return CAT


# --- answers ----------------------------------------------------------------------------------------------------


def test_answers_by_reference() -> None:
    with InMemoryFleet({REF: CAT, b"bytes": {"dog": 1.0}, "https://gone": ErrorCode.ACCESS_DENIED}) as fleet:
        assert fleet.submit(REF, models="imagenet").result().top == "tabby"
        assert fleet.submit(b"bytes", models="imagenet").result().top == "dog"
        codes = [fleet.submit(ref, models="imagenet").result().error for ref in ("https://gone", "https://else")]
    assert [error.code for error in codes if error] == [ErrorCode.ACCESS_DENIED, ErrorCode.NOT_FOUND]


def test_answers_of_a_function() -> None:
    def answer(image: Submission) -> Answer:
        if image.meta.get("user") == "banned":
            raise ImageError(ErrorCode.FORBIDDEN_SOURCE, "not for you")
        return {"long" if image.data and len(image.data) > 5 else "short": 1.0}

    with InMemoryFleet(answer) as fleet:
        assert fleet.submit(b"123456789", models="m").result().top == "long"
        assert fleet.submit(b"123", models="m").result().top == "short"
        error = fleet.submit(b"123", models="m", meta={"user": "banned"}).result().error
    assert str(error) == "forbidden_source: not for you"


def test_answers_by_model() -> None:
    answer: Answer = {"imagenet": CAT, "nsfw@2": {"sfw": 1.0}, "broken": ErrorCode.MODEL_FAILED}
    with InMemoryFleet({REF: answer}) as fleet:
        result = fleet.submit(REF, models=["imagenet", "nsfw@2", "broken", "unnamed"]).result()
    assert list(result.models) == ["imagenet@1", "nsfw@2", "broken@1", "unnamed"]
    assert (result["imagenet"].top, result["nsfw"].top) == ("tabby", "sfw")
    failures = [answer.error.code for answer in result.models.values() if answer.error]
    assert failures == [ErrorCode.MODEL_FAILED, ErrorCode.MODEL_NOT_FOUND]
    assert not result.ok


def test_an_image_that_every_model_failed_on() -> None:
    with InMemoryFleet({REF: {"a": ErrorCode.MODEL_FAILED, "b": ErrorCode.MODEL_FAILED}}) as fleet:
        job = fleet.submit_many([REF], models=["a", "b"])
    assert job.progress().by_code == {"model_failed": 1}


@pytest.mark.parametrize(
    ("options", "labels", "truncated"),
    [
        ({}, ["tabby", "tiger cat", "lynx"], False),
        ({"top_k": 2}, ["tabby", "tiger cat"], True),
        ({"top_k": 1, "scores": "all"}, ["tabby", "tiger cat", "lynx"], False),
        ({"threshold": 0.05}, ["tabby", "tiger cat"], True),
    ],
)
def test_options_shape_the_answer(options: Any, labels: list[str], truncated: bool) -> None:
    with InMemoryFleet({REF: dict(reversed(CAT.items()))}) as fleet:
        result = fleet.submit(REF, models="imagenet", **options).result()
    assert list(result.labels) == labels
    assert [p.class_id for p in result.predictions] == [2, 1, 0][: len(labels)]
    assert result["imagenet"].truncated is truncated


def test_a_model_of_many_labels() -> None:
    with InMemoryFleet({REF: {"beach": 0.8, "sea": 0.6, "snow": 0.1}}, multi_label=["scene"]) as fleet:
        result = fleet.submit(REF, models=["scene", "imagenet"]).result()
    assert (result["scene"].kind, result["imagenet"].kind) == ("multi", "single")
    assert result["scene"].predicted_classes == ("beach", "sea")
    assert result.to_dict("roboflow", model="scene")["predicted_classes"] == ["beach", "sea"]


def test_every_format_can_be_written() -> None:
    with InMemoryFleet(cat) as fleet:
        result = fleet.submit(REF, models="imagenet", scores="all").result()
    assert result.to_dict("label_map") == CAT
    assert result.to_dict("yandex")["results"][0]["results"][0]["classification"]["properties"][0]["name"] == "tabby"
    assert result.to_dict("mlkit")[0]["text"] == "tabby"
    assert result.to_dict("roboflow")["top"] == "tabby"


def test_a_mistake_in_the_answers_is_the_test_s_to_see() -> None:
    def broken(image: Submission) -> Answer:
        return {} if image.id == "empty" else CAT[image.id]  # type: ignore[return-value]

    with InMemoryFleet(broken) as fleet:
        with pytest.raises(KeyError, match="lion"):
            fleet.submit(REF, models="m", id="lion")
        assert not fleet.handle("lion").done()
        with pytest.raises(KeyError):
            fleet.run_pending()
    with InMemoryFleet(broken) as fleet, pytest.raises(ValueError, match="no labels"):
        fleet.submit(REF, models="m", id="empty")


# --- what was submitted -----------------------------------------------------------------------------------------


def test_submissions_are_listed(tmp_path: Path) -> None:
    (tmp_path / "tom.jpg").write_bytes(b"x" * 40_000)
    with InMemoryFleet(cat) as fleet:
        handle = fleet.submit(REF, models=["a", "b@2"], meta={"user": "42"}, top_k=3)
        fleet.submit(REF, models=["a", "b@2"], meta={"user": "42"}, top_k=3, id=handle.id)  # is the same
        fleet.submit_many([("path", tmp_path / "tom.jpg")], models="c", sink="s3://bucket/out")
        first, second = fleet.submitted
    assert (first.job, first.id, first.ref, first.data) == (handle.id, handle.id, REF, None)
    assert (first.models, first.meta, first.lane, first.options.top_k) == (
        ("a", "b@2"),
        {"user": "42"},
        "interactive",
        3,
    )
    assert (second.id, second.data, second.lane, second.sink) == ("path", b"x" * 40_000, "bulk", "s3://bucket/out")
    assert second.ref.startswith("blob:")


# --- when work is done ------------------------------------------------------------------------------------------


def test_a_paused_fleet_works_when_it_is_told_to() -> None:
    with InMemoryFleet(cat, paused=True) as fleet:
        job = fleet.submit_many([REF] * 5, models="m", chunk_size=2)
        handle = fleet.submit(REF, models="m")
        with pytest.raises(ResultTimeout):
            handle.result(timeout=0.01)
        assert fleet.run_pending(max_chunks=1) == 1  # interactive images go first
        assert (handle.done(), job.progress().done) == (True, 0)
        assert fleet.run_pending(1) == 2
        progress = job.progress()
        assert (progress.total, progress.done, progress.state) == (5, 2, "sealed")
        assert len(list(job.results(follow=False))) == 2
        assert fleet.run_pending() == 3
        assert job.progress().finished
        fleet.paused = False
        assert fleet.submit(REF, models="m").done()


def test_a_thread_that_waits_is_woken() -> None:
    with InMemoryFleet(cat, paused=True) as fleet, ThreadPoolExecutor(2) as pool:
        handle, job = fleet.submit(REF, models="m"), fleet.submit_many([REF] * 3, models="m", chunk_size=1)
        waiting = pool.submit(handle.result, 10), pool.submit(lambda: [r.id for r in job.results()])
        fleet.run_pending()
        assert waiting[0].result(5).top == "tabby"
        assert waiting[1].result(5) == ["0", "1", "2"]


def test_a_deadline_passes_while_the_fleet_is_paused() -> None:
    with InMemoryFleet(cat, paused=True) as fleet:
        late, timely = fleet.submit(REF, models="m", deadline=0.001), fleet.submit(REF, models="m", deadline=60)
        start = threading.Event()
        assert not start.wait(0.01)
        fleet.run_pending()
        assert timely.result().ok
        error = late.result().error
    assert error is not None
    assert error.code is ErrorCode.DEADLINE_EXCEEDED


def test_cancelled_images_get_their_record_at_once() -> None:
    with InMemoryFleet(cat, paused=True) as fleet:
        job = fleet.submit_many([REF] * 5, models="m", chunk_size=2)
        fleet.run_pending(1)
        assert job.cancel()
        assert job.wait(1).by_code == {"cancelled": 3}
        assert [result.ok for result in job.results()].count(True) == 2
        assert fleet.run_pending() == 0
        assert not job.cancel()


def test_the_window_makes_a_producer_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[str]:
        for number in range(20):
            taken.append(number)
            yield REF

    with (
        InMemoryFleet(cat, paused=True, submission_window=10) as fleet,
        ThreadPoolExecutor(1) as pool,
    ):
        submitting = pool.submit(lambda: fleet.submit_many(items(), models="m", chunk_size=1))
        wait_until(lambda: len(fleet.submitted) == 10, "a full window")
        assert len(taken) == 16
        wait_until(lambda: fleet.run_pending() >= 0 and submitting.done(), "the end of the submission")
        assert submitting.result().progress().accepted == 20


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_records_that_expired() -> None:
    with InMemoryFleet(cat) as fleet:
        handle = fleet.submit(REF, models="m")
        fleet.expire(handle.id)
        with pytest.raises(ResultExpired):
            handle.result()
        with pytest.raises(UnknownJob):
            fleet.handle("never-was").result()


def test_a_ledger_that_is_away() -> None:
    with InMemoryFleet(cat) as fleet:
        with fleet.unavailable(), pytest.raises(LedgerUnavailable):
            fleet.submit(REF, models="m")
        assert fleet.submitted == []
        assert fleet.submit(REF, models="m").done()


def test_a_ledger_that_loses_what_it_had_accepted() -> None:
    with InMemoryFleet(cat) as fleet:

        def lossy() -> Iterator[str]:
            yield from [REF] * 16
            fleet.expire("job")

        with pytest.raises(LedgerUnavailable, match="lost images"):
            fleet.submit_many(lossy(), models="imagenet", job_id="job", chunk_size=1)
        again = fleet.submit_many([REF] * 16, models="imagenet", job_id="job", chunk_size=1)
        assert again.wait().ok == 16


def test_a_broker_that_is_away() -> None:
    with InMemoryFleet(cat) as fleet:
        image_id = fleet.new_id()
        with fleet.unavailable(BrokerUnavailable), pytest.raises(BrokerUnavailable):
            fleet.submit(REF, models="m", id=image_id)
        assert not fleet.handle(image_id).done()
        assert fleet.submit(REF, models="m", id=image_id).result().ok
        assert len(fleet.submitted) == 1


def test_no_room_for_large_images() -> None:
    with InMemoryFleet(cat, blob_max_total_bytes=100_000) as fleet:
        fleet.submit(b"x" * 60_000, models="m")
        with pytest.raises(QueueFull):
            fleet.submit(b"y" * 60_000, models="m")


# --- as a fleet -------------------------------------------------------------------------------------------------


def test_it_passes_for_the_real_one() -> None:
    with InMemoryFleet(cat) as fleet:
        assert isinstance(fleet, Fleet)
        handle = fleet.submit(REF, models="m")
        assert fleet.handle(pickle.loads(pickle.dumps(handle))).result() == handle.result()
        assert fleet.settings.namespace == "default"
        assert fleet.queues()["classify.default.interactive"].done_images == 1
    assert isinstance(AsyncInMemoryFleet(cat), AsyncFleet)


def test_on_an_event_loop() -> None:
    async def main() -> None:
        async with AsyncInMemoryFleet(cat, paused=True) as fleet:
            handle = await fleet.submit(REF, models="m")
            job = await fleet.submit_many([REF] * 3, models="m", chunk_size=1)
            with pytest.raises(TimeoutError):
                await handle.result(0.01)
            waiting = asyncio.gather(handle.result(), job.wait())
            await wait_until_async(lambda: fleet.run_pending() == 0, "all work to be done")
            result, progress = await waiting
            assert (result.top, progress.ok) == ("tabby", 3)
            assert [each.id async for each in job.results()] == ["0", "1", "2"]
            with fleet.unavailable(), pytest.raises(LedgerUnavailable):
                await handle.done()

    asyncio.run(main())


def test_work_done_in_another_thread_wakes_an_event_loop() -> None:
    async def main(fleet: AsyncInMemoryFleet) -> str:
        handle = await fleet.submit(REF, models="m")
        waiting = asyncio.create_task(handle.result(10))
        await asyncio.to_thread(fleet.run_pending)
        return (await waiting).top

    assert asyncio.run(main(AsyncInMemoryFleet(cat, paused=True))) == "tabby"


def test_many_threads_share_one() -> None:
    with InMemoryFleet(cat) as fleet, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: fleet.submit(REF, models="m", meta={"n": str(n)}).result(10), range(200)))
    assert [result.meta["n"] for result in results] == [str(n) for n in range(200)]
    assert len(fleet.submitted) == 200


def test_it_needs_nothing_but_the_producer() -> None:
    code = (
        "import sys, classifleet.producer; assert 'classifleet.producer.testing' not in sys.modules\n"
        "import classifleet.producer.testing\n"
        "print(*({'torch', 'numpy', 'PIL', 'boto3', 'aiohttp', 'pytest', 'kombu'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
