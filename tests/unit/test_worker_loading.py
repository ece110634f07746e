"""How a model comes onto the device: in time, with batches that fit, and with what is said of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from classifleet.config import Settings
from classifleet.worker import loading
from classifleet.worker.device import Device
from classifleet.worker.exits import EXIT_UNUSABLE
from classifleet.worker.instruments import MAX_BATCH, MODEL_INFO
from classifleet.worker.models import ModelDescription, Repository
from classifleet.worker.models.measuring import Speed
from classifleet.worker.models.parity import Parity
from classifleet.worker.models.tuned import TunedModel
from classifleet.worker.models.tuning import Row, Tuning
from tests.models_support import description_fields

DESCRIPTION = ModelDescription.from_fields(description_fields(), where="test")
KEY = DESCRIPTION.key
PLAIN = Row("torchscript", "fp32", "slower", Speed(100.0, 1, 0.01, 1))
FAST = Row("openvino/bf16", "bf16", "chosen", Speed(420.0, 32, 0.02, 32), Parity(205, 133, 132, 0.012, 0.1))
TUNING = Tuning((PLAIN, FAST), Speed(100.0, 1, 0.01, 1))


def test_a_model_that_hangs_while_it_is_loaded_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("os._exit", leave)
    with loading._bounded("pets@1", 0.001):
        assert ended.wait(10)
    assert codes == [EXIT_UNUSABLE]


def test_a_model_that_loads_in_time_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", lambda _: pytest.fail("it loaded in time"))
    before = threading.active_count()
    with loading._bounded("pets@1", 60):
        pass
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(10)
    assert threading.active_count() == before


class Narrow:
    """A model for which there is memory for so many images at once."""

    name = "openvino/bf16"

    def __init__(self, fits: int, error: Exception | None = None) -> None:
        self.fits = fits
        self.error = error or RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.closed = False

    def run(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) > self.fits:
            raise self.error
        return np.ones((len(batch), 2), np.float32)

    def warm(self, batch_sizes: tuple[int, ...]) -> None:
        for size in batch_sizes:
            self.run(np.zeros((size, 8, 8, 3), np.uint8))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    device.start()
    yield device
    device.close()


def load(device: Device, folder: Path, backend: Narrow, monkeypatch: pytest.MonkeyPatch, serving: bool) -> None:
    monkeypatch.setattr(loading, "load_tuned", lambda *_: TunedModel(backend, 32, TUNING))
    loader = loading.ModelLoader(Settings.load(device="cpu"), device, lambda *_: None)
    loader.load(Repository(folder), DESCRIPTION, serving=serving)


@pytest.mark.parametrize("serving", [False, True])
def test_batches_for_which_there_is_no_memory_today_are_not_made(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: bool
) -> None:
    with structlog.testing.capture_logs() as lines:
        load(device, tmp_path, Narrow(8), monkeypatch, serving)
    assert MAX_BATCH.labels(KEY)._value.get() == 8
    said = [line for line in lines if line["event"] == "out of memory"]
    assert [(line["size"], line["max_batch"]) for line in said] == [(32, 16), (16, 8)]


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize(("fits", "error"), [(0, None), (8, ValueError("not its size"))])
def test_a_model_that_cannot_run_is_not_loaded(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, error: Exception, serving: bool
) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        load(device, tmp_path, Narrow(fits, error), monkeypatch, serving)


def test_what_is_said_of_a_model_and_of_its_batches(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MODEL_INFO.clear()
    with structlog.testing.capture_logs() as lines:
        load(device, tmp_path, Narrow(32), monkeypatch, False)
        asyncio.run(device.infer(KEY, np.zeros((8, 8, 3), np.uint8), "bulk"))
    said = {line["event"]: line for line in lines}
    expected = {"model": KEY, "backend": "openvino/bf16", "device": "cpu", "speedup": "4.20", "agreement": "0.9925"}
    assert said["model ready"].items() >= expected.items()
    assert said["batch"].items() >= {"model": KEY, "size": 1, "reason": "drained", "log_level": "debug"}.items()
    [sample] = MODEL_INFO.collect()[0].samples
    assert sample.labels == {**expected, "digest": DESCRIPTION.sha256[:12]}
    MODEL_INFO.clear()
