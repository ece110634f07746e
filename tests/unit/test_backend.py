"""The TorchScript backend on modules small enough to know the answer by hand."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifleet.config.errors import ModelError
from classifleet.worker.models import ModelDescription
from tests.models_support import description_fields

torch = pytest.importorskip("torch")
from classifleet.worker.models import _torchscript, golden_inputs  # noqa: E402 - needs torch
from classifleet.worker.models._torch import TorchScriptBackend  # noqa: E402

RAW = {"output__activation": "none"}


class ChannelMeans(torch.nn.Module):
    """NCHW to the mean of each channel: shows what the module was fed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


class ChannelMeansNHWC(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((1, 2))


class Constant(torch.nn.Module):
    def __init__(self, row: list[float]) -> None:
        super().__init__()
        self.register_buffer("row", torch.tensor([row]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row.expand(x.shape[0], self.row.shape[1]) + 0 * x.float().mean()


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((1, 2, 3)), x.mean((1, 2, 3))


def export(module: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example), path)


def description(**changes: Any) -> ModelDescription:
    changes.setdefault("labels", ["a", "b", "c"])
    changes.setdefault("output__num_classes", len(changes["labels"]))
    return ModelDescription.from_fields(description_fields(**changes), where="test")


def backend(
    tmp_path: Path, module: torch.nn.Module, *, pictures: np.ndarray | None = None, **changes: Any
) -> TorchScriptBackend:
    found = description(**changes)
    shape = (2, 3, 8, 8) if found.input.layout == "NCHW" else (2, 8, 8, 3)
    export(module, torch.zeros(shape, dtype=getattr(torch, found.input.dtype)), tmp_path / "model.pt")
    return TorchScriptBackend(found, tmp_path / "model.pt", "cpu", threads=1, pictures=pictures)


def flat(*color: int, count: int = 1) -> np.ndarray:
    return np.tile(np.array(color, np.uint8), (count, 8, 8, 1))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_normalisation_layout_and_colour_order(tmp_path, layout, dtype, color):
    """(pixel * scale - mean) / std, with mean and std in the order of the colours that the model sees."""
    found = backend(
        tmp_path,
        ChannelMeans() if layout == "NCHW" else ChannelMeansNHWC(),
        input={"size": [8, 8], "layout": layout, "dtype": dtype, "color": color},
        preprocess__scale=0.5,
        preprocess__mean=[1, 2, 3],
        preprocess__std=[1, 2, 4],
        **RAW,
    )
    scores = found.run(flat(10, 40, 120))
    assert scores.dtype == np.float32
    wanted = [4, 9, 14.25] if color == "RGB" else [59, 9, 0.5]
    assert scores[0] == pytest.approx(wanted, abs=0.05 if dtype == "float16" else 1e-5)


def test_uint8_gets_the_pixels_as_they_are(tmp_path):
    found = backend(tmp_path, ChannelMeans(), input={"size": [8, 8], "dtype": "uint8"}, **RAW)
    assert found.run(flat(1, 128, 255)).tolist() == [[1, 128, 255]]


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        ("none", [0.0, 1.0, -1.0]),
        ("softmax", [0.24472848, 0.66524094, 0.09003057]),
        ("sigmoid", [0.5, 0.73105860, 0.26894143]),
    ],
)
def test_activation(tmp_path, activation, wanted):
    found = backend(tmp_path, Constant([0, 1, -1]), output__activation=activation)
    assert found.run(flat(0, 0, 0, count=2)) == pytest.approx(np.array([wanted] * 2), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_batches_and_read_only_pixels(tmp_path, count):
    found = backend(tmp_path, ChannelMeans(), **RAW)
    pixels = np.concatenate([flat(level, 0, 0) for level in range(count)])
    pixels.flags.writeable = False
    assert found.run(pixels)[:, 0].tolist() == list(range(count))


def test_warm_and_close(tmp_path):
    found = backend(tmp_path, ChannelMeans(), **RAW)
    found.warm([1, 2])
    assert found.name == "torchscript/channels_last"
    found.close()
    with pytest.raises(ModelError, match="pets@1: the backend is closed"):
        found.run(flat(0, 0, 0))


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((1, 8, 9, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
    ],
)
def test_wrong_batches(tmp_path, batch):
    with pytest.raises(ModelError, match=r"takes uint8 \[N, 8, 8, 3\], not"):
        backend(tmp_path, ChannelMeans(), **RAW).run(batch)


def test_output_of_another_width(tmp_path):
    with pytest.raises(ModelError, match=r"pets@1: the output is \[2, 3\]; described is \[2, 4\]"):
        backend(tmp_path, ChannelMeans(), labels=["a", "b", "c", "d"])


def test_output_that_is_no_tensor(tmp_path):
    with pytest.raises(ModelError, match="the output is tuple"):
        backend(tmp_path, Pair())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite(tmp_path, value):
    with pytest.raises(ModelError, match="pets@1: the output holds NaN or infinity"):
        backend(tmp_path, Constant([0, value, 0]), **RAW)


def test_a_module_that_cannot_take_the_described_input(tmp_path):
    with pytest.raises(ModelError, match="pets@1: does not run on the input it describes"):
        backend(tmp_path, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), input__size=[4, 4],
                preprocess__resize_size=[4, 4])  # fmt: skip


class Picky(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float16, "wants float16"
        return x.float().mean((2, 3))


def test_a_module_that_raises_by_itself(tmp_path):
    """TorchScript has an error of its own for that, which is no RuntimeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Picky()), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"^pets@1: the module raised RuntimeError: AssertionError: wants float16$"):
        TorchScriptBackend(description(), tmp_path / "model.pt", "cpu")
    half = description(input={"size": [8, 8], "dtype": "float16"})
    assert TorchScriptBackend(half, tmp_path / "model.pt", "cpu").run(flat(1, 2, 3)).shape == (1, 3)


def test_a_file_that_is_no_torchscript(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04 nothing")
    found = ModelDescription.from_fields(description_fields(), where="test")
    with pytest.raises(ModelError, match=r"model\.pt: is not a TorchScript file"):
        TorchScriptBackend(found, path, "cpu")


def test_a_missing_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = ModelDescription.from_fields(description_fields(), where="test")
    with pytest.raises(ModelError, match="'cuda:1': torch finds no usable GPU"):
        TorchScriptBackend(found, tmp_path / "model.pt", "cuda:1")


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x.mean((2, 3))


def broken_freeze(module: Any) -> Any:
    raise RuntimeError("cannot freeze this")


@pytest.mark.parametrize("freeze", [lambda module: Doubled(), broken_freeze], ids=["wrong", "raises"])
def test_a_fast_variant_that_answers_differently_is_not_used(tmp_path, monkeypatch, freeze):
    monkeypatch.setattr(_torchscript, "freeze", freeze)
    found = backend(tmp_path, ChannelMeans(), **RAW)
    assert found.name == "torchscript"
    assert found.run(flat(1, 2, 3)).tolist() == [[1, 2, 3]]


class FixedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).reshape(2, 3)


class MixesBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) - x.mean((0, 2, 3))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (FixedBatch(), "cannot be traced for a batch of any size"),
        (MixesBatch(), "other answers for a batch of 1"),
        (Pair(), "returns tuple, not one tensor"),
    ],
)
def test_trace_proves_that_any_batch_size_works(module, message):
    with pytest.raises(ModelError, match=message):
        _torchscript.trace(module, torch.zeros(2, 3, 8, 8))


class DoubledWhenWhite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return torch.where(means > 254, 2 * means, means)


def test_what_is_compared_on_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(_torchscript, "freeze", lambda module: DoubledWhenWhite())
    assert backend(tmp_path, ChannelMeans(), **RAW).name == "torchscript/channels_last"
    assert backend(tmp_path, ChannelMeans(), pictures=flat(255, 0, 0), **RAW).name == "torchscript"


def test_a_model_that_is_not_tuned_is_compared_on_photos(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    found = golden_inputs.few_pictures(description(), tmp_path)
    assert found.shape == (golden_inputs.FEW, 8, 8, 3)
    assert golden_inputs.photos_at_hand(description()) >= golden_inputs.FEW
    gone = {"image": "golden/gone.png", "sha256": "0" * 64, "top": "a", "confidence": 0.5}
    assert np.array_equal(golden_inputs.few_pictures(description(golden=[gone]), tmp_path)[:7], found[:7])
    three = golden_inputs.shipped()[:3]
    monkeypatch.setattr(golden_inputs, "shipped", lambda: three)
    fewer = golden_inputs.few_pictures(description(), tmp_path)
    assert np.array_equal(fewer[:3], found[:3])
    assert np.array_equal(fewer[3:6], found[:3, :, ::-1])
    monkeypatch.setattr(golden_inputs, "shipped", list)
    assert np.array_equal(golden_inputs.few_pictures(description(), tmp_path), golden_inputs.synthetic(description()))
