"""The null worker with a model that sleeps: any number of them fit on two cores.

Its first argument is the images a second that it may do; the others are those of `classifleet`.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifleet.worker.models import Backend, tuned


class SleepingBackend:
    """Takes its time for each image, without the CPU; what one sleep is late, the next one makes up for."""

    name = "sleeping"

    def __init__(self, backend: Backend, images_per_second: float) -> None:
        self._backend = backend
        self._seconds = 1 / images_per_second
        self._free_at = 0.0

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        now, taken = time.monotonic(), self._seconds * len(batch)
        if now - self._free_at > taken:  # it was idle
            self._free_at = now
        self._free_at += taken
        time.sleep(max(0.0, self._free_at - now))
        return self._backend.run(batch)

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """See `Backend.warm`."""
        self._backend.warm(batch_sizes)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()


def main(images_per_second: float) -> None:
    """Start the null worker, whose model is wrapped when it is loaded."""
    made = tuned.TunedModel

    def wrapped(backend: Backend, *more: Any) -> tuned.TunedModel:
        return made(SleepingBackend(backend, images_per_second), *more)

    vars(tuned)["TunedModel"] = wrapped
    runpy.run_path(str(Path(__file__).with_name("_null_worker.py")), run_name="__main__")


if __name__ == "__main__":
    main(float(sys.argv.pop(1)))
