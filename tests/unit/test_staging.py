"""Batches that travel while another one is computed, on a CPU: the same code, without streams."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
import pytest

from classifleet.config.errors import ImageError, ModelError
from classifleet.worker.device import Device, ModelSlot

torch = pytest.importorskip("torch")
from classifleet.worker.models._graphs import GraphedBackend  # noqa: E402 - needs torch
from classifleet.worker.models.backend import Overlapping, pads  # noqa: E402
from classifleet.worker.models.failures import DeviceLost, OutOfMemory  # noqa: E402
from classifleet.worker.models.staging import UNDER_WAY, StagedBackend  # noqa: E402
from tests.unit.test_tuning_graphs import DESCRIPTION, CpuRecorder, Model, batch  # noqa: E402

FULL = 4


def staged() -> tuple[StagedBackend, Model]:
    model = Model()
    return StagedBackend(model, DESCRIPTION), model


def wanted(pixels: np.ndarray) -> np.ndarray:
    return Model().scores(torch.from_numpy(pixels)).numpy()


def test_what_is_computed_is_what_was_sent():
    backend, model = staged()
    backend.warm([1, FULL])
    assert model.warmed == [1, FULL]
    assert isinstance(backend, Overlapping)
    assert (backend.name, pads(backend)) == (model.name, False)
    for size in (3, 1, FULL):
        pixels = batch(size, seed=size)
        assert np.array_equal(backend.run(pixels), wanted(pixels))


@pytest.mark.parametrize("under_way", [1, UNDER_WAY, UNDER_WAY + 2])
def test_no_batch_has_the_scores_of_another(under_way: int):
    """Even if more are under way than there are buffers, and whichever is asked for first."""
    backend, _ = staged()
    pixels = [batch(size, seed=size) for size in range(1, under_way + 1)]
    finishes = []
    for each in pixels:
        sent = each.copy()
        finishes.append(backend.begin(sent))
        sent[:] = 0
    for each, finish in reversed(list(zip(pixels, finishes, strict=True))):
        first = finish()
        assert np.array_equal(first, wanted(each))
        assert np.array_equal(finish(), first)


def test_recordings_are_replayed_on_what_was_sent():
    model, recorder = Model(), CpuRecorder()
    backend = StagedBackend(GraphedBackend(model, DESCRIPTION, recorder), DESCRIPTION)
    backend.warm([1, 2, FULL])
    recorder.replayed.clear()
    first, second = batch(3, seed=1), batch(4, seed=2)
    finish_first, finish_second = backend.begin(first), backend.begin(second)
    assert np.array_equal(finish_first(), wanted(first))
    assert np.array_equal(finish_second(), wanted(second))
    assert (recorder.replayed, pads(backend)) == ([FULL, FULL], True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("CUDA out of memory. Tried", OutOfMemory), ("CUDA error: unspecified launch failure", DeviceLost)],
)
def test_errors_are_typed(text: str, kind: type[Exception]):
    backend, model = staged()

    def raises(_: object) -> None:
        raise RuntimeError(text)

    model.scores = raises
    with pytest.raises(kind):
        backend.run(batch(1))


def test_what_is_closed_runs_nothing():
    backend, model = staged()
    backend.close()
    assert model.closed
    with pytest.raises(ModelError, match="closed"):
        backend.run(batch(1))
    with pytest.raises(ModelError, match="takes uint8"):
        staged()[0].run(batch(1)[0])


# --- under the device ------------------------------------------------------------------------------------------


class Telling(StagedBackend):
    """Notes when batches are begun and finished; one that holds white cannot be computed."""

    def __init__(self) -> None:
        model = Model()
        super().__init__(model, DESCRIPTION)
        self.told: list[tuple[str, int]] = []
        honest = model.scores

        def scores(pixels):
            if (pixels.flatten(1) == 255).all(1).any():
                raise RuntimeError("cannot stand white")
            return honest(pixels)

        model.scores = scores

    def begin(self, batch):
        self.told.append(("begin", len(batch)))
        finish = super().begin(batch)

        def finished():
            self.told.append(("finish", len(batch)))
            return finish()

        return finished


def classify(backend: Telling, images: list[np.ndarray]) -> list[object]:
    """All of them wait before the device begins."""

    async def main() -> list[object]:
        device = Device()
        device._load("m", partial(ModelSlot, backend, FULL))
        asked = [asyncio.create_task(device.infer("m", image, "bulk")) for image in images]
        await asyncio.sleep(0)
        device.start()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.to_thread(device.close)
        return answers

    return asyncio.run(main())


def test_a_full_batch_is_sent_before_the_one_before_it_is_finished():
    backend = Telling()
    images = list(batch(2 * FULL + 1))
    answers = classify(backend, images)
    assert [tuple(a.scores) for a in answers] == [tuple(row) for row in wanted(np.stack(images))]
    assert backend.told == [
        *(("begin", FULL), ("begin", FULL), ("finish", FULL), ("finish", FULL)), ("begin", 1), ("finish", 1)
    ]  # fmt: skip


def test_a_batch_that_fails_beside_another_costs_neither_an_answer():
    backend = Telling()
    images = list(batch(3 * FULL, seed=7))
    white = [1, FULL + 2]
    for index in white:
        images[index] = np.full_like(images[index], 255)
    answers = classify(backend, images)
    expected = wanted(np.stack(images))
    for index, answer in enumerate(answers):
        if index in white:
            assert isinstance(answer, ImageError)
        else:
            assert tuple(answer.scores) == tuple(expected[index]), index
