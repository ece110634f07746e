"""Loading and warming the models of a worker, on its device thread, and how far that is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog

from classifleet.config import ModelError, Settings
from classifleet.worker.batching import Device, ModelSlot
from classifleet.worker.exits import EXIT_UNUSABLE
from classifleet.worker.instruments import MODEL_INFO, MODEL_LOAD
from classifleet.worker.models import ModelDescription, Repository, open_repository
from classifleet.worker.models.tuned import load_tuned

log = structlog.get_logger(__name__)


class ModelLoader:
    """Loads the models that the settings name.

    Attributes:
        progress: By model with version: `waiting`, `loading`, `warming` or `ready`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.progress: dict[str, str] = {}

    def load(self, device: Device) -> dict[str, ModelDescription]:
        """Load all of them; blocks until the last is warm.

        Raises:
            ModelError: There is none, or one cannot be loaded.
        """
        settings = self._settings
        place = device_name(settings.device)
        repository = open_repository(settings.model_repository, settings)
        names = _wanted(repository, settings.models)
        self.progress = dict.fromkeys(names, "waiting")
        described = {}
        for name in names:
            with _bounded(name, settings.model_load_seconds):
                self.progress[name] = "loading"
                described[name] = repository.describe(name)
                device.load(name, partial(self._load, repository, described[name], place))
        return described

    def _load(self, repository: Repository, description: ModelDescription, place: str) -> ModelSlot:
        """Load and warm a model; runs on the device thread."""
        name = description.key
        start = time.monotonic()
        loaded = load_tuned(repository, name, self._settings, place)
        backend, max_batch = loaded.backend, loaded.max_batch
        self.progress[name] = "warming"
        backend.warm([size for size in description.batch.buckets if size <= max_batch])
        seconds = time.monotonic() - start
        MODEL_LOAD.labels(name).observe(seconds)
        MODEL_INFO.labels(name, description.sha256[:12], backend.name, place).set(1)
        self.progress[name] = "ready"
        log.info("model ready", model=name, backend=backend.name, device=place, seconds=round(seconds, 2))
        return ModelSlot(backend, max_batch)


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


def latest_versions(names: list[str]) -> Mapping[str, str]:
    """Name to highest loaded version."""
    by_version = sorted((name.partition("@") for name in names), key=lambda parts: int(parts[2]))
    return {name: version for name, _, version in by_version}


def _wanted(repository: Repository, names: list[str]) -> list[str]:
    """The models to load, with versions: those named, or the latest version of each in the repository."""
    wanted = names or sorted({name.partition("@")[0] for name in repository.list()})
    if not wanted:
        raise ModelError(
            f"there is no model in {repository.path}: "
            "run `classifleet models build imagenet`, or `classifleet models add`"
        )
    return [repository.resolve(name) for name in wanted]


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
