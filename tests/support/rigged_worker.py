"""`classifleet worker` with models that do what some images say.

python -m tests.support.rigged_worker worker

Magenta kills the process, cyan never returns, yellow raises. `RIGGED_SECONDS` is how long each forward pass takes.
With `RIGGED_SHAPES` batches are padded, as if each size were compiled. The device of the worker that is the first to
make the file `RIGGED_LOST` is lost in its first forward pass. With `RIGGED_LEAN` the process seems to take no memory
before its first forward pass.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifleet.producer.cli import main
from classifleet.worker import loading, memory
from classifleet.worker.models import tuned

MAGENTA: Final = (255, 0, 255)
CYAN: Final = (0, 255, 255)
YELLOW: Final = (255, 255, 0)
TOLERANCE: Final = 30  # JPEG changes colours
_begun = threading.Event()


class Rigged:
    """A backend around the real one."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.name = backend.name
        self.fixed_shapes = bool(os.environ.get("RIGGED_SHAPES"))
        self._seconds = float(os.environ.get("RIGGED_SECONDS") or 0)
        self._lost = os.environ.get("RIGGED_LOST")

    def warm(self, batch_sizes: Iterable[int]) -> None:
        self._backend.warm(batch_sizes)

    def close(self) -> None:
        self._backend.close()

    def run(self, batch: NDArray[np.uint8]) -> Any:
        _begun.set()
        if _has(batch, MAGENTA):
            os.kill(os.getpid(), signal.SIGKILL)
        if _has(batch, CYAN):
            threading.Event().wait()
        if _has(batch, YELLOW):
            raise RuntimeError("a yellow image")
        time.sleep(self._seconds)
        if self._lost and _first(self._lost):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return self._backend.run(batch)


def _first(path: str) -> bool:
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _has(batch: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    return bool((abs(batch.mean(axis=(1, 2)) - np.array(color)) < TOLERANCE).all(axis=1).any())


if __name__ == "__main__":
    real = tuned.load_tuned

    def rigged(*args: Any) -> Any:
        loaded = real(*args)
        return replace(loaded, backend=Rigged(loaded.backend))

    loading.__dict__["load_tuned"] = rigged
    if os.environ.get("RIGGED_LEAN"):
        resident_bytes = memory.resident_bytes
        memory.__dict__["resident_bytes"] = lambda: resident_bytes() if _begun.is_set() else 0
    main()
