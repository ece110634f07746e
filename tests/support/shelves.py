"""The models of a worker: small ones, but real, each shelf of them on a device thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifleet.config import Settings
from classifleet.worker import loading
from classifleet.worker.device import Device
from classifleet.worker.instruments import MODEL_BYTES, MODEL_EVICTIONS, MODEL_INFO, MODEL_LOAD_FAILURES, MODELS
from classifleet.worker.models.tuned import load_tuned
from classifleet.worker.shelf import Shelf
from tests.support.flavours import EDGE, LABELS, add_flavour
from tests.support.waiting import wait_until

Open = Callable[..., Shelf]


def two_models(folder: Path) -> Path:
    """A repository with a@1 and b@1."""
    for name in ("a", "b"):
        add_flavour(folder, name, 1)
    return folder


@contextmanager
def opening(folder: Path) -> Iterator[Open]:
    """open_shelf(**settings) -> a filled shelf of that repository; they end with the block."""
    with ExitStack() as parts:

        def open_shelf(*, linger_seconds: float = 600, **settings: Any) -> Shelf:
            device = Device()
            parts.callback(device.close)
            device.start()
            given = {"model_repository": str(folder), "tune_seconds": 0, "device": "cpu", **settings}
            shelf = Shelf(Settings.load(**given), device, linger_seconds=linger_seconds)
            parts.callback(shelf.close)
            shelf.fill()
            return shelf

        yield open_shelf
    for metric in (MODELS, MODEL_INFO, MODEL_BYTES, MODEL_EVICTIONS, MODEL_LOAD_FAILURES):
        metric.clear()


@asynccontextmanager
async def lent(shelf: Shelf, *keys: str) -> AsyncIterator[None]:
    """Have models kept while the block runs, which begins when all loads have ended."""
    with shelf.lent(keys) as loads:
        for load in loads:
            await asyncio.shield(asyncio.wrap_future(load))
        yield


def says(shelf: Shelf, key: str) -> str:
    """What a model answers, loaded if need be."""

    async def ask() -> str:
        async with lent(shelf, key):
            got = await shelf._loader._device.infer(key, np.zeros((EDGE, EDGE, 3), np.uint8), "bulk")
            return LABELS[int(got.scores.argmax())]

    return asyncio.run(ask())


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Loads that begin from now on wait for it."""
    go = threading.Event()

    def slow(*arguments: Any) -> Any:
        assert go.wait(20)
        return load_tuned(*arguments)

    monkeypatch.setattr(loading, "load_tuned", slow)
    return go


def settled(shelf: Shelf, **states: str) -> None:
    """Wait until these models (`a1`) are in these states, and no other is there."""
    wanted = {f"{name[:-1]}@{name[-1]}": state for name, state in states.items()}
    wait_until(lambda: shelf.progress() == wanted, f"{wanted}, not {shelf.progress()}")
