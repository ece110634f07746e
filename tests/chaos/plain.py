"""The same kills for a plain Celery set-up: its Redis, workers, load, and what it lost and doubled."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.chaos.place import Place
from tests.chaos.plain_app import RECORDS, TASK, VISIBILITY_SECONDS, make_app
from tests.chaos.report import Row
from tests.support import ManagedProcess, RedisServer, wait_until

BACKLOG: Final = 100
QUIET_SECONDS: Final = 4.0 * VISIBILITY_SECONDS


class PlainArena:
    """See the module. Made by `plain_arena`."""

    def __init__(self, place: Place, folder: Path, stack: ExitStack) -> None:
        self.workers: list[ManagedProcess] = []
        self.faults = 0
        self.sent: list[str] = []
        self._place = place
        self._folder = folder
        self._stack = stack
        self._began = time.monotonic()
        self.redis = stack.enter_context(RedisServer.start(folder / "redis"))
        self.url = f"{self.redis.url}/0"
        self.client: Any = stack.enter_context(self.redis.client())
        self._app = make_app(self.url)
        stack.callback(self._app.close)

    def start(self, count: int = 1) -> list[ManagedProcess]:
        """Start workers, and wait until they are ready."""
        started = []
        for _ in range(count):
            log = self._folder / f"plain-{len(self.workers)}.log"
            command = (sys.executable, "-m", "tests.chaos.plain_app", self.url)
            started.append(self._stack.enter_context(ManagedProcess(command, log)))
            self.workers += started[-1:]
        connected = len([worker for worker in self.workers if worker.running()])
        wait_until(lambda: len(self._consumers()) >= connected, "the plain workers to wait for messages", 60)
        return started

    def _consumers(self) -> list[Any]:
        return [each for each in self.client.client_list() if each["cmd"] == "brpop"]

    def send(self, count: int, *, seconds: float = 0.0) -> None:
        """Publish images, each of which takes so long."""
        for _ in range(count):
            image = str(len(self.sent))
            self._app.send_task(TASK, args=[image, str(self._place.photo()), seconds])
            self.sent.append(image)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Publish, while entered, so that some always wait."""
        ended = threading.Event()

        def publish() -> None:
            while not ended.wait(0.005):
                if self.client.llen("celery") < BACKLOG:
                    self.send(10)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def inject(self, act: Callable[[], object]) -> None:
        """Do harm while tasks are in flight."""
        wait_until(lambda: self.client.hlen("unacked") > 0, "tasks in flight", 60)
        act()
        self.faults += 1

    def kill(self, victim: ManagedProcess) -> None:
        """SIGKILL."""
        victim.signal(signal.SIGKILL)
        victim.process.wait()

    def row(self, number: str, title: str) -> Row:
        """Wait until nothing happens any more, and count."""
        seen: list[int] = []
        quiet = time.monotonic()
        for _ in itertools.count():
            state = [self.client.llen(RECORDS), self.client.llen("celery"), self.client.hlen("unacked")]
            if state != seen:
                seen, quiet = state, time.monotonic()
            if time.monotonic() - quiet > (QUIET_SECONDS if any(state[1:]) or state[0] < len(self.sent) else 1.0):
                break
            time.sleep(0.1)
        counts = Counter(record.decode() for record in self.client.lrange(RECORDS, 0, -1))
        lost = sum(not counts[image] for image in self.sent)
        doubled = sum(count > 1 for count in counts.values())
        took = time.monotonic() - self._began
        return Row(number, title, len(self.sent), self.faults, lost, doubled, None, None, took, "counted")


@contextmanager
def plain_arena(place: Place, folder: Path) -> Iterator[PlainArena]:
    """Everything that it started ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield PlainArena(place, folder, stack)
