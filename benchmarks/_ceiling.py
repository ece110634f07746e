"""The no-queue ceiling: one process, the worker's own decoding and variant, no Redis, no Celery, no records.

Runs as a child that reads one JSON request a line and answers with a line:

    {"all": paths}            the class of each, decoded by threads, in batches
    {"each": [paths, pause]}  seconds of each, one after the other, so many seconds of rest before each
    {"forward": seconds}      images a second of forward passes alone, full batches, as the worker hands them over
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
AHEAD = 128  # decoded images that wait for the forward pass, at most


class Ceiling:
    """The child, from outside; a `System`.

    Args:
        name: As in tables.
        settings: As of a worker.
        blocked: Modules that it must do without.
    """

    def __init__(self, name: str, settings: Mapping[str, str], blocked: Sequence[str] = ()) -> None:
        self.name = name
        self.details = ""
        self._environment = {f"CLASSIFLEET_{key}": value for key, value in settings.items()}
        self._blocked = blocked
        self._child: subprocess.Popen[str] | None = None
        self._log = Path()

    def start(self, folder: Path) -> None:
        """Load and warm the model."""
        command = [sys.executable, __file__, *self._blocked]
        environment = os.environ | self._environment | {"PYTHONPATH": str(ROOT)}
        self._log = folder / "ceiling.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        self.details = str(self._answer())

    def classify(self, paths: Sequence[Path]) -> list[int]:
        """All of them, in batches."""
        return [int(label) for label in self._ask("all", _texts(paths))]

    def direct(self, paths: Sequence[Path], pause: float = 0.0) -> list[float]:
        """Seconds of each, one after the other, after so many of rest: read, decode, forward."""
        return [float(value) for value in self._ask("each", [_texts(paths), pause])]

    def forward(self, seconds: float) -> float:
        """Images a second of the model alone."""
        return float(self._ask("forward", seconds))

    def open_loop(self, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
        """There is no queue that requests could arrive at."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the child."""
        if self._child is not None:
            with self._child as child:
                child.kill()
            self._child = None

    def _ask(self, what: str, argument: Any) -> Any:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({what: argument}) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._child is not None
        assert self._child.stdout is not None
        if line := self._child.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{self.name} ended: {self._log.read_text(errors='replace').strip()[-500:]}")


def _texts(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


class _Worker:
    """The child: what a worker decodes and runs, and nothing else of it."""

    def __init__(self) -> None:
        from classifleet.config import Settings
        from classifleet.worker.cores import usable_cores
        from classifleet.worker.loading import device_name
        from classifleet.worker.models import open_repository
        from classifleet.worker.models.tuned import load_tuned

        settings = Settings.load()
        repository = open_repository(settings.model_repository, settings)
        key = repository.resolve(settings.models[0])
        self._description = repository.describe(key)
        loaded = load_tuned(repository, key, settings, device_name(settings.device))
        self._threads = settings.decode_threads or loaded.decode_threads or usable_cores()
        self._backend, self._size = loaded.backend, loaded.max_batch
        self._backend.warm([bucket for bucket in self._description.batch.buckets if bucket <= self._size])
        self.variant = f"{self._backend.name}, batch {self._size}, {self._threads} decoding"

    def pixels(self, path: str) -> NDArray[np.uint8]:
        """A photo as the model takes it."""
        from classifleet.worker.decode import DecodeLimits, prepare

        spec = self._description.preprocess
        return prepare(Path(path).read_bytes(), {spec.digest: spec}, DecodeLimits())[1][spec.digest]

    def all(self, paths: Sequence[str]) -> list[int]:
        """The class of each."""
        labels: list[int] = []
        with ThreadPoolExecutor(self._threads) as pool:
            for batch in _batches(pool, self.pixels, paths, self._size):
                labels += self._backend.run(np.stack(batch)).argmax(1).tolist()
        return labels

    def each(self, paths: Sequence[str], pause: float) -> list[float]:
        """Seconds of each, alone."""
        seconds = []
        for path in paths:
            time.sleep(pause)
            began = time.perf_counter()
            self._backend.run(self.pixels(path)[np.newaxis])
            seconds.append(time.perf_counter() - began)
        return seconds

    def forward(self, seconds: float) -> float:
        """Images a second of full batches."""
        shape = (self._size, *self._description.input.size, 3)
        batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return _rate(lambda: self._backend.run(batch), self._size, seconds)


def serve() -> None:
    """Answer requests until nobody asks any more; what is logged goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answered:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _serve(answered)


def _serve(answered: TextIO) -> None:
    worker = _Worker()
    answers: dict[str, Callable[[Any], Any]] = {
        "all": worker.all,
        "each": lambda asked: worker.each(*asked),
        "forward": worker.forward,
    }
    print(json.dumps(worker.variant), file=answered, flush=True)
    for line in sys.stdin:
        [(what, argument)] = json.loads(line).items()
        print(json.dumps(answers[what](argument)), file=answered, flush=True)


def _rate(call: Callable[[], object], size: int, seconds: float) -> float:
    """Images a second of calls that do `size` each."""
    call()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        call()
        count += size
    return count / (time.perf_counter() - began)


def _batches(pool: ThreadPoolExecutor, pixels: Any, paths: Sequence[str], size: int) -> Iterator[list[Any]]:
    """Full batches in order, decoded ahead."""
    waiting: list[Future[Any]] = []
    ahead = iter(paths)
    while True:
        while len(waiting) < AHEAD and (path := next(ahead, None)) is not None:
            waiting.append(pool.submit(pixels, path))
        if not waiting:
            return
        batch, waiting = waiting[:size], waiting[size:]
        yield [future.result() for future in batch]


if __name__ == "__main__":
    for blocked in sys.argv[1:]:
        sys.modules[blocked] = None  # type: ignore[assignment]
    serve()
