"""Batches on their way to a GPU and back while it computes another one.

    begin:  batch ─► pinned memory ─copy stream─► pixels ─compute stream─► scores ─► pinned memory
    finish: waits for that batch alone ─► scores

A GPU copies from pinned memory by itself, so that its copies and computations, and the host's own copying, overlap:
with two batches under way, one is copied while the other is computed. On a CPU the same path runs without streams,
which is how it is tested; no worker takes it there. Not run on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from classifleet.config.errors import ModelError
from classifleet.worker.models._graphs import OnDevice
from classifleet.worker.models.backend import check_batch, check_scores, pads, warm
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import typed_errors

UNDER_WAY: Final = 2  # batches
Finish = Callable[[], NDArray[np.float32]]


class StagedBackend:
    """Runs another backend on batches that travel beside its computing; see `Overlapping`.

    Args:
        backend: Computes where the pixels are.
        description: The model's description.
    """

    def __init__(self, backend: OnDevice, description: ModelDescription) -> None:
        self.name = backend.name
        self.fixed_shapes = pads(backend)
        self._backend = backend
        self._description = description
        self._staging = Staging(backend.device)
        self._closed = False

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return self.begin(batch)()

    def begin(self, batch: NDArray[np.uint8]) -> Finish:
        """See `Overlapping.begin`."""
        if self._closed:
            raise ModelError(f"{self._description.key}: the backend is closed")
        check_batch(self._description, batch)
        with typed_errors(), torch.inference_mode():
            finish = self._staging.begin(batch, self._backend.scores)
        return partial(self._finish, finish)

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        sizes = tuple(batch_sizes)
        self._backend.warm(sizes)
        warm(self, self._description, sizes)

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        self._backend.close()

    def _finish(self, finish: Finish) -> NDArray[np.float32]:
        with typed_errors():
            scores = finish()
        return check_scores(self._description, scores)


class Staging:
    """Buffers for the batches that are under way. One thread calls it.

    Args:
        device: Where pixels and scores are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turns = deque(_Turn(device) for _ in range(UNDER_WAY))
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def begin(self, batch: NDArray[np.uint8], compute: Callable[[torch.Tensor], torch.Tensor]) -> Finish:
        """Send a batch off.

        Args:
            batch: uint8 [N, h, w, 3]; it may be overwritten as soon as this returns.
            compute: From pixels on the device to float scores [N, num_classes] there, which may be overwritten by its
                next call.

        Returns:
            What waits for the scores, float32 [N, num_classes].

        Raises:
            RuntimeError: Whatever torch raises, then or in what is returned.
        """
        turn = self._turns[0]
        self._turns.rotate(-1)
        host = turn.pixels(batch.shape)
        np.copyto(host.numpy(), batch)
        return turn.send_back(compute(self._upload(host)))

    def _upload(self, host: torch.Tensor) -> torch.Tensor:
        if self._copies is None:
            return host
        with torch.cuda.stream(self._copies):
            pixels = host.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        pixels.record_stream(computing)
        return pixels


class _Turn:
    """The host's side of one batch."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._buffers: dict[torch.dtype, torch.Tensor] = {}
        self._flight: _Flight | None = None

    def pixels(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Room for a batch. The one before must have left it, and nobody may have asked for its scores yet."""
        if self._flight is not None:
            self._flight.land()
        return self._buffer(torch.uint8, shape)

    def send_back(self, scores: torch.Tensor) -> Finish:
        rows = self._buffer(torch.float32, tuple(scores.shape))
        rows.copy_(scores, non_blocking=True)
        self._flight = _Flight(rows, torch.cuda.current_stream(self._device).record_event() if self._on_gpu else None)
        return self._flight.land

    def _buffer(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Pinned memory, made anew only when more is needed than ever before."""
        count = int(np.prod(shape))
        if dtype not in self._buffers or self._buffers[dtype].numel() < count:
            self._buffers[dtype] = torch.empty(count, dtype=dtype, pin_memory=self._on_gpu)
        return self._buffers[dtype][:count].view(shape)


class _Flight:
    """Scores on their way."""

    def __init__(self, rows: torch.Tensor, back: Any) -> None:
        self._rows = rows
        self._back = back
        self._landed: NDArray[np.float32] | None = None

    def land(self) -> NDArray[np.float32]:
        """Wait for them, once; they are the caller's own."""
        if self._landed is None:
            if self._back is not None:
                self._back.synchronize()
            self._landed = np.array(self._rows.numpy())
        return self._landed
