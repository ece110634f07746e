"""TorchScript through torch's own executor, as the file came or changed by a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.cores import usable_cores
from classifleet.worker.models import _torchscript, backend
from classifleet.worker.models.backend import WARM_RUNS, activate, answers, check_batch, check_scores
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import brief, failure, raise_typed
from classifleet.worker.models.golden_inputs import synthetic
from classifleet.worker.models.parity import FP32_TOLERANCE

CHOICE_BATCH: Final = 2
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
_REDUCED: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a module is changed before it runs.

    Attributes:
        freeze: Inline its parameters.
        channels_last: Keep its weights and pictures with the channels innermost.
        optimize: torch's own inference optimisations, which have had wrong-result bugs (pytorch #86527, #61223).
        convert: Convert parameters and pictures to this precision.
        autocast: Let torch choose, operation by operation, between fp32 and this precision.
    """

    freeze: bool = False
    channels_last: bool = False
    optimize: bool = False
    convert: Literal["bf16", "fp16"] | None = None
    autocast: Literal["bf16", "fp16"] | None = None


PLAIN: Final = Recipe()


class TorchScriptBackend:
    """A TorchScript module through torch's own executor.

    On a CPU a frozen, channels_last copy is 2-4 times as fast as the file as it comes; freezing and its fusions have
    had wrong-result bugs (pytorch #86527), so the copy is used only if it answers as the plain module does.

    Args:
        description: The model's description.
        path: Its `model.pt`, already verified.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        threads: CPU threads of a forward pass (process-wide in torch); default: the cores that the process may use.
        recipe: What to change. Default: the frozen copy if it answers as the plain module does, else the plain module.
        name: What to call it in logs and metrics.
        pictures: Without a recipe: what to compare on; default: synthetic ones.

    Raises:
        ModelError: The file cannot be loaded, or does not run as described.
    """

    def __init__(
        self,
        description: ModelDescription,
        path: Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        recipe: Recipe | None = None,
        name: str = "torchscript",
        pictures: NDArray[np.uint8] | None = None,
    ) -> None:
        self.description = description
        self.name = name
        self._recipe = recipe or PLAIN
        self.device = _device(device)
        self.fixed_shapes = self.device.type == "cuda"  # its executor compiles fused kernels by shape
        self._threads = threads or usable_cores()
        torch.set_num_threads(self._threads)
        spec = description.preprocess
        self._factor = torch.tensor([spec.scale / std for std in spec.std], device=self.device)
        self._offset = torch.tensor(
            [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)], device=self.device
        )
        self._module: Any = _torchscript.load(path, self.device)
        if recipe is None:
            self._choose(path, synthetic(description) if pictures is None else pictures)
        else:
            self._apply(recipe)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        if self._module is None:
            raise ModelError(f"{self.description.key}: the backend is closed")
        check_batch(self.description, batch)
        if torch.get_num_threads() != self._threads:  # process-wide, and another model may want more of them
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                # torch warns of read-only memory, which arrays that come straight from a decoder are
                pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self.device)
                scores = self.scores(pixels).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            raise_typed(error)
            raise
        return check_scores(self.description, scores)

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        backend.warm(self, self.description, batch_sizes)

    def close(self) -> None:
        """See `Backend.close`."""
        self._module = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores [N, num_classes] of pixels [N, h, w, 3] that are on the device already; they stay there.

        Raises:
            ModelError: The module's output has another shape, or the module itself has raised.
        """
        try:
            with self._autocast():
                output = self._module(self._prepare(pixels))
        except torch.jit.Error as error:  # its own `raise` or `assert`: no RuntimeError
            raise ModelError(f"{self.description.key}: the module raised {brief(error)}") from error
        wanted = (len(pixels), self.description.output.num_classes)
        if not isinstance(output, torch.Tensor) or output.shape != wanted:
            shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ModelError(f"{self.description.key}: the output is {shape}; described is {list(wanted)}")
        return activate(output.float(), self.description.output)

    def _prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [N, h, w, 3] RGB to what the module takes; NCHW stays channels_last in memory, so costs no copy."""
        wanted = self.description.input
        if wanted.color == "BGR":
            pixels = pixels.flip(3)
        if wanted.dtype != "uint8":
            pixels = pixels.float().mul_(self._factor).add_(self._offset).to(self._dtype())
        return pixels.permute(0, 3, 1, 2) if wanted.layout == "NCHW" else pixels

    def _dtype(self) -> torch.dtype:
        return _REDUCED[self._recipe.convert] if self._recipe.convert else _DTYPES[self.description.input.dtype]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._recipe.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_REDUCED[self._recipe.autocast])

    def _apply(self, recipe: Recipe) -> None:
        try:
            if recipe.convert:
                self._module = self._module.to(_REDUCED[recipe.convert])
            if recipe.channels_last:
                self._module = self._module.to(memory_format=torch.channels_last)
            if recipe.freeze:
                self._module = _torchscript.freeze(self._module)
            if recipe.optimize:
                self._module = _torchscript.optimize(self._module)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{self.description.key}: cannot run as {self.name}: {reason}") from error

    def _choose(self, path: Path, pictures: NDArray[np.uint8]) -> None:
        """Keep the fast variant if it answers as the plain module does, else load the plain one again."""
        batch = min(CHOICE_BATCH, self.description.batch.max)
        try:
            plain = answers(self, pictures, repeat(batch))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{self.description.key}: does not run on the input it describes: {reason}") from error
        if self._same_when_fast(plain, pictures, batch):
            self.name = "torchscript/channels_last" if self.device.type == "cpu" else "torchscript/frozen"
        else:
            self._module = _torchscript.load(path, self.device)

    def _same_when_fast(self, plain: NDArray[np.float32], pictures: NDArray[np.uint8], batch: int) -> bool:
        try:
            # on a GPU fp32 gains nothing from channels_last, and TF32 alone differs by more than the tolerance
            if self.device.type == "cpu":
                self._module = self._module.to(memory_format=torch.channels_last)
            self._module = _torchscript.freeze(self._module)
            for _ in range(WARM_RUNS - 1):
                self.run(pictures[:batch])
            fast = answers(self, pictures, repeat(batch))
        except Exception as error:
            if failure(error) == "lost":
                raise
            return False  # freezing only optimises: what it breaks runs as it came
        return np.allclose(fast, plain, rtol=0, atol=FP32_TOLERANCE)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name!r}: torch finds no usable GPU here; use cpu or auto")
    return torch.device(name)
