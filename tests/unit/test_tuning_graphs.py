"""Recordings of a forward pass, on a CPU: what is replayed there is the same code, run again into the same memory."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from classifleet.config.errors import ModelError
from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields

torch = pytest.importorskip("torch")
from classifleet.worker.models._graphs import GraphedBackend  # noqa: E402 - needs torch
from classifleet.worker.models._torch import TorchScriptBackend  # noqa: E402
from classifleet.worker.models.backend import pads  # noqa: E402
from classifleet.worker.models.variants import BY_NAME, available  # noqa: E402

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
SIZE = DESCRIPTION.input.size


class Model:
    """Scores by colour; counts how it is run."""

    name = "torchscript/frozen+graphs"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.warmed: list[int] = []
        self.closed = False

    def scores(self, pixels):
        means = pixels.float().mean((1, 2))[:, :2]
        return means.softmax(1)

    def run(self, batch):
        self.ran.append(len(batch))
        return self.scores(torch.from_numpy(batch)).numpy()

    def warm(self, batch_sizes):
        self.warmed += batch_sizes

    def close(self):
        self.closed = True


class CpuRecorder:
    """Replays by running again into the memory that the first run left; `limit` is what it can record."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.replayed: list[int] = []

    def record(self, function):
        result = function()
        if len(result) > self.limit:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

        def replay() -> None:
            self.replayed.append(len(result))
            result.copy_(function())

        return replay, result


def batch(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, *SIZE, 3), np.uint8)


def graphed(limit: int = 100) -> tuple[GraphedBackend, Model, CpuRecorder]:
    model, recorder = Model(), CpuRecorder(limit)
    backend = GraphedBackend(model, DESCRIPTION, recorder)
    backend.warm([1, 2, 4])
    return backend, model, recorder


@pytest.mark.parametrize("name", ["frozen", "fp16", "bf16", "autocast_fp16", "autocast_bf16"])
def test_each_precision_has_its_recording(name):
    """So that a model whose numbers overflow in fp16 can have one, too."""
    alone, recorded = (BY_NAME[f"torchscript/{name}{suffix}"] for suffix in ("", "+graphs"))
    assert (recorded.graphs, recorded.recipe, recorded.precision) == (True, alone.recipe, alone.precision)
    assert available(recorded, "cpu") == "not for cpu"
    assert available(recorded, "cuda") == ""


def test_autocast_can_be_recorded(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3, *SIZE)), tmp_path / "model.pt")
    recipe = BY_NAME["torchscript/autocast_bf16+graphs"].recipe
    real = TorchScriptBackend(DESCRIPTION, tmp_path / "model.pt", "cpu", 1, recipe=recipe)
    recorder = CpuRecorder()
    backend = GraphedBackend(real, DESCRIPTION, recorder)
    backend.warm([2])
    assert np.array_equal(backend.run(batch(2)), real.run(batch(2)))
    assert recorder.replayed == [2]


def test_a_batch_is_padded_to_the_next_recording_and_answered_alike():
    backend, model, recorder = graphed()
    assert (backend.recorded, backend.name, pads(backend)) == ((1, 2, 4), "torchscript/frozen+graphs", True)
    for size in (3, 1, 4, 2):
        pixels = batch(size, seed=size)
        found = backend.run(pixels)
        assert np.array_equal(found, model.scores(torch.from_numpy(pixels)).numpy())
    assert recorder.replayed == [4, 1, 4, 2]
    assert model.ran == []


def test_answers_are_not_overwritten_by_the_next_batch():
    backend, _, _ = graphed()
    first = backend.run(batch(4, seed=1))
    kept = first.copy()
    backend.run(batch(4, seed=2))
    assert np.array_equal(first, kept)


def test_a_larger_batch_runs_as_it_did():
    backend, model, recorder = graphed()
    assert backend.run(batch(5)).shape == (5, 2)
    assert (model.ran, recorder.replayed) == ([5], [])


def test_what_cannot_be_recorded_runs_as_it_did():
    backend, model, recorder = graphed(limit=2)
    assert backend.recorded == (1, 2)
    backend.run(batch(3))
    backend.run(batch(2))
    assert (model.ran, recorder.replayed) == ([3], [2])
    nothing, model, _ = graphed(limit=0)
    assert nothing.recorded == ()
    assert nothing.run(batch(2)).shape == (2, 2)
    assert model.ran == [2]


def test_warming_again_records_nothing_again():
    backend, model, _ = graphed()
    recordings = dict(backend._recordings)
    backend.warm([2, 4])
    assert backend._recordings == recordings
    assert model.warmed == [4, 2, 1, 4, 2]


def test_closed_it_refuses():
    backend, model, _ = graphed()
    backend.close()
    assert model.closed
    with pytest.raises(ModelError, match="closed"):
        backend.run(batch(1))


def test_a_batch_of_another_shape_is_refused():
    backend, _, _ = graphed()
    with pytest.raises(ModelError, match="takes uint8"):
        backend.run(np.zeros((1, 3, 3, 3), np.uint8))
