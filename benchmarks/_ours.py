"""classifleet as a system under test: a Redis, a worker, and a producer that waits for all records."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from benchmarks._load import open_loop
from benchmarks._outcome import OUT
from tests.support.fleet import Worker, start_worker
from tests.support.services import RedisServer

from classifleet.config import Settings
from classifleet.producer import AsyncFleet, Fleet, Result
from classifleet.worker.models import open_repository

MODEL = "imagenet"
TUNING = OUT / "tuning"  # shared by all parts of a run
WORKER = (sys.executable, "-m", "classifleet.producer.cli", "worker")
NO_OPENVINO = (sys.executable, str(Path(__file__).with_name("_without_openvino.py")), "worker")
RESULT_SECONDS = 600.0


class Ours:
    """One worker on a Redis of its own.

    Args:
        name: As in tables.
        photos: Folder that the worker may read.
        settings: Of the worker, by name; `TUNING_CACHE` makes it tune once and never again.
        command: What starts the worker.
        model: Its model.
    """

    def __init__(
        self,
        name: str,
        photos: Path,
        settings: Mapping[str, str],
        command: tuple[str, ...] = WORKER,
        model: str = MODEL,
    ) -> None:
        self.name = name
        self.details = ""
        self.model = model
        self.worker: Worker
        self._settings = {"FILE_ROOTS": str(photos), "MODELS": model, "TUNE_SECONDS": "60", **settings}
        self._settings.setdefault("MODEL_REPOSITORY", Settings.load().model_repository)
        self._command = command
        self._stack = ExitStack()
        self._url = ""

    def start(self, folder: Path) -> None:
        """Redis first, then a worker with its models warm."""
        server = self._stack.enter_context(RedisServer.start(folder / "redis"))
        self._url = f"{server.url}/0"
        self.worker = self._stack.enter_context(
            start_worker(self._url, folder / "worker.log", settings=self._settings, command=self._command)
        )
        self.details = variant(self.worker)

    def classify(self, paths: Sequence[Path]) -> list[int]:
        """One bulk job."""
        class_ids: dict[str, int] = {}
        with Fleet(self._url) as fleet:
            items = ((str(number), reference(path)) for number, path in enumerate(paths))
            for result in fleet.submit_many(items, models=self.model).results():
                class_ids[result.id] = best(result)
        return [class_ids[str(number)] for number in range(len(paths))]

    def each(self, paths: Sequence[Path], pause: float = 0.0) -> list[float]:
        """Seconds of each photo, one job after the other, as a caller of the synchronous client sees them.

        Args:
            paths: The photos.
            pause: Seconds of rest before each.
        """
        seconds = []
        with Fleet(self._url) as fleet:
            fleet.submit(reference(paths[0]), models=self.model).result(timeout=RESULT_SECONDS)  # connects
            for path in paths:
                time.sleep(pause)
                began = time.perf_counter()
                best(fleet.submit(reference(path), models=self.model).result(timeout=RESULT_SECONDS))
                seconds.append(time.perf_counter() - began)
        return seconds

    def open_loop(self, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
        """One job for each request."""

        async def run() -> list[float]:
            async with AsyncFleet(self._url) as fleet:

                async def one(path: Path) -> int:
                    handle = await fleet.submit(reference(path), models=self.model)
                    return best(await handle.result(timeout=RESULT_SECONDS))

                await one(paths[0])  # connects
                return await open_loop(one, arrivals, paths)

        return asyncio.run(run())

    def producer(self) -> Fleet:
        """A client of this fleet; the caller closes it."""
        return Fleet(self._url)

    def stop(self) -> None:
        """The worker, then Redis."""
        self._stack.close()


def reference(path: Path) -> str:
    """As a worker opens it."""
    return "file://" + quote(str(path))


def best(result: Result) -> int:
    """The best class of an image.

    Raises:
        ClassifleetError: The image has none.
    """
    result.raise_for_error()
    [model] = result.models.values()
    return model.predictions[0].class_id


def variant(worker: Worker) -> str:
    """How the worker runs its model, by its own metric."""
    with urllib.request.urlopen(worker.http_url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    info = next((line for line in lines if line.startswith("classifleet_model_info{")), "")
    return info.partition('backend="')[2].partition('"')[0]


def has_model(name: str = MODEL) -> bool:
    """Whether the configured repository has the model."""
    repository = open_repository(Settings.load().model_repository)
    return any(key.partition("@")[0] == name for key in repository.list())
