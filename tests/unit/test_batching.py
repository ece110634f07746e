"""The device thread and its micro-batches, with models that need no torch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError, Lane
from classifleet.worker.batching import Device, ModelSlot, _Waiting, choose, take
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
def device(max_batch: int = 4, **models: Any) -> Iterator[Device]:
    running = Device()
    running.start()
    for name, model in models.items():
        running.load(name, partial(ModelSlot, model, max_batch))
    try:
        yield running
    finally:
        running.close()


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
        wait_until(lambda: running.busy_seconds() > 0.01, "the device to be busy")
        model.gate.set()
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


def waiting(since: float) -> _Waiting:
    return _Waiting(image(0), since, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "passed_over", "expected"),
    [
        (([], []), ([], []), 0, None),
        (([], [1.0]), ([], [2.0]), 0, ("a", "bulk")),
        (([], [2.0]), ([], [1.0]), 0, ("b", "bulk")),
        (([], [1.0]), ([5.0], []), 0, ("b", "interactive")),  # interactive before bulk, however old that is
        (([3.0], [0.0]), ([2.0], []), 0, ("b", "interactive")),
        (([3.0], [1.0]), ([2.0], []), BULK_EVERY - 1, ("a", "bulk")),  # but not for ever
        (([3.0], []), ([2.0], []), BULK_EVERY - 1, ("b", "interactive")),
    ],
)
def test_choose(a: Any, b: Any, passed_over: int, expected: tuple[str, str] | None) -> None:
    queues = {
        name: {"interactive": deque(map(waiting, lanes[0])), "bulk": deque(map(waiting, lanes[1]))}
        for name, lanes in (("a", a), ("b", b))
    }
    assert choose(queues, passed_over) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interactive", "size", "first", "expected"),
    [
        (1, 32, "interactive", (1, 7)),  # bulk tops it up to a quarter
        (12, 32, "interactive", (12, 0)),
        (40, 32, "interactive", (32, 0)),
        (1, 3, "interactive", (1, 0)),
        (1, 32, "bulk", (0, 32)),
        (1, 50, "bulk", (1, 40)),
    ],
)
def test_take_leaves_the_rest_in_order(interactive: int, size: int, first: Lane, expected: tuple[int, int]) -> None:
    before: dict[Lane, list[int]] = {"interactive": list(range(interactive)), "bulk": list(range(100, 140))}
    queues = {lane: deque(map(waiting, values)) for lane, values in before.items()}
    batch = [w.since for w in take(queues, size, first)]
    taken = {lane: values[:count] for (lane, values), count in zip(before.items(), expected, strict=True)}
    assert sorted(batch) == taken["interactive"] + taken["bulk"]
    assert batch == taken[first] + [since for lane, values in taken.items() if lane != first for since in values]
    assert {lane: [w.since for w in left] for lane, left in queues.items()} == {
        lane: values[len(taken[lane]) :] for lane, values in before.items()
    }


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
