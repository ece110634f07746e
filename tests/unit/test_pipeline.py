"""A chunk through fetch, decode, device and record, with a model that needs no torch and real JPEG bytes."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifleet.config import ErrorCode, ImageError, Payload, Record
from classifleet.config.reference import Reference
from classifleet.ledger import Begin, Lease
from classifleet.worker.batching import Device, ModelSlot
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.models import ModelDescription
from classifleet.worker.pipeline import Pipeline
from tests.models_support import description_fields

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

    async def fetch(self, reference: Reference, *, job: str, chunk: str, deadline_seconds: float | None) -> bytes:
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
    pools = ThreadPoolExecutor(2)

    def call(
        images: dict[str, Any], models: dict[str, Any] | None = None, *, asked: tuple[str, ...] = (), **lease: Any
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
            fetcher=Fetch({f"https://h/{name}?secret": data for name, data in images.items()}),
            models={name: describe(name.partition("@")[0]) for name in backends},
            device=device,
            decode_pool=pools,
            limits=DecodeLimits(),
            decoded_in_flight=4,
            worker="w",
        )
        held = Lease(Begin.RUN, b"", attempt=3, waited_ms=20, models=asked or tuple(backends), **lease)
        try:
            return asyncio.run(pipeline.classify(payload, held, "bulk"))
        finally:
            device.close()

    yield call
    pools.shutdown()


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
