"""CUDA graphs: the kernels of one batch size recorded once and replayed with a single call.

    warm(sizes) ─► each size is recorded on pixels and scores of its own
    run(batch)  ─► next size that was recorded ─► pixels written there ─► replay ─► the scores of the batch

A small model at a small batch spends its time on launching kernels, one by one; a replay launches all of them. What
cannot be recorded (memory, synchronising modules) runs as it did. Not run on a GPU; the tests replay on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.models.backend import WARM_RUNS, Backend, check_batch, check_scores
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import DeviceLost, typed_errors

SUFFIX: Final = "+graphs"
log = structlog.get_logger(__name__)


class OnDevice(Backend, Protocol):
    """A backend that can also compute where the pixels are; what it then does must be the same each time."""

    device: torch.device

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores [N, num_classes] of uint8 [N, h, w, 3], both on the device."""


class Recorder(Protocol):
    """Records what a function does, to do it again."""

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Returns what does it again, and the tensor that then holds the new result.

        Raises:
            RuntimeError: It cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA kernels. All recordings share one pool of memory: they are replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """See `Recorder.record`."""
        with torch.cuda.device(self._device), torch.inference_mode():
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # capturing needs libraries and fusers to be ready, on another stream
                for _ in range(WARM_RUNS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = function()
        return graph.replay, result


@dataclass(frozen=True, slots=True)
class _Recording:
    pixels: torch.Tensor
    replay: Callable[[], None]
    scores: torch.Tensor


class GraphedBackend:
    """Replays recordings of another backend; see `Backend`.

    Args:
        backend: What is recorded; it runs what was not.
        description: The model's description.
        recorder: Default: CUDA's.
    """

    fixed_shapes = True

    def __init__(self, backend: OnDevice, description: ModelDescription, recorder: Recorder | None = None) -> None:
        self.device = backend.device
        self.name = backend.name if backend.name.endswith(SUFFIX) else backend.name + SUFFIX
        self._backend = backend
        self._description = description
        self._recorder = recorder
        self._recordings: dict[int, _Recording] = {}
        self._closed = False

    @property
    def recorded(self) -> tuple[int, ...]:
        """The batch sizes that are replayed."""
        return tuple(sorted(self._recordings))

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        if self._closed:
            raise ModelError(f"{self._description.key}: the backend is closed")
        if self._recording(len(batch)) is None:
            return self._backend.run(batch)
        check_batch(self._description, batch)
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
        with typed_errors(), torch.inference_mode():
            # `cpu` waits for the replay, and copies: the next one writes to the same place
            scores = self.scores(pixels).to("cpu", copy=True).numpy()
        return check_scores(self._description, scores)

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `OnDevice.scores`; the next replay overwrites them."""
        recording = self._recording(len(pixels))
        if recording is None:
            return self._backend.scores(pixels)
        # what an earlier batch left behind in the other rows is computed again and not looked at
        recording.pixels[: len(pixels)].copy_(pixels)
        recording.replay()
        return recording.scores[: len(pixels)]

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """Record each size; see `Backend.warm`."""
        for size in sorted(batch_sizes, reverse=True):  # the largest first: the others fit into its memory
            self._backend.warm([size])
            if size not in self._recordings:
                self._record(size)

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        self._recordings.clear()
        self._backend.close()

    def _recording(self, images: int) -> _Recording | None:
        size = next((size for size in self.recorded if size >= images), None)
        return None if size is None else self._recordings[size]

    def _record(self, size: int) -> None:
        pixels = torch.zeros((size, *self._description.input.size, 3), dtype=torch.uint8, device=self._backend.device)
        try:
            if self._recorder is None:
                self._recorder = CudaRecorder(self._backend.device)
            replay, scores = self._recorder.record(lambda: self._backend.scores(pixels))
        except DeviceLost:
            raise
        except (RuntimeError, ModelError) as error:
            reason = str(error).strip().partition("\n")[0]
            log.warning("batch size not recorded; it runs as before", model=self._description.key, size=size,
                        backend=self.name, error=reason)  # fmt: skip
            return
        self._recordings[size] = _Recording(pixels, replay, scores)
