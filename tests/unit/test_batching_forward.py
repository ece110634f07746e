"""One batch on one model: padding, errors of single images, too little memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, ImageError
from classifleet.worker.batching import Sizes
from classifleet.worker.forward import Forward
from classifleet.worker.instruments import REGISTRY
from classifleet.worker.models.failures import DeviceLost, NotFinite, OutOfMemory, brief

NAN = 99


class Sums:
    """A model whose scores are an image's first pixel, and how large the batch was."""

    name = "sums"

    def __init__(self, refuse: Callable[[list[int]], Exception | None] = lambda _: None, typed: bool = False) -> None:
        self.sizes: list[int] = []
        self._refuse = refuse
        self._typed = typed

    def run(self, batch: Any) -> Any:
        values = [int(image[0, 0, 0]) for image in batch]
        self.sizes.append(len(values))
        if error := self._refuse(values):
            raise error
        scores = np.array([[np.nan if value == NAN else value, len(values)] for value in values], np.float32)
        if self._typed and not np.isfinite(scores).all():
            raise NotFinite("m: not finite", scores)
        return scores

    def warm(self, batch_sizes: Any) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""


def images(*values: int) -> list[Any]:
    return [np.full((2, 2, 3), value, np.uint8) for value in values]


def scores(answers: list[Any]) -> list[Any]:
    """First scores; the message for an error."""
    assert all(a.code is ErrorCode.MODEL_FAILED for a in answers if isinstance(a, ImageError))
    return [str(a) if isinstance(a, ImageError) else float(a[0]) for a in answers]


def sample(name: str, model: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"classifleet_{name}", {"model": model, **labels}) or 0.0


@pytest.mark.parametrize(
    ("buckets", "count", "size"), [((), 3, 3), ((1, 4, 8), 3, 4), ((1, 4, 8), 1, 1), ((1, 4, 8), 8, 8)]
)
def test_padding_is_run_and_never_answered(buckets: tuple[int, ...], count: int, size: int) -> None:
    model, name = Sums(), f"padded-{buckets}-{count}"
    answers = Forward(name, model, Sizes(8, buckets)).run(images(*range(1, count + 1)), "drained")
    assert scores(answers) == list(range(1, count + 1))
    assert {float(answer[1]) for answer in answers} == {size}  # type: ignore[index]
    assert model.sizes == [size]
    assert sample("padded_images_total", name) == size - count


def test_padding_that_is_not_finite_is_nobodys_trouble() -> None:
    class BlackIsNan(Sums):
        def run(self, batch: Any) -> Any:
            return np.where(super().run(batch) == 0, np.nan, super().run(batch))

    assert scores(Forward("m", BlackIsNan(), Sizes(8, (4, 8))).run(images(1, 2, 3), "full")) == [1, 2, 3]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("buckets", [(), (8,)])
def test_scores_that_are_not_finite_cost_their_image_alone_and_no_second_run(
    typed: bool, buckets: tuple[int, ...]
) -> None:
    model = Sums(typed=typed)
    answers = Forward("m", model, Sizes(8, buckets)).run(images(1, NAN, 3), "full")
    assert scores(answers) == [1, "m: the output holds NaN or infinity", 3]
    assert len(model.sizes) == 1


def test_a_failing_batch_is_bisected_and_each_pass_counted() -> None:
    model = Sums(lambda values: ValueError("not 3") if 3 in values else None)
    answers = Forward("bisected", model, Sizes(8)).run(images(1, 2, 3, 4, 5), "full")
    assert scores(answers) == [1, 2, "bisected: ValueError: not 3", 4, 5]
    assert model.sizes == [5, 2, 3, 1, 2]
    assert sample("batches_total", "bisected", reason="full") == 1
    assert sample("batches_total", "bisected", reason="bisected") == 4


def too_many(limit: int) -> Callable[[list[int]], Exception | None]:
    return lambda values: OutOfMemory("too many") if len(values) > limit else None


def test_out_of_memory_halves_and_remembers() -> None:
    model, sizes = Sums(too_many(4)), Sizes(16)
    forward = Forward("short", model, sizes)
    assert scores(forward.run(images(*range(16)), "full")) == list(range(16))
    assert model.sizes == [16, 8, 4, 4, 8, 4, 4] or model.sizes == [16, 8, 4, 4, 4, 4]
    assert (sizes.most, sizes.halved) == (4, True)
    assert sample("max_batch_images", "short") == 4
    assert sample("batches_total", "short", reason="memory") == len(model.sizes) - 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_out_of_memory_of_a_padded_batch(error: Exception) -> None:
    model, sizes = Sums(lambda values: error if len(values) > 2 else None), Sizes(8, (4, 8))
    assert scores(Forward("m", model, sizes).run(images(1), "drained")) == [1]
    assert (model.sizes, sizes) == ([4, 2], Sizes(2, (2,), True))


def test_an_image_that_needs_too_much_memory_fails_alone() -> None:
    model, sizes = Sums(lambda values: OutOfMemory("huge") if 3 in values else None), Sizes(4)
    assert scores(Forward("m", model, sizes).run(images(1, 2, 3, 4), "full")) == [1, 2, "m: OutOfMemory: huge", 4]


def test_a_device_without_memory_for_a_black_image_is_lost() -> None:
    model = Sums(too_many(0))
    with pytest.raises(DeviceLost, match="no memory for a single image: OutOfMemory: too many"):
        Forward("m", model, Sizes(4)).run(images(1, 2, 3, 4), "full")
    assert model.sizes == [4, 2, 1, 1]


@pytest.fixture
def no_collections() -> Iterator[None]:
    """What is freed is freed when nobody has it, as it must be on a device whose memory is full."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("text", ["not my kind of picture", "CUDA out of memory. Tried to allocate 2.00 GiB."])
def test_an_error_keeps_no_batch(text: str, no_collections: None) -> None:
    batches: list[weakref.ref[Any]] = []
    errors: list[Exception] = []

    class Remembers(Sums):
        def run(self, batch: Any) -> Any:
            if not batch.any():
                return super().run(batch)
            batches.append(weakref.ref(batch))
            try:
                raise ValueError("the cause has seen it, too")
            except ValueError as cause:
                errors.append(RuntimeError(text))
                raise errors[-1] from cause

    answers = Forward("m", Remembers(), Sizes(2)).run(images(1, 2), "full")
    assert scores(answers) == [f"m: {brief(errors[-1])}"] * 2
    assert [batch() for batch in batches] == [None] * 3


def test_a_lost_device_is_not_tried_again() -> None:
    model = Sums(lambda _: RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(DeviceLost, match="unspecified launch failure"):
        Forward("m", model, Sizes(4)).run(images(1, 2, 3, 4), "full")
    assert model.sizes == [4]
