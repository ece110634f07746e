"""One script of calls against `Fleet`, `AsyncFleet` and their twins in memory: all four must say the same."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import ClassifleetError, ErrorCode
from classifleet.producer import AsyncFleet, AsyncHandle, AsyncJob, Fleet, Progress, Result
from classifleet.producer.testing import Answer, AsyncInMemoryFleet, InMemoryFleet, Submission
from tests.fixtures_fleet import LiveFleet
from tests.support.waiting import wait_until

SECONDS = 60.0
IMAGENET = {f"class {number}": 1 / 1000 for number in range(1000)}
NSFW = {"sfw": 0.9, "nsfw": 0.1}
SMALL_GIF = b"GIF89a" + bytes(100)  # no image, whatever its beginning says


class Sync:
    """An async object whose coroutines run to their end at once, so that one script fits both kinds of fleet."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._called(value) if callable(value) else value

    def _called(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if inspect.isasyncgen(answer):
                answer = _collect(answer)
            if inspect.isawaitable(answer):
                answer = self._runner.run(_await(answer))
            return Sync(answer, self._runner) if isinstance(answer, AsyncHandle | AsyncJob) else answer

        return call


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def _collect(generator: Any) -> list[Any]:
    return [each async for each in generator]


def answers(image: Submission) -> Answer:
    """What the live fleet's worker says of the same references, as far as the script looks at it."""
    if "no-such" in image.ref:
        return ErrorCode.NOT_FOUND
    if image.data == SMALL_GIF:
        return ErrorCode.UNDECODABLE
    return {"imagenet": IMAGENET, "nsfw": NSFW}


@pytest.fixture(params=["Fleet", "AsyncFleet", "AsyncInMemoryFleet"])
def make_other(request: pytest.FixtureRequest, live_fleet: LiveFleet) -> Iterator[Callable[..., Any]]:
    """Makes the fleet that is compared with `InMemoryFleet`."""
    with asyncio.Runner() as runner:
        made: list[Any] = []

        def make(*, paused: bool = False, **settings: Any) -> Any:
            if request.param == "AsyncInMemoryFleet":
                made.append(Sync(AsyncInMemoryFleet(answers, paused=paused, **settings), runner))
            elif request.param == "Fleet":
                made.append(Fleet(live_fleet.url, **_nobody(paused), **settings))
            else:
                made.append(Sync(AsyncFleet(live_fleet.url, **_nobody(paused), **settings), runner))
            return made[-1]

        yield make
        for fleet in made:
            fleet.close()


def _nobody(paused: bool) -> dict[str, str]:
    """A namespace without a worker is a fleet that is paused."""
    return {"namespace": Fleet.new_id()} if paused else {}


def heard(call: Callable[[], Any]) -> Any:
    """What a call says: its answer, comparable, or the kind of its error."""
    try:
        return comparable(call())
    except ClassifleetError as error:
        return type(error).__name__


def comparable(value: Any) -> Any:
    """Without what differs from run to run: times, labels, the wording of errors."""
    match value:
        case Result():
            return record_of(value.to_dict())
        case Progress():
            whole = (value.state, value.total, value.accepted, value.done, value.finished)
            return (*whole, value.ok, value.partial, value.failed, value.by_code, value.eta_seconds is None)
        case list():
            return sorted(map(comparable, value), key=repr)
        case _:
            return value


def record_of(record: dict[str, Any]) -> Any:
    failed = {"error": (record["error"]["code"], record["error"]["retryable"])} if "error" in record else {}
    models = {
        name: (sorted(answer), answer.get("kind"), answer.get("truncated"), len(answer.get("predictions", ())))
        for name, answer in record["models"].items()
    }
    image = [record["image"][name] for name in ("format", "bytes", "sha256")] if _is_known(record) else None
    same = {name: record.get(name) for name in ("v", "id", "ref", "meta", "status", "attempt")}
    stages = None if failed else sorted(record["timings_ms"])
    return {**same, **failed, "models": models, "image": image, "stages": stages, "fields": sorted(record)}


def _is_known(record: dict[str, Any]) -> bool:
    """Whether a twin has the image itself, too."""
    return "image" in record and record["ref"].startswith("data:")


def same(ours: Any, theirs: Any, script: Callable[[Any], Iterator[Any]]) -> None:
    """Run the script on both; every step must say the same."""
    said = list(script(theirs))
    assert list(script(ours)) == said
    assert said


# --- the script -------------------------------------------------------------------------------------------------


def test_images(live_fleet: LiveFleet, make_other: Callable[..., Any]) -> None:
    web, both = live_fleet.web, ["imagenet", "nsfw@1"]
    photo: Path = live_fleet.photos / "rocket.jpg"

    def script(fleet: Any) -> Iterator[Any]:
        def result(ref: Any, **options: Any) -> Any:
            handle = fleet.submit(ref, id=fleet.new_id(), **{"models": "imagenet", **options})
            told = heard(lambda: handle.result(SECONDS))
            assert told.pop("id") == handle.id
            return told, heard(handle.done), heard(handle.cancel)

        yield result(f"{web}/rocket.jpg?token=x", models=both, meta={"a": "b"}, top_k=3)
        yield result(f"{web}/rocket.jpg", models=both, scores="all")
        yield result(f"{web}/rocket.jpg", models="nsfw", threshold=0.0)
        yield result(photo)
        yield result(photo.read_bytes())
        yield result(SMALL_GIF)
        yield result("data:;base64,R0lGODlh!!")
        yield result(f"{web}/no-such.jpg", meta={"a": "b"})
        yield result("no scheme at all")
        yield result(f"{web}/rocket.jpg", models=["imagenet", "unheard-of"])
        yield result(f"{web}/rocket.jpg", models=["unheard-of"])
        yield result(f"{web}/rocket.jpg", deadline=datetime(2020, 1, 1, tzinfo=UTC))

    same(InMemoryFleet(answers), make_other(), script)


def test_ids(live_fleet: LiveFleet, make_other: Callable[..., Any]) -> None:
    ref = f"{live_fleet.web}/rocket.jpg"

    def script(fleet: Any) -> Iterator[Any]:
        taken = fleet.new_id()

        def submit(ref: str = ref, **options: Any) -> Any:
            return heard(lambda: fleet.submit(ref, **{"models": "nsfw", "id": taken, **options}).id == taken)

        yield submit()
        yield submit()
        yield submit(ref + "?other")
        yield submit(top_k=2)
        yield submit(meta={"a": "b"})
        yield submit(models="imagenet")
        yield submit(lane="bulk")
        yield submit(id="a/b")
        yield submit(models=[])
        yield submit(nonsense=1)
        yield submit(deadline=-1)
        for use in (fleet.handle("no-such"), fleet.job("no-such")):
            for name in ("done", "result", "progress", "info", "wait", "cancel", "delete"):
                if hasattr(use, name):
                    yield name, heard(getattr(use, name))
        yield heard(lambda: list(fleet.job("no-such").results()))

    same(InMemoryFleet(answers), make_other(), script)


def test_jobs(live_fleet: LiveFleet, make_other: Callable[..., Any]) -> None:
    ref, gone = f"{live_fleet.web}/rocket.jpg", f"{live_fleet.web}/no-such.jpg"
    items = [ref, ("mine", gone), ("other", ref, {"k": "v"}), ("last", ref, None)]

    def script(fleet: Any) -> Iterator[Any]:
        job = fleet.submit_many(items, models="nsfw", chunk_size=1, job_id=fleet.new_id())
        yield heard(lambda: job.wait(SECONDS))
        yield heard(job.progress)
        yield heard(lambda: list(job.results()))
        yield heard(lambda: list(job.results(follow=False)))
        info = fleet.jobs(1)[0]
        yield info.id == job.id, info.models, info.queue, info.sink, comparable(info.progress)
        yield heard(lambda: job.info().progress)
        again = {"models": "nsfw", "chunk_size": 1, "job_id": job.id}
        yield heard(lambda: fleet.submit_many(items, **again).progress())
        yield heard(lambda: fleet.submit_many([*items, ref], **again).id)
        yield heard(lambda: fleet.submit_many(items[::-1], **again).id)
        yield heard(lambda: fleet.submit_many(items, **{**again, "models": "imagenet"}).id)
        yield heard(job.cancel)
        yield heard(job.delete)
        yield heard(job.progress)
        yield heard(lambda: fleet.submit_many([], models="nsfw").wait(SECONDS))
        yield heard(lambda: fleet.submit_many([("twice", ref), ("twice", ref)], models="nsfw").id)
        yield heard(lambda: fleet.submit_many([7], models="nsfw").id)

    same(InMemoryFleet(answers), make_other(), script)


def test_work_that_waits(live_fleet: LiveFleet, make_other: Callable[..., Any]) -> None:
    ref = f"{live_fleet.web}/rocket.jpg"

    def script(fleet: Any) -> Iterator[Any]:
        def depths() -> Any:
            return {name: (d.queued_chunks, d.queued_images, d.done_images) for name, d in fleet.queues().items()}

        handle = fleet.submit(ref, models="nsfw")
        job = fleet.submit_many([ref] * 5, models="nsfw", chunk_size=2)
        yield heard(lambda: handle.result(0.01)), heard(handle.done)
        yield heard(lambda: job.wait(0.01)), heard(job.progress)
        yield heard(lambda: list(job.results(follow=False)))
        yield heard(depths)
        yield heard(job.delete)
        yield heard(job.cancel)
        yield job.progress().state
        again = {"models": "nsfw", "chunk_size": 2, "job_id": job.id}
        yield heard(lambda: fleet.submit_many([ref] * 5, **again).id == job.id)
        yield heard(lambda: fleet.submit_many([ref] * 50, **again).progress().accepted)

    same(InMemoryFleet(answers, paused=True), make_other(paused=True), script)


def test_no_room(make_other: Callable[..., Any]) -> None:
    ref, large = "https://example.com/a.jpg", b"x" * 50_000
    limits: dict[str, Any] = {"max_queued_images": {"interactive": 2, "bulk": 4}, "blob_max_total_bytes": 60_000}

    def script(fleet: Any) -> Iterator[Any]:
        def submit(image: Any = ref, **options: Any) -> Any:
            return heard(lambda: fleet.submit(image, models="nsfw", **options).id)

        def submit_many(items: list[Any], job_id: str, **options: Any) -> Any:
            options |= {"models": "nsfw", "chunk_size": 2, "wait_seconds": 0.05, "job_id": job_id}
            return heard(lambda: fleet.submit_many(items, **options).id)

        yield submit(large, id="a"), submit(large, id="b"), submit(id="c"), submit(id="d")
        yield submit(id="a"), submit(large, id="a"), submit(id="d", wait_seconds=0.05)
        yield submit_many([ref] * 6, "many"), heard(fleet.job("many").progress)
        yield submit_many([ref] * 6, "other"), heard(fleet.job("other").progress)
        yield submit_many([], "none"), heard(fleet.job("none").progress)
        yield submit_many([ref] * 5, "five", chunk_size=5), submit_many([large], "large")
        yield [submit(f"{scheme}:{'0' * 64}") for scheme in ("blob", "claim")]
        yield {name: depth.queued_images for name, depth in fleet.queues().items()}

    same(InMemoryFleet(answers, paused=True, **limits), make_other(paused=True, **limits), script)


def test_records_expire(live_fleet: LiveFleet, make_other: Callable[..., Any]) -> None:
    ref = f"{live_fleet.web}/rocket.jpg"

    def script(fleet: Any) -> Iterator[Any]:
        handle = fleet.submit(ref, models="nsfw")
        handle.result(SECONDS)
        getattr(fleet, "expire", lambda _: None)(handle.id)
        wait_until(lambda: heard(handle.done) == "ResultExpired", "the time to live to end")
        job = fleet.job(handle.id)
        for use in (handle.result, handle.done, handle.cancel, job.progress, job.info, job.delete):
            yield heard(use)
        yield heard(lambda: list(job.results()))
        yield heard(lambda: fleet.submit(ref, models="nsfw", id=handle.id).id == handle.id)

    same(InMemoryFleet(answers), make_other(result_ttl_seconds=1), script)
