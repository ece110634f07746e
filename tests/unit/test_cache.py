"""The content cache: what is kept, by what key, and that no record can tell but for its timings."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError, Payload, Record
from classifleet.ledger import Begin, Lease
from classifleet.worker.cache import ENTRY_BYTES, PLAN_BYTES, ContentCache, Known, Memory, Plan, decode, encode
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.instruments import CACHE
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.models import ModelDescription
from classifleet.worker.pipeline import Pipeline
from tests.models_support import description_fields
from tests.support.waiting import wait_until_async
from tests.unit.test_pipeline import Brightness, Fetch, describe, jpeg

LIMITS = DecodeLimits()
PLAN = Plan(b"k" * PLAN_BYTES, ("a@1", "b@1"), (2, 3))


def content_cache(*names: str, limits: DecodeLimits = LIMITS, promise: str = "1 auto", **options: Any) -> ContentCache:
    return ContentCache(names, limits=limits, promise=promise, **{"limit_bytes": 1 << 20, **options})


# --- entries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("truncated", [False, True])
def test_an_entry_comes_out_as_it_went_in(kind: str, truncated: bool) -> None:
    scores = {"b@1": np.array([1e-38, 0.1, 7], np.float32), "a@1": np.array([0.25, 0.75], np.float32)}
    known = decode(encode(Known(640, 65_500, kind, truncated, scores), PLAN), PLAN)
    assert known is not None
    assert (known.width, known.height, known.format, known.truncated) == (640, 65_500, kind, truncated)
    assert {name: values.tolist() for name, values in known.scores.items()} == {
        name: values.tolist() for name, values in scores.items()
    }
    info = known.info(9, "s")
    assert Known.of(info, scores).info(9, "s") == info


def test_what_is_no_entry_is_nothing() -> None:
    scores = {"a@1": np.zeros(2, np.float32), "b@1": np.zeros(3, np.float32)}
    good = encode(Known(1, 1, "JPEG", False, scores), PLAN)
    for bad in (
        b"",
        b"\x02" + good[1:],
        good[:-4],
        good + bytes(4),
        good[:2] + b"TIFF\0\0" + good[8:],
        b"x" * len(good),
    ):
        assert decode(bad, PLAN) is None


def test_the_least_recently_used_entries_go() -> None:
    memory = Memory(3 * (100 + ENTRY_BYTES))
    for key in (b"a", b"b", b"c"):
        memory.put(key, bytes(100))
    assert memory.get(b"a") is not None
    memory.put(b"d", bytes(100))
    assert [key for key in (b"a", b"b", b"c", b"d") if memory.get(key) is not None] == [b"a", b"c", b"d"]
    memory.put(b"e", bytes(10_000))
    assert memory.get(b"e") is None, "nothing goes for what does not fit anyway"
    memory.put(b"f", bytes(2 * 100 + ENTRY_BYTES))
    assert (memory.get(b"d") is not None, memory.get(b"a")) == (True, None)
    assert memory.size_bytes <= 3 * (100 + ENTRY_BYTES)


def test_an_entry_takes_the_memory_that_is_counted() -> None:
    memory = Memory(1 << 30)
    tracemalloc.start()
    try:
        for n in range(20_000):
            memory.put(n.to_bytes(48), bytes(24))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken == pytest.approx(memory.size_bytes, rel=0.25)


# --- keys ----------------------------------------------------------------------------------------------------------


def model(**changes: Any) -> ModelDescription:
    return ModelDescription.model_validate(description_fields(**changes), strict=False)


PLAIN = content_cache("*").plan({"pets@1": model()})
OTHER_ANSWERS: dict[str, Callable[[], Plan | None]] = {
    "another file": lambda: content_cache("*").plan({"pets@1": model(sha256="1" * 64)}),
    "another version of the same file": lambda: content_cache("*").plan({"pets@2": model(version="2")}),
    "another mean": lambda: content_cache("*").plan({"pets@1": model(preprocess__mean=[1, 0, 0])}),
    "another std": lambda: content_cache("*").plan({"pets@1": model(preprocess__std=[2, 1, 1])}),
    "another background": lambda: content_cache("*").plan({"pets@1": model(preprocess__background=[0, 0, 0])}),
    "another interpolation": lambda: content_cache("*").plan({"pets@1": model(preprocess__interpolation="bicubic")}),
    "other colours": lambda: content_cache("*").plan({"pets@1": model(input__color="BGR")}),
    "another activation": lambda: content_cache("*").plan({"pets@1": model(output__activation="sigmoid")}),
    "another precision": lambda: content_cache("*", promise="1 fp32").plan({"pets@1": model()}),
    "lenient": lambda: content_cache("*", limits=DecodeLimits(truncated="lenient")).plan({"pets@1": model()}),
    "exact": lambda: content_cache("*", limits=DecodeLimits(exact=False)).plan({"pets@1": model()}),
    "fewer pixels": lambda: content_cache("*", limits=DecodeLimits(max_pixels=9)).plan({"pets@1": model()}),
    "decoded for a second model too": lambda: content_cache("pets").plan(
        {"pets@1": model(), "more@1": model(preprocess__background=[0, 0, 0])}
    ),
}
EQUAL_ANSWERS: dict[str, Callable[[], Plan | None]] = {
    "by name": lambda: content_cache("pets").plan({"pets@1": model()}),
    "by name and version": lambda: content_cache("pets@1").plan({"pets@1": model()}),
    "other labels": lambda: content_cache("*").plan({"pets@1": model(labels=["x", "y"])}),
    "another threshold": lambda: content_cache("*").plan({"pets@1": model(output__threshold=0.1)}),
}


@pytest.mark.parametrize("change", OTHER_ANSWERS)
def test_whatever_may_change_an_answer_changes_the_key(change: str) -> None:
    plan = OTHER_ANSWERS[change]()
    assert plan is not None
    assert PLAIN is not None
    assert plan.key != PLAIN.key


@pytest.mark.parametrize("change", EQUAL_ANSWERS)
def test_what_is_applied_to_scores_afterwards_does_not(change: str) -> None:
    assert EQUAL_ANSWERS[change]() == PLAIN


def test_models_that_are_not_named_are_not_cached() -> None:
    assert content_cache("pets@2", "dogs").plan({"pets@1": model()}) is None
    plan = content_cache("b", "a").plan({name: model() for name in ("b@1", "c@1", "a@1")})
    assert plan is not None
    assert plan.models == ("a@1", "b@1")


# --- through the pipeline ------------------------------------------------------------------------------------------


class Bench:
    """A pipeline on a device, with pictures by name."""

    def __init__(self, models: dict[str, Any], images: dict[str, Any], *cached: str, fetch: Any = None) -> None:
        self.backends = models
        self.device = Device()
        self.device.start()
        for name, backend in models.items():
            self.device.load(name, partial(ModelSlot, backend, 8))
        self.cache = content_cache(*cached) if cached else None
        self.pool = LaneExecutor(2, "test")
        self.pipeline = Pipeline(
            fetcher=fetch or Fetch({f"https://h/{name}": data for name, data in images.items()}),
            models={name: describe(name.partition("@")[0]) for name in models},
            device=self.device,
            decode_pool=self.pool,
            limits=LIMITS,
            decoded_in_flight=1,
            worker="w",
            cache=self.cache,
        )

    def classify(
        self, *names: str, asked: tuple[str, ...] = (), options: Any = None, lane: Any = "bulk", **lease: Any
    ) -> Any:
        asked = asked or tuple(self.backends)
        fields = {
            "job": "j",
            "chunk": "0",
            "items": [{"id": f"{n}", "ref": f"https://h/{name}"} for n, name in enumerate(names)],
            "models": [name.partition("@")[0] for name in asked],
            "options": options or {},
        }
        held = Lease(Begin.RUN, b"", attempt=1, waited_ms=0, models=asked, **lease)
        return self.pipeline.classify(Payload.model_validate(fields), held, lane)

    def close(self) -> None:
        self.pool.close()
        self.device.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*args: Any, **options: Any) -> Bench:
        made.append(Bench(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def bare(records: list[Record]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("timings_ms", "finished_at")} for record in records]


def outcomes(name: str) -> dict[str, float]:
    return {outcome: CACHE.labels(name, outcome)._value.get() for outcome in ("hit", "remote", "shared", "miss")}


IMAGES = {"light": jpeg(250), "grey": jpeg(120), "dark": jpeg(0), "cut": jpeg(60)[:200]}
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"top_k": 1}, {"scores": "all"}, {"threshold": 0.6}, {"scores": "all", "threshold": 0.0},
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_records_are_those_of_a_worker_without_a_cache(bench: Callable[..., Bench], options: dict[str, Any]) -> None:
    models = {"a@1": Brightness(), "b@1": Brightness(True)}
    with_cache, without = bench(models, IMAGES, "*"), bench(models, IMAGES)

    async def run() -> None:
        expected = bare(await without.classify(*IMAGES, options=options))
        seen, ran = 0, models["a@1"].images
        for asked in OPTIONS:
            await with_cache.classify(*IMAGES, options=asked)
        for _ in range(2):
            records = await with_cache.classify(*IMAGES, options=options)
            assert bare(records) == expected
            seen += sum("forward" not in record["timings_ms"] for record in records if record["status"] == "ok")
        assert seen == 4, "two of the pictures were known"
        assert [record["status"] for record in records] == ["ok", "ok", "partial", "error"]
        assert models["a@1"].images - ran == 2 + (len(OPTIONS) + 2), "what failed in part is done again"

    asyncio.run(run())


def test_a_hit_is_neither_decoded_nor_classified(bench: Callable[..., Bench]) -> None:
    place = bench({"once@1": Brightness()}, IMAGES, "once")

    async def run() -> None:
        [first] = await place.classify("light")
        place.pool.close()  # who decodes now fails
        [second] = await place.classify("light")
        assert bare([first]) == bare([second])
        assert set(second["timings_ms"]) == {"queue", "fetch", "total"}

    asyncio.run(run())
    assert place.backends["once@1"].images == 1
    assert outcomes("once@1") == {"hit": 1, "remote": 0, "shared": 0, "miss": 1}


def test_copies_at_one_time_share_one_inference_for_each_urgency(bench: Callable[..., Bench]) -> None:
    place = bench({"together@1": Brightness()}, IMAGES, "*")

    async def run() -> None:
        lanes = ("interactive", None), ("bulk", None), ("bulk", 60_000), ("interactive", None)
        chunks = [place.classify(*["light"] * 16, lane=lane, left_ms=left) for lane, left in lanes]
        records = [record for chunk in await asyncio.gather(*chunks) for record in chunk]
        assert len({str(record["models"]) for record in records}) == 1

    asyncio.run(run())
    assert place.backends["together@1"].images == 2, "the 16 with a deadline do not wait for one who has none"
    assert outcomes("together@1") == {"hit": 0, "remote": 0, "shared": 62, "miss": 2}


def test_only_the_rest_is_asked_of_a_model_without_a_cache(bench: Callable[..., Bench]) -> None:
    models = {"kept@1": Brightness(), "not@1": Brightness()}
    place, without = bench(models, IMAGES, "kept"), bench(models, IMAGES)

    async def run() -> None:
        first, again = await place.classify("grey"), await place.classify("grey")
        assert bare(first) == bare(again) == bare(await without.classify("grey"))
        alone = await place.classify("grey", asked=("not@1",))
        assert list(alone[0]["models"]) == ["not@1"]

    asyncio.run(run())
    assert (models["kept@1"].images, models["not@1"].images) == (1 + 1, 2 + 1 + 1)


def test_the_images_of_a_suspect_chunk_are_looked_at_themselves(bench: Callable[..., Bench]) -> None:
    place = bench({"suspect@1": Brightness()}, IMAGES, "*")

    async def run() -> None:
        await place.classify("light")
        await place.classify("light", deaths=2)

    asyncio.run(run())
    assert place.backends["suspect@1"].images == 2


def test_errors_are_not_kept(bench: Callable[..., Bench]) -> None:
    class Fails(Brightness):
        fails = True

        def run(self, batch: Any) -> Any:
            if self.fails:
                raise RuntimeError("not today")
            return super().run(batch)

    place = bench({"later@1": (backend := Fails())}, IMAGES, "*")

    async def run() -> None:
        failed = await place.classify("light", "light", "light", "light")
        assert [record["error"]["code"] for record in failed] == ["model_failed"] * 4
        backend.fails = False
        [record] = await place.classify("light")
        assert record["status"] == "ok"
        assert len(place.cache._flights) == 0  # type: ignore[union-attr]

    asyncio.run(run())


def test_a_first_that_is_cancelled_takes_nobody_with_it(bench: Callable[..., Bench]) -> None:
    place = bench({"cancelled@1": Brightness()}, IMAGES, "*")

    async def run() -> None:
        await place.pipeline._decoded.acquire("bulk")  # the only slot: who is first waits
        first = asyncio.create_task(place.classify("light"))
        await wait_until_async(lambda: len(place.cache._flights) == 1, "the first to be at it")
        second = asyncio.create_task(place.classify("light", "light"))
        await wait_until_async(lambda: place.pipeline._fetcher.fetched == ["https://h/light"] * 3, "all to have come")
        first.cancel()
        place.pipeline._decoded.release("bulk")
        assert [record["status"] for record in await second] == ["ok", "ok"]

    asyncio.run(run())
    assert place.backends["cancelled@1"].images == 1


def test_who_waits_for_the_first_keeps_its_own_deadline(bench: Callable[..., Bench]) -> None:
    place = bench({"due@1": Brightness()}, IMAGES, "*")

    async def run() -> None:
        await place.pipeline._decoded.acquire("bulk")
        first = asyncio.create_task(place.classify("light", left_ms=1_000))
        await wait_until_async(lambda: len(place.cache._flights) == 1, "the first to be at it")
        [late] = await place.classify("light", left_ms=50)
        assert late["error"]["code"] == "deadline_exceeded"
        second = asyncio.create_task(place.classify("light"))
        [lost] = await first
        assert lost["error"]["code"] == "deadline_exceeded"
        place.pipeline._decoded.release("bulk")
        [record] = await second
        assert record["status"] == "ok"

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_cancelled_or_fails_everyone_comes_to_an_end(bench: Callable[..., Bench], seed: int) -> None:
    dice = random.Random(seed)
    images = {name: jpeg(level) for level, name in enumerate("abcd", start=100)} | {
        "dark": jpeg(0),
        "cut": b"\xff\xd8\xff",
    }

    class Flaky(Brightness):
        def run(self, batch: Any) -> Any:
            if dice.random() < 0.3:
                raise RuntimeError("now and then")
            return super().run(batch)

    class Now(Fetch):
        async def fetch(self, reference: Any, **options: Any) -> bytes:
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            if dice.random() < 0.05:
                raise ImageError(ErrorCode.FETCH_FAILED)
            return await super().fetch(reference, **options)

    fetch = Now({f"https://h/{name}": data for name, data in images.items()})
    place = bench({"flaky@1": Flaky(), "other@1": Brightness(True)}, images, "*", fetch=fetch)

    async def run() -> None:
        tasks = []
        for _ in range(40):
            names = dice.choices(list(images), k=8)
            left = dice.choice((None, None, 5, 2_000))
            chunk = place.classify(*names, lane=dice.choice(("interactive", "bulk")), left_ms=left)
            tasks.append(asyncio.create_task(chunk))
            if dice.random() < 0.3:
                await asyncio.sleep(0.002)
                dice.choice(tasks).cancel()
        async with asyncio.timeout(30):
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    assert len(await task) == 8
        assert len(place.cache._flights) == 0  # type: ignore[union-attr]

    asyncio.run(run())
