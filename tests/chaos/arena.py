"""One scenario's Redis, workers and load, the faults that it injects, and its verdict.

with arena.start("1", "kill -9 of workers", workers=2) as it, it.load():
    it.kill(it.victim())          # asserts that the victim is at work, and counts the fault
it.settle()                       # waits for the end, audits, writes the table's row
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from classifleet.config import Keys
from classifleet.producer import Fleet
from tests.chaos.load import BACKLOG_IMAGES, CHUNK_SIZE, Accepted, Load, Source
from tests.chaos.model import MODEL
from tests.chaos.observer import AtWork, Observer
from tests.chaos.place import SINK_BUCKET, Place
from tests.chaos.recovery import Recovery, Watcher, problems, slowest
from tests.chaos.report import Row
from tests.chaos.verdict import FINISH_SECONDS, Expected, Verdict, audit
from tests.support import RedisServer, wait_until
from tests.support.fleet import Worker, start_worker

NAMESPACE: Final = "chaos"
LEASE_SECONDS: Final = 2
AT_WORK_SECONDS: Final = 60.0
WORKER: Final = (sys.executable, "-m", "classifleet.producer.cli", "worker")
SABOTEUR: Final = (sys.executable, "-m", "tests.chaos.saboteur")


class Arena:
    """See the module. Made by `opened`."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        stack: ExitStack,
        *,
        settings: Mapping[str, str],
        redis_options: tuple[str, ...],
        ledger_database: int,
    ) -> None:
        self.place = place
        self.workers: list[Worker] = []
        self.faults = 0
        self.accepted: list[Accepted] = []
        self.began = time.monotonic()
        self._folder = folder
        self._stack = stack
        self._redis_options = redis_options
        self.redis = stack.enter_context(RedisServer.start(folder / "redis", *redis_options))
        self.broker_url = f"{self.redis.url}/0"
        self.ledger_url = f"{self.redis.url}/{ledger_database}"
        self.settings = self._settings() | settings
        self.observer = self.observe()
        self._watcher = Watcher(self.observe())
        self.fleet = self.connect()
        self._loads: list[Load] = []

    def _settings(self) -> dict[str, str]:
        return {
            "NAMESPACE": NAMESPACE,
            "REDIS_URL": self.ledger_url,
            "MODEL_REPOSITORY": str(self.place.models),
            "MODELS": MODEL,
            "FILE_ROOTS": str(self.place.photos[0].parent),
            "HTTP_ALLOW": f"127.0.0.1:{self.place.web.port}",
            "SINK_ALLOW": f"s3://{SINK_BUCKET}",
            "S3_ENDPOINT_URL": self.place.s3.endpoint_url,
            "S3_PATH_STYLE": "true",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "CHUNKS_IN_FLIGHT": "8",
            "FETCH_TIMEOUT_SECONDS": "120",
        }

    def observe(self, url: str | None = None) -> Observer:
        """A new look at the ledger, or at another database."""
        observer = Observer(url or self.ledger_url, Keys(NAMESPACE))
        self._stack.callback(observer.close)
        return observer

    def connect(self, **settings: Any) -> Fleet:
        """A producer of its own."""
        given = {"namespace": NAMESPACE, "redis_url": self.ledger_url, **self.place.s3.settings_kwargs, **settings}
        fleet = Fleet(self.broker_url, **given)
        self._stack.callback(fleet.close)
        return fleet

    # --- workers ------------------------------------------------------------------------------------------------

    def start(
        self,
        count: int = 1,
        *,
        wait: bool = True,
        command: tuple[str, ...] = WORKER,
        **settings: str,
    ) -> list[Worker]:
        """Start workers at the same time; with `wait` until all are ready."""
        started = []
        for _ in range(count):
            log = self._folder / f"worker-{len(self.workers)}.log"
            starting = start_worker(
                self.broker_url, log, settings=self.settings | settings, command=command, wait=False
            )
            worker = self._stack.enter_context(starting)
            self.workers.append(worker)
            started.append(worker)
        for worker in started if wait else ():
            worker.wait_ready()
        return started

    def victim(self, among: Iterable[Worker] | None = None) -> Worker:
        """A worker that is at work now."""

        def find() -> Worker | None:
            busy = {each.pid for each in self.observer.at_work()}
            return next((w for w in among or self.workers if w.process.pid in busy and w.process.running()), None)

        return wait_until(find, "a worker to be at work", AT_WORK_SECONDS)

    @property
    def sink(self) -> str:
        """A sink of the scenario's own."""
        return f"s3://{SINK_BUCKET}/{self._folder.parent.name}"

    # --- load ---------------------------------------------------------------------------------------------------

    def load(
        self, *, backlog: int = BACKLOG_IMAGES, fleet: Fleet | None = None, ref: Callable[[], str] | None = None
    ) -> Load:
        """Continuous load while it is entered."""
        source = Source(self.place.photo, ref or self.place.ref)
        prefix = f"load-{len(self._loads)}"
        load = Load(source, fleet or self.fleet, self.observe(), prefix, sink=self.sink, backlog=backlog)
        self._loads.append(load)
        return load

    def submit(
        self, job: str, items: list[tuple[str, str]], *, size: int = CHUNK_SIZE, sink: str | None = None
    ) -> None:
        """A job that the verdict will ask for."""
        self.fleet.submit_many(items, models=MODEL, job_id=job, chunk_size=size, sink=sink)
        self.accepted.append(Accepted(job, tuple(name for name, _ in items), sink))

    def note(self, job: str) -> None:
        """Ask the verdict for a single image that was submitted elsewhere."""
        self.accepted.append(Accepted(job, (job,)))

    def gated(self, gate: str, *, chunks: int = 1, sink: str | None = None) -> None:
        """A job of chunks of one image that are at work until the gate is opened."""
        items = [(f"{gate}/{n}", self.place.web.gated(gate, self.place.photo().name)) for n in range(chunks)]
        self.submit(gate, items, size=1, sink=sink)

    def holder(self, job: str) -> tuple[AtWork, Worker]:
        """The chunk of this job that is at work, and the worker that has it."""

        def find() -> tuple[AtWork, Worker] | None:
            held = next((each for each in self.observer.at_work() if each.job == job), None)
            worker = next(
                (w for w in self.workers if held and w.process.pid == held.pid and w.process.running()), None
            )
            return (held, worker) if held and worker else None

        return wait_until(find, f"{job} to be at work", AT_WORK_SECONDS)

    def wait_at_work(self, images: int = 1, pids: Collection[int] | None = None) -> list[AtWork]:
        """Wait until so many images are under a lease."""

        def look() -> list[AtWork] | None:
            found = self.observer.at_work(pids)
            return found if sum(each.images for each in found) >= images else None

        return wait_until(look, f"{images} images to be at work", AT_WORK_SECONDS)

    # --- faults -------------------------------------------------------------------------------------------------

    def inject(
        self, act: Callable[[], object] = lambda: None, victim: Worker | None = None, *, by_others: bool | None = None
    ) -> Recovery:
        """Do harm while work is in flight: that of the victim, or any. Without `act` the harm is done already.

        Args:
            act: The harm.
            victim: Whose work is followed.
            by_others: Only commits of later attempts count as recovery. Default: if there is a victim.
        """
        chunks = self.wait_at_work(pids=None if victim is None else {victim.process.pid})
        assert sum(each.images for each in chunks) > 0
        recovery = Recovery(chunks, by_others=victim is not None if by_others is None else by_others)
        act()
        self.faults += 1
        self._watcher.add(recovery)
        return recovery

    def stop(self, victim: Worker) -> None:
        """SIGSTOP while it holds leases."""

        def stopped_at_work() -> bool:
            victim.process.signal(signal.SIGSTOP)
            if self.observer.at_work({victim.process.pid}):
                return True
            victim.process.signal(signal.SIGCONT)
            return False

        wait_until(stopped_at_work, "the victim to be at work", AT_WORK_SECONDS)

    def kill(self, victim: Worker) -> None:
        """SIGKILL while it holds leases: it is stopped, looked at, and killed as it stands."""
        self.stop(victim)
        self.inject(lambda: self.end(victim), victim)

    def terminate(self, victim: Worker, seconds: float) -> int:
        """SIGTERM; the exit status, which must come within so many seconds."""
        victim.process.signal(signal.SIGTERM)
        return victim.process.process.wait(seconds)

    def end(self, victim: Worker) -> None:
        """SIGKILL, whatever it does."""
        victim.process.signal(signal.SIGKILL)
        victim.process.process.wait()

    def kill_redis(self) -> None:
        """SIGKILL of the server."""
        self.redis.process.signal(signal.SIGKILL)
        self.redis.process.process.wait()

    def restart_redis(self) -> None:
        """Start it again, at the same port and with what it kept."""
        starting = RedisServer.start(self._folder / "redis", *self._redis_options, port=self.redis.port)
        self.redis = self._stack.enter_context(starting)

    # --- the end ------------------------------------------------------------------------------------------------

    def all_accepted(self) -> list[Accepted]:
        """What the scenario submitted, and its loads."""
        return self.accepted + [each for load in self._loads for each in load.accepted]

    def judge(self, *, expected: Expected | None = None, seconds: float = FINISH_SECONDS) -> Verdict:
        """Wait for the end of all jobs and audit."""
        client = self.place.s3.client()
        servers = (self.observer, self.observe(self.broker_url).client, client)
        return audit(self.all_accepted(), self.fleet, *servers, expected=expected, seconds=seconds)

    def row(self, number: str, title: str, verdict: Verdict, most_seconds: float) -> Row:
        """The table's row; ends the watching of recoveries, and holds them to their bound."""
        recoveries = self._watcher.close()
        verdict.problems += problems(recoveries, most_seconds)
        verdict.check(self.faults > 0, "no fault was injected")
        first, complete = slowest(recoveries)
        took = time.monotonic() - self.began
        said = "ok" if not verdict.problems else f"{len(verdict.problems)} problems"
        counts = (verdict.images, self.faults, verdict.lost, verdict.doubled)
        return Row(number, title, *counts, first, complete, took, said, most_seconds)


@contextmanager
def opened(
    place: Place,
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    redis_options: tuple[str, ...] = (),
    ledger_database: int = 0,
) -> Iterator[Arena]:
    """An arena; everything that it started ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    place.web.close_gates()  # scenarios share the server, and names of gates
    with ExitStack() as stack:
        arena = Arena(
            place,
            folder,
            stack,
            settings=settings or {},
            redis_options=redis_options,
            ledger_database=ledger_database,
        )
        yield arena


def alive(worker: Worker) -> bool:
    """Whether the process is there, stopped or not."""
    try:
        os.kill(worker.process.pid, 0)
    except ProcessLookupError:
        return False
    return worker.process.running()
