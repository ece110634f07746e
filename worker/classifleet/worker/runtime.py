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
from functools import partial
from typing import Any, Final

import stamina.instrumentation
import structlog
from redis import RedisError

from classifleet.config import ClassifleetError, Keys, LedgerUnavailable, Settings
from classifleet.config.celery_app import Publisher
from classifleet.config.claims import Claims
from classifleet.ledger import Ledger, Replicas, SyncRunner, connect, require_fit
from classifleet.worker import logs, tracing, transport
from classifleet.worker.cache import ContentCache
from classifleet.worker.cache_shared import open_cache
from classifleet.worker.chunks import ChunkRunner
from classifleet.worker.commits import Committer
from classifleet.worker.cores import usable_cores
from classifleet.worker.decode import DecodeLimits, wait_at_most
from classifleet.worker.device import Device
from classifleet.worker.drain import Drain
from classifleet.worker.elsewhere import Elsewhere
from classifleet.worker.exits import EXIT_DEVICE, EXIT_MEMORY, EXIT_OK
from classifleet.worker.figures import Figures
from classifleet.worker.health import Health, HealthServer
from classifleet.worker.ingest import Fetcher
from classifleet.worker.intake import Intake
from classifleet.worker.lanes import LaneExecutor
from classifleet.worker.leases import LeaseKeeper
from classifleet.worker.lending import Lender
from classifleet.worker.memory import MemoryWatch, cgroup_limit, limit_bytes
from classifleet.worker.outages import Outages, WatchedRunner, is_away
from classifleet.worker.pipeline import Pipeline
from classifleet.worker.pixel_room import PATIENCE_SECONDS
from classifleet.worker.polling import Polling
from classifleet.worker.probes import Pulse, Vitals, live
from classifleet.worker.reconciler import Reconciler
from classifleet.worker.roster import Roster
from classifleet.worker.sandbox import Sandbox
from classifleet.worker.sandbox_child import SandboxLimits
from classifleet.worker.shadow import Shadow
from classifleet.worker.shelf import Shelf
from classifleet.worker.sink import Sinks
from classifleet.worker.waiting import WaitingRoom

GC_THRESHOLD: Final = 10_000
"""New objects until the next collection: nearly all is freed without one, and at 700 they took 8 % of the time."""
SPARE_CONNECTIONS: Final = 8  # Redis connections beside those of the task threads
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a started worker is made of, as far as it is asked for later."""

    device: Device
    pulse: Pulse
    leases: LeaseKeeper
    decoders: LaneExecutor


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
        self._shelf: Shelf | None = None
        self._polling: Polling | None = None
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
        fetcher = Fetcher(settings, read_blob=partial(_read_blob, runner, ledger))
        require_fit(runner.client, ledger.keys, url, ephemeral=settings.ephemeral)

        loop, pulse = self._start_loop()  # before the device, which answers to it until it is closed
        traced = self._start_tracing()
        device = Device(self._device_lost, traced)
        self._stack.callback(device.close)
        device.start()
        shelf = self._start_shelf(device)
        _run_on(loop, fetcher.start())
        self._stack.callback(lambda: _run_on(loop, fetcher.close()))
        pipeline = self._pipeline(fetcher, shelf, device, loop)

        leases = LeaseKeeper(ledger, runner, self.owner, settings.lease_seconds)
        self._stack.callback(leases.close)
        leases.start()
        publisher = Publisher(settings)
        self._stack.callback(publisher.close)
        sinks = Sinks(settings)
        self._roster = Roster(ledger, runner)
        self._stack.callback(self._roster.ended)
        lender = Lender(shelf, Elsewhere(ledger, runner, self.owner), self.room, self.owner)
        self._start_watches(ledger, runner, publisher, sinks, lender)
        self.chunks = ChunkRunner(
            settings=settings,
            ledger=ledger,
            runner=runner,
            owner=self.owner,
            leases=leases,
            lender=lender,
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
            tracing=traced,
        )
        shelf.aside = self.chunks.marks.not_alone
        self._parts = _Parts(device, pulse, leases, pipeline.decode_pool)

    def consuming(self) -> None:
        """Celery consumes now: the worker is ready."""
        if self._state == "starting":
            self._state = "ready"
        gc.collect()
        gc.freeze()  # what a worker begins with stays: to go through it again and again took a fifth of its own time
        gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
        if self._roster is not None:
            pools = tuple(self.settings.queues)
            loadable = tuple if self._shelf is None else self._shelf.loadable
            self._roster.start(
                self.owner, pools=pools, models=self._ready_models, loadable=loadable, figures=Figures().take
            )
        if self._polling is not None:
            self._polling.start()
        log.info("ready", worker=self.owner, models=self._ready_models())

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
        """Ready: models are warm and Celery consumes. The body shows how far each is, and why one is not loaded."""
        shelf = self._shelf
        models = {} if shelf is None else shelf.progress()
        problems = {} if shelf is None else shelf.problems()
        body = {"state": self._state, "models": models, "worker": self.owner, "problems": problems}
        return Health(self._state == "ready", body)

    def look_for_models(self) -> None:
        """Look at the model repository now, and try again what failed; callable from a signal's handler."""
        if self._polling is not None:
            self._polling.now()

    def refuse(self) -> None:
        """Begin nothing more, and be not ready."""
        self._state = "draining"
        if self._polling is not None:
            self._polling.close()
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
        """Hand back what is at work. If the device hangs, an image may have done that, and it counts as a death."""
        if self._parts is not None and self._parts.device.forward_seconds() > self.settings.stuck_seconds:
            self._parts.leases.count_deaths()
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
            decoders=parts.decoders.threads,
            decoders_lost=parts.decoders.lost,
            away=self.outages.away(),
        )

    def _ready_models(self) -> tuple[str, ...]:
        return () if self._shelf is None else tuple(sorted(self._shelf.ready))

    def _start_shelf(self, device: Device) -> Shelf:
        shelf = self._shelf = Shelf(self.settings, device)
        self._stack.callback(shelf.close)
        shelf.fill()
        self._polling = Polling(lambda again: shelf.look(again=again), shelf.tidy, self.settings.model_poll_seconds)
        self._stack.callback(self._polling.close)
        shelf.changed, shelf.look_soon = self._models_changed, self._polling.soon
        return shelf

    def _models_changed(self) -> None:
        if self._roster is not None:
            self._roster.look()

    def _pipeline(self, fetcher: Fetcher, shelf: Shelf, device: Device, loop: asyncio.AbstractEventLoop) -> Pipeline:
        settings = self.settings
        sandbox = self._sandbox()
        decoders = settings.decode_threads or shelf.decode_threads or usable_cores()
        # The wait is a part of the time that its thread is given.
        wait_at_most(min(PATIENCE_SECONDS, settings.decode_timeout_seconds / 4))
        decode_pool = LaneExecutor(decoders, "classifleet-decode")
        self._stack.callback(decode_pool.close)
        limits = DecodeLimits(
            max_pixels=settings.max_pixels, truncated=settings.truncated, exact=settings.decode_exact
        )
        return Pipeline(
            fetcher=fetcher,
            models=shelf.ready,
            why_not=shelf.why_not,
            shadow=Shadow(settings.shadow, shelf.ready, device, wish=shelf.wish) if settings.shadow else None,
            device=device,
            decode_pool=decode_pool,
            limits=limits,
            isolation=settings.decode_isolation,
            sandbox=sandbox,
            decoded_in_flight=settings.decoded_in_flight,
            worker=self.owner,
            room=self.room,
            decode_seconds=settings.decode_timeout_seconds,
            cache=self._cache(limits, loop),
        )

    def _cache(self, limits: DecodeLimits, loop: asyncio.AbstractEventLoop) -> ContentCache | None:
        cache = open_cache(self.settings, limits)
        if cache is not None:
            self._stack.callback(lambda: _run_on(loop, cache.close()))
        return cache

    def _sandbox(self) -> Sandbox | None:
        settings = self.settings
        if settings.decode_isolation == "never":
            return None
        seconds = settings.sandbox_seconds
        sandbox = Sandbox(SandboxLimits(settings.sandbox_memory_bytes, cpu_seconds=seconds, wall_seconds=seconds))
        self._stack.callback(sandbox.close)
        return sandbox

    def _start_watches(
        self, ledger: Ledger, runner: SyncRunner, publisher: Publisher, sinks: Sinks, lender: Lender
    ) -> None:
        reconciler = Reconciler(
            ledger, runner, publisher, sinks, self.settings, self.owner, left_to_others=lender.others_have
        )
        self._stack.callback(reconciler.close)
        reconciler.start()
        self.drain.start()
        if limit := limit_bytes(self.settings.max_rss_bytes, cgroup_limit()):
            memory = MemoryWatch(limit, lambda: self.drain.request("memory", EXIT_MEMORY))
            self._stack.callback(memory.close)
            memory.start()

    def _start_tracing(self) -> tracing.Tracing | None:
        started = tracing.start(self.owner)
        if started is None:
            return None
        traced, close = started
        self._stack.callback(close)
        return traced

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


def _read_blob(runner: SyncRunner, ledger: Ledger, job: str, chunk: str, sha256: str) -> bytes | None:
    """A parked image; LedgerUnavailable only if it is worth waiting for."""
    try:
        return runner.run(ledger.get_blob(job, chunk, sha256))
    except LedgerUnavailable as error:
        if is_away(error):
            raise
        raise ClassifleetError(str(error)) from error


def _run_on(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
