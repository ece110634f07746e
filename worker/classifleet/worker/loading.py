"""Loading one model onto the device: tuned and at leisure before the worker is ready, or while others run.

at start:       device thread: tune (or what is kept) ─► load ─► warm
while serving:  a thread of its own: load as it was tuned before ─► device thread, between batches: warm, step by step
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import structlog

from classifleet.config import ModelError, Settings
from classifleet.worker.device import Device, ModelSlot
from classifleet.worker.exits import EXIT_UNUSABLE
from classifleet.worker.instruments import MAX_BATCH, MODEL_INFO, MODEL_LOAD
from classifleet.worker.memory import resident_bytes
from classifleet.worker.models import Backend, ModelDescription, Repository
from classifleet.worker.models.backend import WARM_RUNS, pads
from classifleet.worker.models.failures import brief, failure
from classifleet.worker.models.repository import MODEL_FILE
from classifleet.worker.models.tuned import TunedModel, compared, load_tuned
from classifleet.worker.versions import State

T = TypeVar("T")
log = structlog.get_logger(__name__)
_NOT_TUNED: Final = {"tune_seconds": 0.0}  # while images are classified, measurements would be of a busy machine


class ModelLoader:
    """Loads models onto a device, one at a time.

    Args:
        settings: `device`, `precision`, `tune_seconds`, `model_load_seconds` and so on.
        device: Runs them.
        told: Hears how far a model is: `loading`, then `warming`.

    Attributes:
        decode_threads: That go best with the models; 0 where that was not measured.
    """

    def __init__(self, settings: Settings, device: Device, told: Callable[[str, State], None]) -> None:
        self._settings = settings
        self._device = device
        self._told = told
        self._shown: dict[str, tuple[str, ...]] = {}
        self.decode_threads = 0

    def load(self, repository: Repository, description: ModelDescription, *, serving: bool) -> int:
        """Load and warm a model; returns when it can be asked.

        Args:
            repository: Where it lives.
            description: Its description.
            serving: Whether other models are at work. Then it is not tuned, and a model that hangs is given up; else
                the process ends.

        Returns:
            Its size in memory, about: what the process, or torch on the GPU, took more than before; at least that of
            its file.

        Raises:
            Exception: It cannot be loaded, or does not run. Nothing of it stays.
        """
        start = time.monotonic()
        least = file_bytes(repository, description.key)  # before: the file may be removed meanwhile
        place = device_name(self._settings.device)
        before = _used(place)
        self._told(description.key, "loading")
        how = self._beside if serving else self._alone
        loaded = how(repository, description, place)
        size = max(_used(place) - before, least)
        self.decode_threads = max(self.decode_threads, loaded.decode_threads)  # so that none of the models starves
        self._show(description, loaded, place, time.monotonic() - start)
        return size

    def unload(self, key: str) -> None:
        """Take a model off the device. Nothing may wait for it."""
        self._device.unload(key)
        MAX_BATCH.remove(key)
        if labels := self._shown.pop(key, None):
            MODEL_INFO.remove(*labels)
        log.info("model unloaded", model=key)

    def _alone(self, repository: Repository, description: ModelDescription, place: str) -> TunedModel:
        key = description.key

        def load() -> TunedModel:
            loaded = load_tuned(repository, key, self._settings, place)
            self._told(key, "warming")
            return _warmed(description, loaded, loaded.backend.warm)

        with _bounded(key, self._settings.model_load_seconds):
            loaded: TunedModel = self._device.call(load)
            self._device.load(key, partial(_slot, description, loaded))
        return loaded

    def _beside(self, repository: Repository, description: ModelDescription, place: str) -> TunedModel:
        key, settings = description.key, self._settings.model_copy(update=_NOT_TUNED)
        loaded = _aside(partial(load_tuned, repository, key, settings, place), key, settings.model_load_seconds)
        self._told(key, "warming")

        def warm(sizes: tuple[int, ...]) -> None:
            for step in _steps(loaded.backend, description, sizes):
                self._device.call(step)

        try:
            loaded = _warmed(description, loaded, warm)
            self._device.load(key, partial(_slot, description, loaded))
        except Exception:
            self._device.call(loaded.backend.close)
            raise
        return loaded

    def _show(self, description: ModelDescription, loaded: TunedModel, place: str, seconds: float) -> None:
        key, backend = description.key, loaded.backend
        speedup, agreement = compared(loaded.tuning)
        MODEL_LOAD.labels(key).observe(seconds)
        self._shown[key] = (key, description.sha256[:12], backend.name, place, speedup, agreement)
        MODEL_INFO.labels(*self._shown[key]).set(1)
        log.info(
            "model ready",
            model=key,
            backend=backend.name,
            device=place,
            speedup=speedup or None,
            agreement=agreement or None,
            seconds=round(seconds, 2),
        )


def device_name(setting: str) -> str:
    """`auto` as `cuda` where there is a GPU, else `cpu`.

    Raises:
        ModelError: A GPU is asked for and torch sees none.
    """
    import torch

    available = torch.cuda.is_available()
    if setting.startswith("cuda") and not available:
        raise ModelError(f"device {setting}: torch sees no GPU; set CLASSIFLEET_DEVICE=cpu, or check the driver")
    return ("cuda" if available else "cpu") if setting == "auto" else setting


def file_bytes(repository: Repository, key: str) -> int:
    """The least that a model takes, in bytes; 0 if its file is missing, which loading it says."""
    path = repository.path.joinpath(*key.split("@"), MODEL_FILE)
    return path.stat().st_size if path.is_file() else 0


def _sizes(description: ModelDescription, loaded: TunedModel) -> tuple[int, ...]:
    """The sizes of batches that a model is warmed with."""
    return (*(size for size in description.batch.buckets if size < loaded.max_batch), loaded.max_batch)


def _warmed(description: ModelDescription, loaded: TunedModel, warm: Callable[[tuple[int, ...]], None]) -> TunedModel:
    """Warm a model with as large batches as there is memory for today."""
    sizes = _sizes(description, loaded)
    while True:
        try:
            warm(sizes)
            return replace(loaded, max_batch=sizes[-1])
        except Exception as error:
            if failure(error) != "memory" or len(sizes) == 1:
                raise
            text = brief(error)
        # Beyond the handler: the traceback of the error keeps the tensors of its batch.
        log.warning("out of memory", model=description.key, size=sizes[-1], max_batch=sizes[-2], error=text)
        sizes = sizes[:-1]


def _slot(description: ModelDescription, loaded: TunedModel) -> ModelSlot:
    sizes = _sizes(description, loaded)
    return ModelSlot(loaded.backend, loaded.max_batch, sizes if pads(loaded.backend) else ())


def _steps(backend: Backend, description: ModelDescription, sizes: tuple[int, ...]) -> Iterator[Callable[[], Any]]:
    """What `Backend.warm` does, in steps between which others run; a size that is compiled or captured is one step."""
    for size in sizes:
        if pads(backend):
            yield partial(backend.warm, (size,))
            continue
        pixels = np.zeros((size, *description.input.size, 3), np.uint8)
        for _ in range(WARM_RUNS):
            yield partial(backend.run, pixels)


def _used(place: str) -> int:
    """Memory that is taken now, in bytes."""
    if place == "cpu":
        return resident_bytes() or 0
    import torch

    return int(torch.cuda.memory_reserved(place))


def _aside(work: Callable[[], T], key: str, seconds: float) -> T:
    """Work on a thread that ends with it: one that lived on would keep its OpenMP team (see `Device`).

    Raises:
        Exception: What the work raises.
        ModelError: It took too long. Its thread is left alone.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            done.set_exception(error)

    thread = threading.Thread(target=run, name="classifleet-load", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ModelError(f"model {key} was not loaded within {seconds:g} s (model_load_seconds)")
    return done.result()


@contextmanager
def _bounded(name: str, seconds: float) -> Iterator[None]:
    """End the process if the block takes longer: nothing can interrupt a model that hangs while it is loaded."""

    def give_up() -> None:
        log.error("cannot start", error=f"model {name} was not loaded within {seconds:g} s (model_load_seconds)")
        os._exit(EXIT_UNUSABLE)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
