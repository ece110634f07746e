"""What runs a model: one small interface, and TorchScript behind it.

    uint8 [N, h, w, 3] ──► device ──► float, NCHW or NHWC, RGB or BGR ──► x * factor + offset ──► module
                       ──► float32 ──► softmax | sigmoid | nothing ──► float32 [N, num_classes]

Pixels travel as bytes, a quarter of what floats would take, and are normalised on the device, in place: 3.4 times
cheaper than `pixels / 255 - mean / std` with its copies. The mean is not folded into the first convolution, whose
zero padding would then stand for the wrong colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.cores import usable_cores
from classifleet.worker.models import _torchscript
from classifleet.worker.models.description import ModelDescription, Output
from classifleet.worker.models.repository import Repository

WARM_RUNS: Final = 3
"""The first call takes 7-9 times as long, the second twice, and the third is the first that runs optimised code."""
PARITY_TOLERANCE: Final = 1e-4
"""How far the scores of a faster variant may lie from the plain module's."""
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
_SEED: Final = 0


class Backend(Protocol):
    """Runs one model on one device. Not thread-safe: one thread owns the device."""

    name: str
    """What runs, for logs and metrics: `torchscript/channels_last`."""

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            batch: uint8 [N, h, w, 3], RGB, preprocessed as the model's description says; N >= 1.

        Returns:
            float32 [N, num_classes]: scores after the description's activation, in the order of its labels.

        Raises:
            ModelError: The batch has another shape, or the module's output has, or is not finite.
        """

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size until it runs at its final speed. Call it on the thread that will call `run`."""

    def close(self) -> None:
        """Free the device's memory. `run` raises ModelError afterwards."""


def load_backend(
    repository: Repository, reference: str, *, device: str = "auto", threads: int | None = None
) -> Backend:
    """Verify a model and load it onto a device.

    Args:
        repository: Where it lives.
        reference: `imagenet` (the highest version) or `imagenet@1`.
        device: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of a forward pass; default: the cores that the process may use.

    Raises:
        ModelNotFound: There is no such model.
        ModelError: Its files are damaged, or it does not run as described.
    """
    key = repository.resolve(reference)
    return TorchScriptBackend(repository.describe(key), repository.model_file(key), device, threads)


class TorchScriptBackend:
    """A TorchScript module through torch's own executor.

    On a CPU a frozen, channels_last copy is 2-4 times as fast as the file as it comes; freezing and its fusions have
    had wrong-result bugs (pytorch #86527), so the copy is used only if it answers as the plain module does.

    Args:
        description: The model's description.
        path: Its `model.pt`, already verified.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of a forward pass (process-wide in torch); default: the cores that the process may use.

    Raises:
        ModelError: The file cannot be loaded, or does not run as described.
    """

    def __init__(
        self, description: ModelDescription, path: Path, device: str = "auto", threads: int | None = None
    ) -> None:
        self.description = description
        self.name = "torchscript"
        self._device = _device(device)
        torch.set_num_threads(threads or usable_cores())
        spec = description.preprocess
        self._factor = torch.tensor([spec.scale / std for std in spec.std], device=self._device)
        self._offset = torch.tensor(
            [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)], device=self._device
        )
        self._module: Any = _torchscript.load(path, self._device)
        self._choose(path)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        if self._module is None:
            raise ModelError(f"{self.description.key}: the backend is closed")
        size = self.description.input.size
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[0] < 1 or batch.shape[1:] != (*size, 3):
            wanted = f"uint8 [N, {size[0]}, {size[1]}, 3]"
            raise ModelError(f"{self.description.key}: takes {wanted}, not {batch.dtype} {list(batch.shape)}")
        with torch.inference_mode():
            scores = activate(self._raw(batch), self.description.output).cpu().numpy()
        if not np.isfinite(scores).all():
            raise ModelError(f"{self.description.key}: the output holds NaN or infinity")
        return scores

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        for size in batch_sizes:
            pixels = np.zeros((size, *self.description.input.size, 3), np.uint8)
            for _ in range(WARM_RUNS):
                self.run(pixels)

    def close(self) -> None:
        """See `Backend.close`."""
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _raw(self, batch: NDArray[np.uint8]) -> torch.Tensor:
        """The module's own output [N, num_classes], in float32, on the device."""
        # torch warns of read-only memory, which arrays that come straight from a decoder are
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)
        output = self._module(self._prepare(pixels))
        wanted = (len(batch), self.description.output.num_classes)
        if not isinstance(output, torch.Tensor) or output.shape != wanted:
            shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(f"{self.description.key}: the output is {shape}; described is {list(wanted)}")
        return output.float()

    def _prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [N, h, w, 3] RGB to what the module takes; NCHW stays channels_last in memory, so costs no copy."""
        wanted = self.description.input
        if wanted.color == "BGR":
            pixels = pixels.flip(3)
        if wanted.dtype != "uint8":
            pixels = pixels.float().mul_(self._factor).add_(self._offset).to(_DTYPES[wanted.dtype])
        return pixels.permute(0, 3, 1, 2) if wanted.layout == "NCHW" else pixels

    def _choose(self, path: Path) -> None:
        """Keep the fast variant if it answers as the plain module does, else load the plain one again."""
        generator = np.random.default_rng(_SEED)
        sample = generator.integers(0, 256, (2, *self.description.input.size, 3), np.uint8)
        try:
            plain = self.run(sample)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{self.description.key}: does not run on the input it describes: {reason}") from error
        try:
            # on a GPU fp32 gains nothing from channels_last, and TF32 alone differs by more than the tolerance
            if self._device.type == "cpu":
                self._module = self._module.to(memory_format=torch.channels_last)
            self._module = _torchscript.freeze(self._module)
            fast = [self.run(sample) for _ in range(WARM_RUNS)][-1]
        except (RuntimeError, ModelError):  # freezing only optimises: what it breaks runs as it came
            fast = np.full_like(plain, math.nan)
        if np.allclose(fast, plain, rtol=0, atol=PARITY_TOLERANCE):
            self.name = "torchscript/channels_last" if self._device.type == "cpu" else "torchscript/frozen"
        else:
            self._module = _torchscript.load(path, self._device)


def activate(raw: torch.Tensor, output: Output) -> torch.Tensor:
    """Scores from the module's raw output [N, num_classes]."""
    match output.activation:
        case "softmax":
            return raw.softmax(dim=1)
        case "sigmoid":
            return raw.sigmoid()
        case "none":
            return raw


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name!r}: torch finds no usable GPU here; use cpu or auto")
    return torch.device(name)
