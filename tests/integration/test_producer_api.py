"""`Fleet` against a real fleet: what goes in, what comes out, ids, jobs, sinks. `AsyncFleet` is next door."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import data_reference
from classifleet.producer import (
    ErrorCode,
    Fleet,
    IdConflict,
    InvalidRequest,
    Ref,
    ResultExpired,
    ResultTimeout,
    SubmitItem,
    UnknownJob,
)
from tests.conftest import S3
from tests.fixtures_fleet import LiveFleet
from tests.support.waiting import wait_until

SECONDS = 60.0


@pytest.fixture
def fleet(live_fleet: LiveFleet) -> Iterator[Fleet]:
    with Fleet(live_fleet.url) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def small_cat(photos: Path) -> bytes:
    """A cat that fits into a payload."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(photos / "chelsea.jpg") as image:
        image.resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


# --- what goes in and what comes out ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["url", "file", "data", "bytes", "large bytes", "path", "s3"])
def test_every_way_to_say_where_an_image_is(
    fleet: Fleet, live_fleet: LiveFleet, s3: S3, photos: Path, small_cat: bytes, way: str
) -> None:
    cat = (photos / "chelsea.jpg").read_bytes()
    s3.client.put_object(Bucket=s3.bucket, Key="cats/chelsea.jpg", Body=cat)
    refs: dict[str, Ref] = {
        "url": f"{live_fleet.web}/chelsea.jpg?token=secret",
        "file": f"file://{photos}/chelsea.jpg",
        "data": data_reference(small_cat),
        "bytes": small_cat,
        "large bytes": cat,
        "path": photos / "chelsea.jpg",
        "s3": f"{s3.url}/cats/chelsea.jpg",
    }
    result = fleet.submit(refs[way], models="imagenet").result(SECONDS)
    assert result.ok, result
    assert "cat" in result.top.lower() or result.top == "tabby"
    assert result.image is not None
    assert result.image.bytes in (len(cat), len(small_cat))
    assert "secret" not in result.ref


def test_a_result_has_every_field(fleet: Fleet, live_fleet: LiveFleet) -> None:
    meta = {"user": "42", "кто": "кот"}
    handle = fleet.submit(f"{live_fleet.web}/chelsea.jpg", models=["imagenet", "nsfw"], meta=meta, top_k=3)
    result = handle.result(SECONDS)
    assert result.id == handle.id
    assert result.ref == f"{live_fleet.web}/chelsea.jpg"
    assert result.meta == meta
    assert result.error is None
    assert result.image is not None
    assert (result.image.width, result.image.height, result.image.format) == (451, 300, "JPEG")
    assert set(result.timings) == {"queue", "fetch", "decode", "batch_wait", "forward", "total"}
    assert list(result.models) == ["imagenet@1", "nsfw@1"]
    assert len(result["imagenet"].predictions) == 3
    assert result["imagenet"].truncated
    assert result["nsfw"].top == "sfw"
    assert sum(result["nsfw"].labels.values()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(InvalidRequest, match="several models"):
        _ = result.top
    assert handle.done()


def test_all_scores_give_every_class(fleet: Fleet, live_fleet: LiveFleet) -> None:
    result = fleet.submit(f"{live_fleet.web}/coffee.jpg", models="imagenet", scores="all").result(SECONDS)
    assert len(result.labels) == len(result.to_dict("label_map")) == 1000
    assert sum(result.labels.values()) == pytest.approx(1, abs=1e-3)


def test_an_unknown_model_beside_a_known_one_is_partial(fleet: Fleet, live_fleet: LiveFleet) -> None:
    result = fleet.submit(f"{live_fleet.web}/coffee.jpg", models=["imagenet", "nobody"]).result(SECONDS)
    assert not result.ok
    assert result["imagenet"].ok
    assert result.error is not None
    assert result.error.code is ErrorCode.MODEL_NOT_FOUND


def test_a_missing_image_is_a_result(fleet: Fleet, live_fleet: LiveFleet) -> None:
    result = fleet.submit(f"{live_fleet.web}/no-such.jpg", models="imagenet").result(SECONDS)
    assert result.error is not None
    assert result.error.code is ErrorCode.NOT_FOUND
    assert result.error.code.spec.http_status == 404


@pytest.mark.parametrize("deadline", [0.001, timedelta(milliseconds=1), datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_deadline_ends_the_work(fleet: Fleet, live_fleet: LiveFleet, deadline: Any) -> None:
    result = fleet.submit(f"{live_fleet.web}/chelsea.jpg", models="imagenet", deadline=deadline).result(SECONDS)
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED


# --- ids --------------------------------------------------------------------------------------------------------


def test_the_same_id_and_request_is_the_same_job(fleet: Fleet, live_fleet: LiveFleet) -> None:
    image_id, ref = fleet.new_id(), f"{live_fleet.web}/rocket.jpg"
    first = fleet.submit(ref, models="imagenet", id=image_id).result(SECONDS)
    assert fleet.submit(ref, models="imagenet", id=image_id).result(SECONDS) == first
    for other in (
        {"ref": f"{live_fleet.web}/coffee.jpg", "models": "imagenet"},
        {"ref": ref, "models": "nsfw"},
        {"ref": ref, "models": "imagenet", "top_k": 2},
        {"ref": ref, "models": "imagenet", "meta": {"a": "b"}},
    ):
        with pytest.raises(IdConflict):
            fleet.submit(**other, id=image_id)


def test_reattach_by_id_from_another_process(fleet: Fleet, live_fleet: LiveFleet) -> None:
    handle = fleet.submit(f"{live_fleet.web}/rocket.jpg", models="imagenet")
    code = (
        "import sys; from classifleet.producer import Fleet\n"
        "with Fleet(sys.argv[1]) as fleet: print(fleet.handle(sys.argv[2]).result(60).top)"
    )
    command = [sys.executable, "-W", "error", "-c", code, live_fleet.url, handle.id]
    there = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout.strip() == handle.result(SECONDS).top


def test_handles_pickle_to_their_ids(fleet: Fleet, live_fleet: LiveFleet) -> None:
    handle = fleet.submit(f"{live_fleet.web}/rocket.jpg", models="imagenet")
    job = fleet.job(handle.id)
    assert pickle.loads(pickle.dumps(handle)) == pickle.loads(pickle.dumps(job)) == handle.id
    result = handle.result(SECONDS)
    assert pickle.loads(pickle.dumps(result)) == result
    assert [each.id for each in job.results()] == [handle.id]


def test_an_unknown_id(fleet: Fleet) -> None:
    for use in (
        fleet.handle("nobody").result,
        fleet.handle("nobody").done,
        fleet.handle("nobody").cancel,
        fleet.job("nobody").progress,
        fleet.job("nobody").info,
        fleet.job("nobody").wait,
        fleet.job("nobody").delete,
        lambda: list(fleet.job("nobody").results()),
        lambda: list(fleet.job("nobody").results(follow=False)),
    ):
        with pytest.raises(UnknownJob, match="nobody"):
            use()


def test_records_expire(live_fleet: LiveFleet) -> None:
    with Fleet(live_fleet.url, result_ttl_seconds=1) as fleet:
        handle = fleet.submit(f"{live_fleet.web}/rocket.jpg", models="imagenet")
        assert handle.result(SECONDS).ok

        def expired() -> bool:
            with suppress(ResultExpired):
                handle.result(0)
                return False
            return True

        wait_until(expired, "the record to expire")
        with pytest.raises(ResultExpired):
            list(fleet.job(handle.id).results())


def test_a_timeout_is_a_timeout_error_and_the_work_goes_on(fleet: Fleet, live_fleet: LiveFleet) -> None:
    handle = fleet.submit(f"{live_fleet.web}/rocket.jpg", models=["imagenet", "nsfw"])
    with pytest.raises(TimeoutError) as raised:
        handle.result(0)
    assert isinstance(raised.value, ResultTimeout)
    assert handle.result(SECONDS).ok


# --- jobs -------------------------------------------------------------------------------------------------------


def test_one_corrupt_image_among_63_good_ones(fleet: Fleet, small_cat: bytes) -> None:
    def items() -> Iterator[tuple[str, bytes]]:
        for number in range(64):
            yield f"cat-{number}", small_cat if number != 17 else small_cat[:2000]

    job = fleet.submit_many(items(), models="imagenet")
    progress = job.wait(SECONDS)
    assert (progress.total, progress.ok, progress.failed, progress.state) == (64, 63, 1, "done")
    assert progress.by_code == {"undecodable": 1}
    assert progress.finished
    results = {result.id: result for result in job.results()}
    assert len(results) == 64
    failed = [result for result in results.values() if not result.ok]
    assert [result.id for result in failed] == ["cat-17"]
    assert len({result.top for result in results.values() if result.ok}) == 1


def test_all_kinds_of_items_with_a_small_window(live_fleet: LiveFleet, photos: Path, small_cat: bytes) -> None:
    url = f"{live_fleet.web}/coffee.jpg"
    plain: list[SubmitItem] = [url, small_cat, photos / "rocket.jpg"]
    items = [*plain, ("mine", url), ("other", url, {"k": "v"}), ("none", url, None)]
    with Fleet(live_fleet.url, submission_window=2) as fleet:
        job = fleet.submit_many(iter(items), models="imagenet", chunk_size=1)
        results = {result.id: result for result in job.results()}
    assert set(results) == {"0", "1", "2", "mine", "other", "none"}
    assert all(result.ok for result in results.values())
    assert results["other"].meta == {"k": "v"}
    assert results["none"].meta == {}


def test_results_without_following_are_those_that_are_there(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job = fleet.submit_many([f"{live_fleet.web}/rocket.jpg"] * 3, models="imagenet", chunk_size=1)
    assert len(list(job.results(follow=False))) <= 3
    job.wait(SECONDS)
    assert len(list(job.results(follow=False))) == 3


def test_submitting_a_job_again_changes_nothing(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job_id, items = fleet.new_id(), [f"{live_fleet.web}/rocket.jpg"] * 3
    fleet.submit_many(items, models="imagenet", job_id=job_id).wait(SECONDS)
    again = fleet.submit_many(items, models="imagenet", job_id=job_id)
    assert again.progress().done == again.progress().accepted == 3
    with pytest.raises(IdConflict):
        fleet.submit_many([*items, items[0]], models="imagenet", job_id=job_id)


def test_an_interrupted_submission_is_resumed(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job_id, ref = fleet.new_id(), f"{live_fleet.web}/rocket.jpg"

    def breaks() -> Iterator[str]:
        yield from [ref] * 20
        raise RuntimeError("the producer dies")

    with pytest.raises(RuntimeError, match="dies"):
        fleet.submit_many(breaks(), models="imagenet", job_id=job_id, chunk_size=1)
    job = fleet.job(job_id)
    assert (job.progress().state, job.progress().total) == ("open", None)
    assert fleet.submit_many([ref] * 21, models="imagenet", job_id=job_id, chunk_size=1).wait(SECONDS).done == 21


def test_an_empty_job_is_done(fleet: Fleet) -> None:
    job = fleet.submit_many([], models="imagenet")
    assert job.wait(SECONDS).total == 0
    assert list(job.results()) == []


def test_cancel_a_job(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job = fleet.submit_many([f"{live_fleet.web}/rocket.jpg"] * 200, models="imagenet", chunk_size=1)
    assert job.cancel()
    progress = job.wait(SECONDS)
    assert (progress.state, progress.done, progress.accepted) == ("cancelled", 200, 200)
    assert progress.by_code["cancelled"] > 100
    codes = [result.error.code if result.error else None for result in job.results()]
    assert codes.count(ErrorCode.CANCELLED) == progress.by_code["cancelled"]
    assert not job.cancel()
    with pytest.raises(IdConflict):
        fleet.submit_many(["https://example.com/other.jpg"], models="imagenet", job_id=job.id)


def test_a_handle_that_is_done_cannot_be_cancelled(fleet: Fleet, live_fleet: LiveFleet) -> None:
    handle = fleet.submit(f"{live_fleet.web}/rocket.jpg", models="imagenet")
    assert handle.result(SECONDS).ok
    assert not handle.cancel()


def test_delete_a_job(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job = fleet.submit_many([f"{live_fleet.web}/rocket.jpg"] * 3, models="imagenet", chunk_size=1)
    job.wait(SECONDS)
    assert job.delete()
    with pytest.raises(UnknownJob):
        job.progress()
    assert job.id not in [info.id for info in fleet.jobs()]


def test_jobs_and_queues_are_listed(fleet: Fleet, live_fleet: LiveFleet) -> None:
    job = fleet.submit_many([f"{live_fleet.web}/rocket.jpg"], models=["imagenet", "nsfw"])
    job.wait(SECONDS)
    info = fleet.jobs()[0]
    assert (info.id, info.models, info.queue) == (job.id, ("imagenet", "nsfw"), "classify.default.bulk")
    assert job.info().progress.ok == 1
    assert abs(info.created_at - datetime.now(UTC).timestamp()) < SECONDS
    assert fleet.queues()["classify.default.bulk"].done_images >= 1


# --- sinks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "s3"])
@pytest.mark.usefixtures("s3")  # its credentials, to read the sink
def test_a_sink_gets_parts_and_a_manifest(live_fleet: LiveFleet, kind: str) -> None:
    sink = f"file://{live_fleet.sinks}/nightly" if kind == "file" else "s3://sink-bucket/nightly"
    ref = f"{live_fleet.web}/rocket.jpg"
    with Fleet(live_fleet.url, **live_fleet.s3.settings_kwargs) as fleet:
        job = fleet.submit_many([ref, ref, f"{live_fleet.web}/no.jpg"], models="imagenet", sink=sink, chunk_size=2)
        assert job.wait(SECONDS).finished
        results = {result.id: result for result in job.results()}
        assert job.info().sink == sink
    read = _reader(live_fleet, sink)
    manifest = json.loads(read(f"{job.id}/manifest.json"))
    assert manifest["job"] == job.id
    assert manifest["images"] == {"accepted": 3, "ok": 2, "partial": 0, "failed": 1}
    assert manifest["by_code"] == {"not_found": 1}
    lines = [line for part in manifest["parts"] for line in read(f"{job.id}/{part['name']}").splitlines()]
    assert {json.loads(line)["id"]: json.loads(line) for line in lines} == {
        name: result.to_dict() for name, result in results.items()
    }


def _reader(live_fleet: LiveFleet, sink: str) -> Any:
    from classifleet.config import Settings
    from classifleet.config.storage import open_store

    return open_store(sink, Settings.load(**live_fleet.s3.settings_kwargs)).get


def test_a_sink_that_is_not_allowed_fails_every_image(fleet: Fleet, live_fleet: LiveFleet, tmp_path: Path) -> None:
    job = fleet.submit_many([f"{live_fleet.web}/rocket.jpg"] * 2, models="imagenet", sink=f"file://{tmp_path}/no")
    assert job.wait(SECONDS).by_code == {"forbidden_source": 2}
    assert [result.error.code for result in job.results() if result.error] == [ErrorCode.FORBIDDEN_SOURCE] * 2
    assert not (tmp_path / "no").exists()


# --- bad arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ref": 7}, "int"),
        ({"ref": Path("no-such-file.jpg")}, "no-such-file"),
        ({"models": []}, "models"),
        ({"models": ["imagenet", "imagenet"]}, "twice"),
        ({"models": "Image Net"}, "models"),
        ({"id": "a/b"}, "job id"),
        ({"top_k": 0}, "top_k"),
        ({"scores": "some"}, "scores"),
        ({"threshold": 2}, "threshold"),
        ({"deadline": datetime(2099, 1, 1)}, "time zone"),
        ({"deadline": -1}, "future"),
        ({"meta": {"a": 1}}, "meta"),
        ({"lane": "fast"}, "lane"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(arguments: dict[str, Any], said: str) -> None:
    call: dict[str, Any] = {"ref": "https://example.com/a.jpg", "models": "imagenet", **arguments}
    with Fleet("redis://127.0.0.1:1") as fleet, pytest.raises(InvalidRequest, match=said):
        fleet.submit(**call)
