"""The device thread: what images meet there, with models that do as they are told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError, ModelError
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.lanes import BULK_EVERY
from tests.support.waiting import wait_until


class Recorder:
    """A model that answers with the first pixel and remembers its batches. It waits while `gate` is cleared."""

    name = "recorder"

    def __init__(self, fail: Callable[[int], bool] = lambda _: False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail = fail
        self.closed = False

    def run(self, batch: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(10)
        values = [int(image[0, 0, 0]) for image in batch]
        self.batches.append(values)
        if any(self.fail(value) for value in values):
            raise RuntimeError(f"cannot stand {values}\nsecond line")
        return np.array([[value, -value] for value in values], np.float32)

    def warm(self, batch_sizes: Any) -> None:
        raise AssertionError("the device does not warm")

    def close(self) -> None:
        self.closed = True


def image(value: int) -> Any:
    return np.full((2, 2, 3), value, np.uint8)


@contextmanager
def device(max_batch: int = 4, on_lost: Callable[[], None] = lambda: None, **models: Any) -> Iterator[Device]:
    running = Device(on_lost)
    running.start()
    for name, model in models.items():
        running.load(name, partial(ModelSlot, model, max_batch))
    try:
        yield running
    finally:
        running.close()


def test_a_device_whose_thread_ends_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    with device(on_lost=lost.set, m=Recorder()) as running:
        monkeypatch.setattr(running._backlog, "next", lambda _now: 1 // 0)
        with suppress(ModelError):
            running.call(lambda: None)
        assert lost.wait(10)
        wait_until(lambda: not running.alive(), "the thread to end")
        assert running.lost.startswith("ZeroDivisionError")


def test_a_lonely_image_runs_at_once_alone() -> None:
    model = Recorder()
    with device(m=model) as running:
        got = asyncio.run(running.infer("m", image(7), "bulk"))
    assert got.scores.tolist() == [7, -7]
    assert got.wait_ms >= 0
    assert got.forward_ms >= 0
    assert model.batches == [[7]]
    assert model.closed


def test_a_batch_forms_while_the_device_is_busy_up_to_its_bound_interactive_first() -> None:
    model = Recorder()
    model.gate.clear()

    async def scenario(running: Device) -> list[float]:
        first = asyncio.create_task(running.infer("m", image(0), "bulk"))
        await asyncio.to_thread(model.entered.wait, 10)
        rest = [asyncio.create_task(running.infer("m", image(n), "bulk")) for n in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        urgent = asyncio.create_task(running.infer("m", image(9), "interactive"))
        await asyncio.sleep(0)
        model.gate.set()
        return [float(i.scores[0]) for i in await asyncio.gather(first, *rest, urgent)]

    with device(m=model) as running:
        assert asyncio.run(scenario(running)) == [0, 1, 2, 3, 4, 9]
    assert model.batches == [[0], [9], [1, 2, 3, 4]]


def test_only_the_culprit_of_a_failing_batch_fails() -> None:
    model = Recorder(fail=lambda value: value == 3)
    model.gate.clear()

    async def scenario(running: Device) -> list[Any]:
        tasks = [asyncio.create_task(running.infer("m", image(0), "bulk"))]
        await asyncio.to_thread(model.entered.wait, 10)
        tasks += [asyncio.create_task(running.infer("m", image(n), "bulk")) for n in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with device(m=model) as running:
        got = asyncio.run(scenario(running))
    assert [float(g.scores[0]) for g in got if not isinstance(g, Exception)] == [0, 1, 2, 4]
    [error] = [g for g in got if isinstance(g, Exception)]
    assert isinstance(error, ImageError)
    assert error.code is ErrorCode.MODEL_FAILED
    assert str(error) == "m: RuntimeError: cannot stand [3]"


def test_a_model_that_swallows_answers_fails_instead_of_mixing_them_up() -> None:
    class Short(Recorder):
        def run(self, batch: Any) -> Any:
            return np.zeros((0, 2), np.float32)

    with device(m=Short()) as running, pytest.raises(ImageError, match="0 answers to 1 images"):
        asyncio.run(running.infer("m", image(1), "bulk"))


def test_busy_seconds_and_alive() -> None:
    model = Recorder()
    model.gate.clear()
    with device(m=model) as running:
        assert running.alive()
        assert running.busy_seconds() == 0
        thread = threading.Thread(target=lambda: asyncio.run(running.infer("m", image(1), "bulk")))
        thread.start()
        wait_until(lambda: running.forward_seconds() > 0.01, "the device to be busy")
        assert running.busy_seconds() > 0.01
        idle = threading.Thread(target=running.wait_idle)
        idle.start()
        idle.join(0.05)
        assert idle.is_alive()
        model.gate.set()
        idle.join(10)
        assert not idle.is_alive()
        thread.join()
        wait_until(lambda: running.busy_seconds() == 0, "the device to be idle")
    assert not running.alive()


def test_after_close_images_are_refused() -> None:
    with device(m=Recorder()) as running:
        pass
    with pytest.raises(ImageError) as caught:
        asyncio.run(running.infer("m", image(1), "bulk"))
    assert caught.value.code is ErrorCode.INTERNAL


def test_an_abandoned_image_does_not_disturb_its_batch() -> None:
    model = Recorder()
    model.gate.clear()

    async def scenario(running: Device) -> float:
        blocker = asyncio.create_task(running.infer("m", image(0), "bulk"))
        await asyncio.to_thread(model.entered.wait, 10)
        abandoned = asyncio.create_task(running.infer("m", image(1), "bulk"))
        kept = asyncio.create_task(running.infer("m", image(2), "bulk"))
        await asyncio.sleep(0)
        abandoned.cancel()
        model.gate.set()
        await blocker
        return float((await kept).scores[0])

    with device(m=model) as running:
        assert asyncio.run(scenario(running)) == 2


def test_a_model_that_does_not_load_says_so_to_who_waits_and_the_device_goes_on() -> None:
    def refuse() -> ModelSlot:
        raise OSError("no such file")

    with device(m=Recorder()) as running:
        with pytest.raises(OSError, match="no such file"):
            running.load("other", refuse)
        assert asyncio.run(running.infer("m", image(7), "bulk")).scores[0] == 7


def test_models_are_loaded_run_and_closed_on_one_thread() -> None:
    threads = []

    class Watched(Recorder):
        def __init__(self) -> None:
            super().__init__()
            threads.append(threading.current_thread())

        def run(self, batch: Any) -> Any:
            threads.append(threading.current_thread())
            return super().run(batch)

        def close(self) -> None:
            threads.append(threading.current_thread())

    with device() as running:
        running.load("m", lambda: ModelSlot(Watched(), 4))
        asyncio.run(running.infer("m", image(1), "bulk"))
    assert len(threads) == 3
    assert {thread.name for thread in threads} == {"classifleet-device"}


def test_a_stream_of_interactive_images_leaves_bulk_a_batch_now_and_then() -> None:
    model = Recorder()
    model.gate.clear()

    async def scenario(running: Device) -> None:
        tasks = [asyncio.create_task(running.infer("m", image(0), "interactive"))]
        await asyncio.to_thread(model.entered.wait, 10)
        tasks += [asyncio.create_task(running.infer("m", image(n), "interactive")) for n in range(1, 21)]
        tasks += [asyncio.create_task(running.infer("m", image(100 + n), "bulk")) for n in range(2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)

    with device(max_batch=1, m=model) as running:
        asyncio.run(scenario(running))
    order = [batch[0] for batch in model.batches]
    assert (order.index(100), order.index(101)) == (BULK_EVERY, 2 * BULK_EVERY)


def test_what_nobody_waits_for_and_what_is_late_is_not_run() -> None:
    model = Recorder()
    model.gate.clear()

    async def scenario(running: Device) -> list[Any]:
        blocker = asyncio.create_task(running.infer("m", image(0), "bulk"))
        await asyncio.to_thread(model.entered.wait, 10)
        abandoned = asyncio.create_task(running.infer("m", image(1), "bulk"))
        late = asyncio.create_task(running.infer("m", image(2), "bulk", time.monotonic() + 0.001))
        kept = asyncio.create_task(running.infer("m", image(3), "bulk", time.monotonic() + 600))
        await asyncio.sleep(0.002)
        abandoned.cancel()
        model.gate.set()
        return list(await asyncio.gather(blocker, abandoned, late, kept, return_exceptions=True))

    with device(m=model) as running:
        _, abandoned, late, kept = asyncio.run(scenario(running))
    assert model.batches == [[0], [3]]
    assert isinstance(abandoned, asyncio.CancelledError)
    assert isinstance(late, ImageError)
    assert late.code is ErrorCode.DEADLINE_EXCEEDED
    assert kept.scores[0] == 3


def test_a_model_that_is_not_there() -> None:
    with device(m=Recorder()) as running, pytest.raises(ImageError, match="no model 'x'") as caught:
        asyncio.run(running.infer("x", image(1), "bulk"))
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


def test_a_loop_that_is_closed_does_not_end_the_device() -> None:
    model = Recorder()
    model.gate.clear()

    async def leave(running: Device) -> None:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        await running.infer("m", image(1), "bulk")

    with device(m=model) as running:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(leave(running))
        model.gate.set()
        assert asyncio.run(running.infer("m", image(2), "bulk")).scores[0] == 2


class Lost(Recorder):
    """Dies with the first picture of 66."""

    def run(self, batch: Any) -> Any:
        if batch[0, 0, 0, 0] == 66:
            self.batches.append([66])
            raise RuntimeError(
                "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously …"
            )
        return super().run(batch)


def test_a_lost_device_answers_nothing_and_says_so_once() -> None:
    model, told = Lost(), threading.Event()

    async def scenario(running: Device) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(running.infer("m", image(n), "bulk")) for n in (66, 1)]
        await asyncio.to_thread(told.wait, 10)
        tasks.append(asyncio.create_task(running.infer("m", image(2), "bulk")))
        await asyncio.wait(tasks, timeout=0.05)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        return tasks

    with device(on_lost=told.set, m=model) as running:
        asyncio.run(scenario(running))
        assert running.lost == "RuntimeError: CUDA error: device-side assert triggered"
        wait_until(lambda: not running.alive(), "the thread to end")
        with pytest.raises(ModelError, match="device-side assert"):
            running.call(lambda: None)
    assert model.batches in ([[66]], [[66], [66]])  # a batch of two fails as a whole
    assert not model.closed  # nothing can be freed


def test_the_device_thread_does_other_things_between_batches() -> None:
    with device(m=Recorder()) as running:
        assert running.call(threading.current_thread).name == "classifleet-device"
        with pytest.raises(ZeroDivisionError):
            running.call(lambda: 1 // 0)
    with pytest.raises(ModelError, match="closed"):
        running.call(lambda: None)
