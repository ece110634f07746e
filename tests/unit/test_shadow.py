"""A shadow version: it runs in spare time alone, and what it says is compared and returned to nobody."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from classifleet.worker.batching import SPARE_BATCH, SPARE_IMAGES, Backlog, Sizes
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.instruments import SHADOW, SHADOW_DIFFERENCE
from classifleet.worker.queues import Waiting
from classifleet.worker.shadow import Shadow, compared

FULL = 32
PIXELS = np.zeros((2, 2, 3), np.uint8)


def waiting(now: float, deadline: float = math.inf) -> Waiting:
    future: Any = SimpleNamespace(done=lambda: False)
    return Waiting(PIXELS, now, future, deadline)


def simulate(*, seconds: float, rate: float, shadow_share: float) -> Counter[str]:
    """Images that are done, and comparisons that are refused, on a clock of the test's own.

    A forward pass takes 1 ms and 1 ms an image, so that the device is saturated at about 970 images/s.
    """
    backlog, done, now, arrived = Backlog(), Counter[str](), 0.0, 0
    for model in ("m@1", "m@2"):
        backlog.open(model, Sizes(FULL))
    while now < seconds:
        while arrived < now * rate:
            backlog.add("m@1", "bulk", waiting(arrived / rate))
            arrived += 1
        batch = backlog.next(now)
        if batch is None:
            now = max(now, arrived / rate) + 1e-6
            continue
        took = 0.001 + 0.001 * len(batch.images)
        backlog.charge(batch, took)
        now += took
        done[batch.model] += len(batch.images)
        if batch.model == "m@1":
            for _ in range(int(len(batch.images) * shadow_share)):
                done["dropped"] += not backlog.add_spare("m@2", waiting(now))
    return done


def test_a_saturated_device_compares_nothing_and_loses_nothing() -> None:
    alone = simulate(seconds=10, rate=2000, shadow_share=0)
    beside = simulate(seconds=10, rate=2000, shadow_share=0.5)
    assert beside["m@1"] == alone["m@1"] > 9000
    assert beside["m@2"] == 0
    assert beside["dropped"] == pytest.approx(beside["m@1"] / 2 - SPARE_IMAGES, abs=FULL)


def test_an_idle_device_compares_all() -> None:
    alone = simulate(seconds=10, rate=100, shadow_share=0)
    beside = simulate(seconds=10, rate=100, shadow_share=1)
    assert abs(beside["m@1"] - alone["m@1"]) <= 1
    assert beside["dropped"] == 0
    assert beside["m@2"] == pytest.approx(beside["m@1"], abs=SPARE_BATCH)


def test_real_work_waits_for_one_small_batch_at_most() -> None:
    backlog = Backlog()
    for model in ("m@1", "m@2"):
        backlog.open(model, Sizes(FULL))
    for _ in range(20):
        assert backlog.add_spare("m@2", waiting(0))
    first = backlog.next(0)
    assert first is not None
    assert (first.model, len(first.images), first.reason) == ("m@2", SPARE_BATCH, "spare")
    backlog.add("m@1", "bulk", waiting(0))
    second = backlog.next(0)
    assert second is not None
    assert second.model == "m@1"


def test_no_spare_batch_is_larger_than_its_model_takes() -> None:
    backlog = Backlog()
    backlog.open("m@1", Sizes(FULL))
    backlog.open("m@2", Sizes(1, (1,)))
    for _ in range(3):
        assert backlog.add_spare("m@2", waiting(0))
    batch = backlog.next(0)
    assert batch is not None
    assert (batch.model, len(batch.images)) == ("m@2", 1)


def test_what_has_waited_too_long_or_has_lost_its_model_is_not_compared() -> None:
    backlog = Backlog()
    for model in ("m@1", "m@2", "m@3"):
        backlog.open(model, Sizes(FULL))
    backlog.add_spare("m@2", waiting(0, deadline=1))
    backlog.add_spare("m@3", waiting(0))
    backlog.add_spare("m@2", waiting(0))
    backlog.close("m@3")
    assert not backlog.add_spare("m@3", waiting(0))
    batch = backlog.next(2)
    assert batch is not None
    assert (batch.model, len(batch.images)) == ("m@2", 1)
    assert backlog.next(2) is None


@pytest.mark.parametrize(
    ("one", "other", "same", "difference"),
    [
        ({"cat": 0.75, "dog": 0.25}, {"cat": 0.5, "dog": 0.5 - 1e-9}, True, 0.25),
        ({"cat": 0.75, "dog": 0.25}, {"dog": 0.75, "cat": 0.25}, False, 0.5),
        ({"cat": 0.75, "dog": 0.25}, {"dog": 0.0, "cat": 0.25, "cow": 0.75}, False, 0.75),
    ],
)
def test_comparing(one: dict[str, float], other: dict[str, float], same: bool, difference: float) -> None:
    agrees, largest = compared(one, other)
    assert agrees is same
    assert largest == pytest.approx(difference)


class Says:
    """A model that answers the same to everything, once its gate is open."""

    name = "says"

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.gate = threading.Event()
        self.gate.set()
        self.ran = 0

    def run(self, batch: Any) -> Any:
        assert self.gate.wait(10)
        self.ran += len(batch)
        return np.array([self.scores] * len(batch), np.float32)

    def warm(self, batch_sizes: Any) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def two() -> Iterator[tuple[Device, Says, Says]]:
    """A device with m@1, which says cat, and m@2, which says dog."""
    device, first, second = Device(), Says([0.75, 0.25]), Says([0.25, 0.75])
    device.start()
    device.load("m@1", partial(ModelSlot, first, 8))  # type: ignore[arg-type]
    device.load("m@2", partial(ModelSlot, second, 8))  # type: ignore[arg-type]
    yield device, first, second
    device.close()
    SHADOW.clear()
    SHADOW_DIFFERENCE.clear()


def described(preprocess: str = "p") -> Any:
    return SimpleNamespace(labels=("cat", "dog"), preprocess=SimpleNamespace(digest=preprocess))


def outcomes() -> dict[str, float]:
    [metric] = SHADOW.collect()
    return {s.labels["outcome"]: s.value for s in metric.samples if s.name.endswith("_total") and s.value}


def offer(shadow: Shadow, device: Device, times: int) -> None:
    """Answer so many images, and let what is compared end."""

    async def work() -> None:
        for _ in range(times):
            got = await device.infer("m@1", PIXELS, "bulk")
            shadow.offer("m@1", {"p": PIXELS}, got.scores)
        async with shadow.paused():
            shadow.offer("m@1", {"p": PIXELS}, got.scores)
        assert not shadow._tasks, "nothing more was compared"

    asyncio.run(work())


def test_its_answers_are_compared(two: tuple[Device, Says, Says]) -> None:
    device, first, second = two
    ready = {"m@1": described(), "m@2": described()}
    chances = iter([0.0, 0.49, 0.5, 0.99] * 5)
    offer(Shadow({"m": {"2": 50}}, ready, device, chance=lambda: next(chances)), device, 20)
    assert (first.ran, second.ran, outcomes()) == (20, 10, {"disagree": 10})
    second.scores = [0.74, 0.26]
    offer(Shadow({"m": {"2": 100}}, ready, device), device, 3)
    assert outcomes() == {"disagree": 10, "agree": 3}
    [histogram] = SHADOW_DIFFERENCE.collect()
    [total] = [s.value for s in histogram.samples if s.name.endswith("_sum")]
    assert total == pytest.approx(10 * 0.5 + 3 * 0.01)


def test_it_is_not_compared_with_itself_nor_with_other_models(two: tuple[Device, Says, Says]) -> None:
    device, _, second = two
    shadow = Shadow({"m": {"2": 100}}, {"m@2": described()}, device)
    for key in ("m@2", "other@1"):
        shadow.offer(key, {"p": PIXELS}, np.zeros(2, np.float32))
    assert (second.ran, shadow._tasks, outcomes()) == (0, set(), {})


@pytest.mark.parametrize("ready", [{"m@1": described()}, {"m@1": described(), "m@2": described("other")}])
def test_one_that_cannot_be_compared_fails(two: tuple[Device, Says, Says], ready: dict[str, Any]) -> None:
    device, _, second = two
    offer(Shadow({"m": {"2": 100}}, ready, device), device, 2)
    assert (second.ran, outcomes()) == (0, {"failed": 2})


def test_it_is_wished_for_by_each_image_of_its_share(two: tuple[Device, Says, Says]) -> None:
    """Also while it is not here: nobody else asks for it."""
    device, _, _ = two
    wished: list[str] = []
    chances = iter([0.0, 0.9] * 3)
    ready = {"m@1": described()}
    offer(Shadow({"m": {"2": 50}}, ready, device, wish=wished.append, chance=lambda: next(chances)), device, 6)
    assert wished == ["m@2"] * 3


def test_an_answer_does_not_wait_for_it(two: tuple[Device, Says, Says], monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that is compared has its answer before; what nobody has time for is dropped."""
    device, first, second = two
    monkeypatch.setattr("classifleet.worker.shadow.WAIT_SECONDS", 0.05)
    shadow = Shadow({"m": {"2": 100}}, {"m@1": described(), "m@2": described()}, device)

    async def work() -> None:
        got = await device.infer("m@1", PIXELS, "bulk")
        first.gate.clear()
        busy = asyncio.create_task(device.infer("m@1", PIXELS, "bulk"))
        await asyncio.sleep(0)
        start = time.monotonic()
        shadow.offer("m@1", {"p": PIXELS}, got.scores)
        assert time.monotonic() - start < 0.05
        async with shadow.paused():
            shadow.offer("m@1", {"p": PIXELS}, got.scores)
        assert not shadow._tasks, "nothing more was compared"
        first.gate.set()
        await busy

    asyncio.run(work())
    assert (second.ran, outcomes()) == (0, {"dropped": 1})
