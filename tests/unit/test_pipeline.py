"""A chunk through fetch, decode, device and record, with a model that needs no torch and real JPEG bytes."""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from classifleet.config import ErrorCode, ImageError, Lane, LedgerUnavailable, Payload, Record
from classifleet.config.reference import Reference
from classifleet.ledger import Begin, Lease
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.models import ModelDescription
from classifleet.worker.pipeline import Mark, Pipeline
from classifleet.worker.waiting import WaitingRoom
from tests.models_support import description_fields
from tests.support.waiting import wait_until_async

LABELS = ["dark", "light"]


class Brightness:
    """Two classes by mean brightness; fails on pure black if told to."""

    name = "brightness"

    def __init__(self, fails_on_black: bool = False) -> None:
        self.images = 0
        self.fails_on_black = fails_on_black

    def run(self, batch: Any) -> Any:
        self.images += len(batch)
        light = batch.reshape(len(batch), -1).mean(axis=1) / 255
        if self.fails_on_black and (light < 0.05).any():
            raise RuntimeError("too dark")
        return np.stack([1 - light, light], axis=1).astype(np.float32)

    def warm(self, batch_sizes: Any) -> None: ...

    def close(self) -> None: ...


class Fetch:
    """Images by name; an exception is raised."""

    def __init__(self, images: dict[str, Any]) -> None:
        self.images = images
        self.fetched: list[str] = []

    async def fetch(
        self,
        reference: Reference,
        *,
        job: str,
        chunk: str,
        deadline_seconds: float | None,
        lane: Lane,
        slow: Callable[[bool], None],
    ) -> bytes:
        self.fetched.append(reference.text)
        found = self.images[reference.location]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, float):
            await asyncio.sleep(found)
        return found


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (level, level, level)).save(buffer, "JPEG")
    return buffer.getvalue()


def describe(name: str, **changes: Any) -> ModelDescription:
    return ModelDescription.model_validate(description_fields(name=name, labels=LABELS, **changes), strict=False)


@pytest.fixture
def run() -> Iterator[Callable[..., list[Record]]]:
    pools = LaneExecutor(2, "test")

    def call(
        images: dict[str, Any],
        models: dict[str, Any] | None = None,
        *,
        asked: tuple[str, ...] = (),
        mark: Mark | None = None,
        fetch: Fetch | None = None,
        room: WaitingRoom | None = None,
        shadow: Any = None,
        **lease: Any,
    ) -> list[Record]:
        backends = models or {"brightness@1": Brightness()}
        device = Device()
        device.start()
        for name, backend in backends.items():
            device.load(name, partial(ModelSlot, backend, 8))
        payload = Payload.model_validate(
            {
                "job": "j",
                "chunk": "0",
                "items": [{"id": name, "ref": f"https://h/{name}?secret", "meta": {"k": name}} for name in images],
                "models": [name.partition("@")[0] for name in backends],
            }
        )
        pipeline = Pipeline(
            fetcher=fetch or Fetch({f"https://h/{name}?secret": data for name, data in images.items()}),
            models={name: describe(name.partition("@")[0]) for name in backends},
            device=device,
            decode_pool=pools,
            limits=DecodeLimits(),
            decoded_in_flight=4,
            worker="w",
            room=room,
            shadow=shadow,
        )
        held = Lease(Begin.RUN, b"", attempt=3, waited_ms=20, models=asked or tuple(backends), **lease)
        try:
            return asyncio.run(pipeline.classify(payload, held, "bulk", mark))
        finally:
            device.close()

    yield call
    pools.close()


def test_a_good_image(run: Any) -> None:
    [record] = run({"a": jpeg(230)})
    assert (record["v"], record["id"], record["job"], record["status"]) == (1, "a", "j", "ok")
    assert record["ref"] == "https://h/a?redacted"
    assert record["meta"] == {"k": "a"}
    assert (record["attempt"], record["worker"]) == (3, "w")
    assert record["image"]["width"] == 64
    assert record["image"]["height"] == 48
    assert record["image"]["format"] == "JPEG"
    assert record["image"]["bytes"] == len(jpeg(230))
    assert record["models"]["brightness@1"]["top"] == "light"
    assert set(record["timings_ms"]) == {"queue", "fetch", "decode", "batch_wait", "forward", "total"}
    assert record["timings_ms"]["queue"] == 20
    assert record["timings_ms"]["total"] >= 20
    assert "error" not in record


def test_one_corrupt_image_among_63_good_ones(run: Any) -> None:
    images: dict[str, Any] = {f"{n:02d}": jpeg(n) for n in range(64)}
    images["31"] = jpeg(31)[:100]
    records = run(images)
    assert [record["id"] for record in records] == sorted(images)
    failed = [record for record in records if record["status"] != "ok"]
    assert [(record["id"], record["error"]["code"]) for record in failed] == [("31", "undecodable")]
    assert failed[0]["models"] == {}
    assert failed[0]["timings_ms"]["decode"] > 0


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (ImageError(ErrorCode.NOT_FOUND, "nothing there"), "not_found"),
        (b"<svg/>", "unsupported_format"),
        (OSError("surprise"), "internal"),
    ],
)
def test_what_goes_wrong_stays_with_its_image(run: Any, found: Any, code: str) -> None:
    good, bad = run({"good": jpeg(9), "bad": found})
    assert good["status"] == "ok"
    assert bad["error"]["code"] == code
    assert "surprise" not in bad["error"]["message"]  # an internal error's text stays in the log


def test_nothing_of_a_picture_that_failed_waits_for_the_collector(run: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        records = run({str(number): jpeg(230)[:-100] for number in range(8)})
        left = [thing for thing in gc.get_objects() if issubclass(type(thing), ImageFile)]
    finally:
        gc.enable()
    assert {record["error"]["code"] for record in records} == {"undecodable"}
    assert not left


def test_two_models_share_one_fetch_and_one_decode_and_fail_apart(run: Any) -> None:
    [light, dark] = run(
        {"light": jpeg(250), "dark": jpeg(0)}, {"brightness@1": Brightness(), "picky@1": Brightness(True)}
    )
    assert light["status"] == "ok"
    assert set(light["models"]) == {"brightness@1", "picky@1"}
    assert dark["status"] == "partial"
    assert dark["models"]["brightness@1"]["top"] == "dark"
    assert dark["models"]["picky@1"]["error"]["code"] == "model_failed"
    assert "error" not in dark


def test_when_every_model_fails_the_image_has_failed(run: Any) -> None:
    [record] = run({"dark": jpeg(0)}, {"picky@1": Brightness(True)})
    assert record["status"] == "error"
    assert record["error"]["code"] == "model_failed"
    assert record["models"]["picky@1"]["status"] == "error"


def test_a_model_that_this_worker_lacks(run: Any) -> None:
    [some] = run({"a": jpeg(9)}, asked=("brightness@1", "other@2"))
    assert some["status"] == "partial"
    assert some["models"]["other@2"]["error"]["code"] == "model_not_found"
    [none] = run({"a": jpeg(9)}, asked=("other@2",))
    assert none["error"]["code"] == "model_not_found"


def test_the_deadline_cuts_a_slow_fetch_and_nobody_else(run: Any) -> None:
    slow, good = run({"slow": 30.0, "good": jpeg(9)}, left_ms=500)
    assert slow["error"] == {
        "code": "deadline_exceeded",
        "message": "The deadline passed before the image was classified.",
        "retryable": True,
    }
    assert good["status"] == "ok"


def test_answers_stand_in_the_order_of_the_request(run: Any) -> None:
    class Slow(Brightness):
        def run(self, batch: Any) -> Any:
            time.sleep(0.02)  # so that it answers last, whichever the device takes first
            return super().run(batch)

    asked = ("c@1", "missing@3", "a@1", "b@1")
    [record] = run({"x": jpeg(9)}, {"a@1": Brightness(), "b@1": Brightness(), "c@1": Slow()}, asked=asked)
    assert tuple(record["models"]) == asked
    [failed] = run({"x": jpeg(0)}, {"b@1": Brightness(True), "a@1": Brightness(True)}, asked=("b@1", "a@1"))
    assert failed["error"]["message"].startswith("b@1")


def test_each_image_of_a_suspect_chunk_is_marked_before_it_is_touched(run: Any) -> None:
    events: list[str] = []

    class Watched(Fetch):
        async def fetch(self, reference: Reference, **options: Any) -> bytes:
            events.append(f"fetch {reference.location.removesuffix('?secret')[-1]}")
            return jpeg(9)

    async def mark(image: str) -> None:
        events.append(f"mark {image}".strip())

    images = dict.fromkeys("abc", b"")
    records = run(images, mark=mark, fetch=Watched({}), deaths=5, lone_deaths=("b", "a", "b"))
    assert [record["status"] for record in records] == ["ok", "error", "ok"]
    assert records[1]["error"]["code"] == "poison"
    assert "2 workers died while they were alone with the image, of 5" in records[1]["error"]["message"]
    assert events == ["mark c", "fetch c", "mark a", "fetch a", "mark"], "what a worker died with comes last"
    events.clear()
    assert [record["status"] for record in run(images, mark=mark, fetch=Watched({}), deaths=1)] == ["ok"] * 3
    assert sorted(events) == ["fetch a", "fetch b", "fetch c"]


def test_no_shadow_runs_beside_the_images_of_a_suspect_chunk(run: Any) -> None:
    """If it ended the process, the image that is marked by then would be to blame."""
    events: list[str] = []

    class Watched:
        def offer(self, *_: object) -> None:
            events.append("offer")

        @asynccontextmanager
        async def paused(self) -> AsyncIterator[None]:
            events.append("paused")
            yield
            events.append("goes on")

    async def mark(image: str) -> None:
        events.append(f"mark {image}".strip())

    run({"a": jpeg(9), "b": jpeg(9)}, mark=mark, shadow=Watched(), deaths=2)
    assert events == ["paused", "mark a", "offer", "mark b", "offer", "mark", "goes on"]
    events.clear()
    run({"a": jpeg(9)}, shadow=Watched(), deaths=1)
    assert events == ["offer"]


def test_a_mark_that_cannot_be_made_leaves_the_image_untouched(run: Any) -> None:
    async def mark(image: str) -> None:
        raise LedgerUnavailable("gone")

    fetch = Fetch({})
    with pytest.raises(LedgerUnavailable):
        run({"a": jpeg(9)}, mark=mark, fetch=fetch, deaths=2)
    assert fetch.fetched == []


def test_a_chunk_waits_aside_for_its_slow_image_and_goes_on_when_that_arrives(run: Any) -> None:
    seen: list[int] = []

    class OneSlow(Fetch):
        async def fetch(self, reference: Reference, *, slow: Callable[[bool], None], **options: Any) -> bytes:
            if "slow" in reference.location:
                slow(True)
                await wait_until_async(lambda: room.count("bulk") == 1, "the others to be done")
                slow(False)
                seen.append(room.count("bulk"))
            return jpeg(250)

    room = WaitingRoom(1)
    records = run({"slow": b"", "a": b"", "b": b""}, fetch=OneSlow({}), room=room)
    assert [record["status"] for record in records] == ["ok"] * 3
    assert seen == [0]
    assert room.count("bulk") == 0
