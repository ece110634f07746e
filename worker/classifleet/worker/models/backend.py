"""What runs a model: one small interface, and what all that implement it share.

    uint8 [N, h, w, 3] ──► device ──► float, NCHW or NHWC, RGB or BGR ──► x * factor + offset ──► module
                       ──► float32 ──► softmax | sigmoid | nothing ──► float32 [N, num_classes]

Pixels travel as bytes, a quarter of what floats would take, and are normalised on the device. The mean is not folded
into the first convolution, whose zero padding would then stand for the wrong colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.models.description import ModelDescription, Output
from classifleet.worker.models.failures import NotFinite

WARM_RUNS: Final = 3
"""The first call takes 7-9 times as long, the second twice, and the third is the first that runs optimised code."""


class Backend(Protocol):
    """Runs one model on one device. Not thread-safe: one thread owns the device.

    A backend may have an attribute `fixed_shapes` (bool; see `pads`).
    """

    name: str
    """What runs, for logs and metrics: `torchscript/channels_last`."""

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            batch: uint8 [N, h, w, 3], RGB, preprocessed as the model's description says; N >= 1.

        Returns:
            float32 [N, num_classes]: scores after the description's activation, in the order of its labels.

        Raises:
            NotFinite: Some of the scores are not.
            OutOfMemory: A smaller batch may run.
            DeviceLost: Nothing runs any more before the process starts anew.
            ModelError: The batch has another shape, or the module's output has.
        """

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size until it runs at its final speed. Call it on the thread that will call `run`."""

    def close(self) -> None:
        """Free the device's memory. `run` raises ModelError afterwards."""


@runtime_checkable
class Overlapping(Backend, Protocol):
    """One whose device computes by itself once it has been sent a batch: a GPU."""

    def begin(self, batch: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Send a batch, as for `run`, which may be overwritten then; what is returned waits for its scores.

        Both raise what `run` does.
        """


def pads(backend: Backend) -> bool:
    """Whether batches are padded to the sizes that the backend was warmed with.

    Only where another size would be compiled, or captured, anew. On a CPU it is not: padding to powers of two takes
    TorchScript and OpenVINO 4-40 % longer in fp32 and gains nothing worth while in bf16, and the first batch of a new
    size takes at most 1.7 times as long as the next, once (`benchmarks/batcher.py`).
    """
    return bool(getattr(backend, "fixed_shapes", False))


def warm(backend: Backend, description: ModelDescription, batch_sizes: Iterable[int]) -> None:
    """What `Backend.warm` does, for backends that need nothing special."""
    for size in batch_sizes:
        pixels = np.zeros((size, *description.input.size, 3), np.uint8)
        for _ in range(WARM_RUNS):
            backend.run(pixels)


def answers(
    backend: Backend, pixels: NDArray[np.uint8], sizes: Iterable[int], enough: Callable[[], bool] = lambda: False
) -> NDArray[np.float32]:
    """Scores of pictures in batches of these sizes: of one batch at least, and then until it is enough."""
    parts: list[NDArray[np.float32]] = []
    first = 0
    for size in sizes:
        if parts and (first >= len(pixels) or enough()):
            break
        parts.append(backend.run(pixels[first : first + size]))
        first += size
    return np.concatenate(parts)


def check_batch(description: ModelDescription, batch: NDArray[np.uint8]) -> None:
    """Refuse what is not a batch of the model's pictures.

    Raises:
        ModelError: It has another shape or type.
    """
    size = description.input.size
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[0] < 1 or batch.shape[1:] != (*size, 3):
        wanted = f"uint8 [N, {size[0]}, {size[1]}, 3]"
        raise ModelError(f"{description.key}: takes {wanted}, not {batch.dtype} {list(batch.shape)}")


def check_scores(description: ModelDescription, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuse scores that are no numbers.

    Raises:
        NotFinite: One is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise NotFinite(f"{description.key}: the output holds NaN or infinity", scores)
    return scores


def activate(raw: torch.Tensor, output: Output) -> torch.Tensor:
    """Scores from the module's raw output [N, num_classes]."""
    match output.activation:
        case "softmax":
            return raw.softmax(dim=1)
        case "sigmoid":
            return raw.sigmoid()
        case "none":
            return raw
