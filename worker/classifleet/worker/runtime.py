"""Everything a worker process holds, acquired in order and released in reverse.

ledger ─► event loop ─► device thread ─► models (loaded and warmed) ─► fetcher ─► decode pool ─► leases
       ─► reconciler ─► ready
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import stamina.instrumentation
import structlog
from redis import RedisError

from classifleet.config import Keys, Settings
from classifleet.config.celery_app import Publisher
from classifleet.config.claims import Claims
from classifleet.ledger import Ledger, Replicas, SyncRunner, connect, require_fit
from classifleet.worker import logs, transport
from classifleet.worker.chunks import ChunkRunner
from classifleet.worker.commits import Committer
from classifleet.worker.cores import usable_cores
from classifleet.worker.decode import DecodeLimits
from classifleet.worker.device import Device
from classifleet.worker.drain import Drain
from classifleet.worker.exits import EXIT_DEVICE, EXIT_MEMORY, EXIT_OK
from classifleet.worker.figures import Figures
from classifleet.worker.health import Health, HealthServer
from classifleet.worker.ingest import Fetcher
from classifleet.worker.intake import Intake
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.loading import ModelLoader, latest_versions
from classifleet.worker.memory import MemoryWatch, cgroup_limit, limit_bytes
from classifleet.worker.models import ModelDescription
from classifleet.worker.outages import Outages, WatchedRunner
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.probes import Pulse, Vitals, live
from classifleet.worker.reconciler import Reconciler
from classifleet.worker.roster import Roster
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import SandboxLimits
from classifleet.worker.sink import Sinks
from classifleet.worker.waiting import WaitingRoom

SPARE_CONNECTIONS: Final = 8  # Redis connections beside those of the task threads
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a started worker is made of, as far as it is asked for later."""

    device: Device
    pulse: Pulse
    leases: LeaseKeeper


class Runtime:
    """A worker's resources. `start` makes it ready, `drain` ends it, `close` releases everything."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.outages = Outages()
        self.intake = Intake(self.outages)
        self.room = WaitingRoom(settings.chunks_waiting)
        self.drain = Drain(self, settings.drain_seconds)
        self._stack = ExitStack()
        self._models = ModelLoader(settings)
        self._interrupt = threading.Event()
        self._state = "starting"
        self._exitcode = EXIT_OK
        self._parts: _Parts | None = None
        self._roster: Roster | None = None
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
        stamina.instrumentation.set_on_retry_hooks(())  # an outage is said once, by `outages`
        logs.quiet(self.outages)
        http = HealthServer(settings.http_host, settings.http_port, {"/livez": self.live, "/readyz": self.ready})
        self._stack.callback(http.close)
        http.start()
        log.info("listening", url=http.url)

        ledger = Ledger(Keys(settings.namespace))
        url = settings.ledger_url()
        connections = settings.chunks_in_flight + settings.chunks_waiting + SPARE_CONNECTIONS
        client = connect(settings, max_connections=connections)
        runner = WatchedRunner(client, url, Replicas.of(settings), self.outages)
        self._stack.callback(runner.close)
        # Made before the models are loaded: it refuses settings that it cannot read.
        fetcher = Fetcher(
            settings, read_blob=lambda job, chunk, sha256: runner.run(ledger.get_blob(job, chunk, sha256))
        )
        require_fit(runner.client, ledger.keys, url, ephemeral=settings.ephemeral)

        loop, pulse = self._start_loop()  # before the device, which answers to it until it is closed
        device = Device(self._device_lost)
        self._stack.callback(device.close)
        device.start()
        models = self._models.load(device)
        _run_on(loop, fetcher.start())
        self._stack.callback(lambda: _run_on(loop, fetcher.close()))
        pipeline = self._pipeline(fetcher, models, device)

        leases = LeaseKeeper(ledger, runner, self.owner, settings.lease_seconds)
        self._stack.callback(leases.close)
        leases.start()
        publisher = Publisher(settings)
        self._stack.callback(publisher.close)
        sinks = Sinks(settings)
        self._roster = Roster(ledger, runner)
        self._start_watches(ledger, runner, publisher, sinks)
        self.chunks = ChunkRunner(
            settings=settings,
            ledger=ledger,
            runner=runner,
            owner=self.owner,
            leases=leases,
            latest=latest_versions(list(models)),
            pipeline=pipeline,
            loop=loop,
            sinks=sinks,
            committer=Committer(
                ledger=ledger,
                runner=runner,
                sinks=sinks,
                outages=self.outages,
                claims=Claims(settings),
                settings=settings,
                interrupt=self._interrupt,
            ),
            interrupt=self._interrupt,
        )
        self._parts = _Parts(device, pulse, leases)

    def consuming(self) -> None:
        """Celery consumes now: the worker is ready."""
        if self._state == "starting":
            self._state = "ready"
        gc.collect()
        gc.freeze()  # what a worker begins with stays: to go through it again and again took a fifth of its own time
        if self._roster is not None:
            models = tuple(sorted(self._models.progress))
            pools = tuple(self.settings.queues)
            self._roster.start(self.owner, pools=pools, models=models, figures=Figures().take)
        log.info("ready", worker=self.owner, models=sorted(self._models.progress))

    def close(self) -> None:
        """Release everything, in reverse order."""
        self._state = "ended"
        if self._interrupt.is_set():  # what still runs is for nobody, and is not waited for
            os._exit(self._exitcode)
        self._stack.close()

    def live(self) -> Health:
        """Not live: something hangs that only a restart ends."""
        settings = self.settings
        vitals = None if self._parts is None else self._vitals(self._parts)
        return live(vitals, stuck_seconds=settings.stuck_seconds, chunk_seconds=settings.chunk_timeout_seconds)

    def ready(self) -> Health:
        """Ready: models are warm and Celery consumes. The body shows how far loading is."""
        body = {"state": self._state, "models": self._models.progress, "worker": self.owner}
        return Health(self._state == "ready", body)

    def refuse(self) -> None:
        """Begin nothing more, and be not ready."""
        self._state = "draining"
        if self._roster is not None:
            self._roster.close()
        self.chunks.refuse()

    def stop_reserving(self, timeout: float) -> None:
        """Take no more messages."""
        transport.stop_reserving()
        if not self.intake.stop(timeout):
            log.warning("the consumer does not answer")
        self.chunks.reserving_stopped()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is at work."""
        return self.chunks.in_flight.wait_idle(timeout)

    def at_work(self) -> int:
        """How many chunks are at work."""
        return self.chunks.in_flight.count

    def abort(self) -> None:
        """Hand back what is at work."""
        self.chunks.abort()

    def give_all_back(self) -> None:
        """Hand back the leases and the messages of what does not let go."""
        if self._parts is None:
            return
        self._parts.leases.give_all_back()
        try:
            transport.hand_back()
        except RedisError as error:  # the messages come back by their deadlines
            log.warning("messages not handed back", error=str(error))

    def finish(self, exitcode: int) -> None:
        """End the process in order."""
        self._exitcode = exitcode
        self.intake.finish(exitcode)

    def _device_lost(self) -> None:
        """What is at work waits for a device that never answers: it is handed back, not waited for.

        It counts as a death, or an image that kills the device would do so to one worker after the other.
        """
        if self._parts is not None:
            self._parts.leases.count_deaths()
        for _ in range(2):  # asked again, a drain ends at once
            self.drain.request("device lost", EXIT_DEVICE)

    def _vitals(self, parts: _Parts) -> Vitals:
        return Vitals(
            device_alive=parts.device.alive(),
            device_lost=parts.device.lost,
            loop_alive=parts.pulse.alive(),
            leases_alive=parts.leases.alive(),
            forward_seconds=parts.device.busy_seconds(),
            loop_still_seconds=parts.pulse.still_seconds(),
            consumer_still_seconds=self.intake.still_seconds(),
            chunks_still_seconds=self.chunks.in_flight.still_seconds(),
            away=self.outages.away(),
        )

    def _pipeline(self, fetcher: Fetcher, models: dict[str, ModelDescription], device: Device) -> Pipeline:
        settings = self.settings
        sandbox = self._sandbox()
        decode_pool = LaneExecutor(settings.decode_threads or self._models.decode_threads or usable_cores(), "classifleet-decode")
        self._stack.callback(decode_pool.close)
        return Pipeline(
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
            room=self.room,
            decode_seconds=settings.decode_timeout_seconds,
        )

    def _sandbox(self) -> Sandbox | None:
        settings = self.settings
        if settings.decode_isolation == "never":
            return None
        seconds = settings.sandbox_seconds
        sandbox = Sandbox(SandboxLimits(settings.sandbox_memory_bytes, cpu_seconds=seconds, wall_seconds=seconds))
        self._stack.callback(sandbox.close)
        return sandbox

    def _start_watches(self, ledger: Ledger, runner: SyncRunner, publisher: Publisher, sinks: Sinks) -> None:
        reconciler = Reconciler(ledger, runner, publisher, sinks, self.settings, self.owner)
        self._stack.callback(reconciler.close)
        reconciler.start()
        self.drain.start()
        if limit := limit_bytes(self.settings.max_rss_bytes, cgroup_limit()):
            memory = MemoryWatch(limit, lambda: self.drain.request("memory", EXIT_MEMORY))
            self._stack.callback(memory.close)
            memory.start()

    def _start_loop(self) -> tuple[asyncio.AbstractEventLoop, Pulse]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="classifleet-loop", daemon=True)

        def stop() -> None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

        self._stack.callback(stop)
        thread.start()
        return loop, Pulse(loop, thread)


def _run_on(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
