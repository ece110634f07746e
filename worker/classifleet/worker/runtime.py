"""Everything a worker process holds, acquired in order and released in reverse.

ledger ─► models (loaded and warmed) ─► device thread ─► event loop + fetcher ─► decode pool
       ─► leases ─► reconciler ─► ready
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import structlog

from classifleet.config import Keys, ModelError, Settings
from classifleet.config.celery_app import Publisher
from classifleet.ledger import Ledger, SyncRunner, connect, require_fit
from classifleet.worker.batching import Device, ModelSlot
from classifleet.worker.chunks import ChunkRunner
from classifleet.worker.cores import usable_cores
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.health import Health, HealthServer
from classifleet.worker.ingest import Fetcher
from classifleet.worker.instruments import MODEL_INFO, MODEL_LOAD
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.models import ModelDescription, Repository, load_backend, open_repository
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.reconciler import Reconciler
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import SandboxLimits
from classifleet.worker.sink import Sinks

STUCK_SECONDS: Final = 120.0  # a forward pass that takes longer hangs
SPARE_CONNECTIONS: Final = 8  # Redis connections beside those of the task threads
log = structlog.get_logger(__name__)


class Runtime:
    """A worker's resources. `start` makes it ready, `close` releases everything."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stack = ExitStack()
        self._progress: dict[str, str] = {}
        self._consuming = False
        self._device: Device | None = None
        self._loop_thread: threading.Thread | None = None
        self.chunks: ChunkRunner

    def start(self) -> None:
        """Acquire everything, models last of the slow things; the probes answer from the first moment.

        Raises:
            ClassifleetError: What is missing or unfit. Nothing stays acquired.
        """
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        settings = self.settings
        http = HealthServer(settings.http_host, settings.http_port, {"/livez": self.live, "/readyz": self.ready})
        self._stack.callback(http.close)
        http.start()
        log.info("listening", url=http.url)

        ledger = Ledger(Keys(settings.namespace))
        url = settings.ledger_url()
        runner = SyncRunner(connect(settings, max_connections=settings.chunks_in_flight + SPARE_CONNECTIONS), url)
        self._stack.callback(runner.close)
        require_fit(runner.client, ledger.keys, url, ephemeral=settings.ephemeral)

        device = self._device = Device()
        self._stack.callback(device.close)
        device.start()
        models = self._load_models(device)

        loop = self._start_loop()
        fetcher = Fetcher(
            settings, read_blob=lambda job, chunk, sha256: runner.run(ledger.get_blob(job, chunk, sha256))
        )
        _run_on(loop, fetcher.start())
        self._stack.callback(lambda: _run_on(loop, fetcher.close()))
        sandbox = self._sandbox()
        decode_pool = ThreadPoolExecutor(
            settings.decode_threads or usable_cores(), thread_name_prefix="classifleet-decode"
        )
        self._stack.callback(decode_pool.shutdown)

        leases = LeaseKeeper(ledger, runner, self.owner, settings.lease_seconds)
        self._stack.callback(leases.close)
        leases.start()
        sinks = Sinks(settings)
        publisher = Publisher(settings)
        self._stack.callback(publisher.close)
        reconciler = Reconciler(ledger, runner, publisher, sinks, self.owner)
        self._stack.callback(reconciler.close)
        reconciler.start()

        self.chunks = ChunkRunner(
            ledger=ledger,
            runner=runner,
            owner=self.owner,
            lease_seconds=settings.lease_seconds,
            leases=leases,
            latest=_latest(list(models)),
            pipeline=Pipeline(
                fetcher=fetcher,
                models=models,
                device=device,
                decode_pool=decode_pool,
                limits=DecodeLimits(
                    max_pixels=settings.max_pixels, truncated=settings.truncated, exact=settings.decode_exact
                ),
                isolation=settings.decode_isolation,
                sandbox=sandbox,
                decoded_in_flight=settings.decoded_in_flight,
                worker=self.owner,
            ),
            loop=loop,
            sinks=sinks,
        )

    def consuming(self) -> None:
        """Celery consumes now: the worker is ready."""
        self._consuming = True
        log.info("ready", worker=self.owner, models=sorted(self._progress))

    def close(self) -> None:
        """Release everything, in reverse order."""
        self._consuming = False
        self._stack.close()

    def live(self) -> Health:
        """Not live: a thread has died, or a forward pass hangs."""
        device, loop_thread = self._device, self._loop_thread
        if device is None or loop_thread is None:
            return Health(True, {"state": "starting"})
        busy = device.busy_seconds()
        problems = [
            *([] if device.alive() else ["the device thread has died"]),
            *([] if loop_thread.is_alive() else ["the event loop's thread has died"]),
            *([f"a forward pass has been running for {busy:.0f} s"] if busy > STUCK_SECONDS else []),
        ]
        return Health(not problems, {"state": "stuck" if problems else "live", "problems": problems})

    def ready(self) -> Health:
        """Ready: models are warm and Celery consumes. The body shows how far loading is."""
        state = "ready" if self._consuming else "starting"
        return Health(self._consuming, {"state": state, "models": self._progress, "worker": self.owner})

    def _sandbox(self) -> Sandbox | None:
        settings = self.settings
        if settings.decode_isolation == "never":
            return None
        seconds = settings.sandbox_seconds
        sandbox = Sandbox(SandboxLimits(settings.sandbox_memory_bytes, cpu_seconds=seconds, wall_seconds=seconds))
        self._stack.callback(sandbox.close)
        return sandbox

    def _load_models(self, device: Device) -> dict[str, ModelDescription]:
        settings = self.settings
        place = device_name(settings.device)
        repository = open_repository(settings.model_repository, settings)
        names = _wanted(repository, settings.models)
        self._progress = dict.fromkeys(names, "waiting")
        described = {}
        for name in names:
            described[name] = repository.describe(name)
            device.load(name, partial(self._load_model, repository, described[name], place))
        return described

    def _load_model(self, repository: Repository, description: ModelDescription, place: str) -> ModelSlot:
        """Load and warm a model; runs on the device thread."""
        name = description.key
        self._progress[name] = "loading"
        start = time.monotonic()
        backend = load_backend(repository, name, device=place)
        self._progress[name] = "warming"
        max_batch = min(description.batch.max, self.settings.max_batch)
        backend.warm([size for size in description.batch.buckets if size <= max_batch])
        seconds = time.monotonic() - start
        MODEL_LOAD.labels(name).observe(seconds)
        MODEL_INFO.labels(name, description.sha256[:12], backend.name, place).set(1)
        self._progress[name] = "ready"
        log.info("model ready", model=name, backend=backend.name, device=place, seconds=round(seconds, 2))
        return ModelSlot(backend, max_batch)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        thread = self._loop_thread = threading.Thread(target=loop.run_forever, name="classifleet-loop", daemon=True)

        def stop() -> None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

        self._stack.callback(stop)
        thread.start()
        return loop


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


def _wanted(repository: Repository, names: list[str]) -> list[str]:
    """The models to load, with versions: those named, or the latest version of each in the repository."""
    wanted = names or sorted({name.partition("@")[0] for name in repository.list()})
    if not wanted:
        raise ModelError(
            f"there is no model in {repository.path}: "
            "run `classifleet models build imagenet`, or `classifleet models add`"
        )
    return [repository.resolve(name) for name in wanted]


def _latest(names: list[str]) -> Mapping[str, str]:
    """Name to highest loaded version."""
    by_version = sorted((name.partition("@") for name in names), key=lambda parts: int(parts[2]))
    return {name: version for name, _, version in by_version}


def _run_on(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
