"""`InMemoryFleet` and `AsyncInMemoryFleet`: the fleets and their flows, performed in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from classifleet.config import BrokerUnavailable, Keys, LedgerUnavailable, Settings, Unavailable
from classifleet.producer._async_engine import AsyncEngine
from classifleet.producer._effects import Ask, Effect, Publish
from classifleet.producer._engine import SyncEngine
from classifleet.producer._flows import Flows
from classifleet.producer.async_fleet import AsyncFleet
from classifleet.producer.fleet import Fleet
from classifleet.producer.testing._answers import Answers
from classifleet.producer.testing._claims import MemoryClaims
from classifleet.producer.testing._ledger import MemoryLedger
from classifleet.producer.testing._memory import Memory
from classifleet.producer.testing._state import Submission
from classifleet.producer.testing._worker import MemoryWorker

_URL: Final = "memory://"
_CLIENT: Final = "in-memory"


class _Backend:
    """Ledger, broker and worker of one fleet in memory."""

    def __init__(self, answers: Answers, multi_label: Container[str], settings: Settings, *, paused: bool) -> None:
        self.memory = Memory()
        self.worker = MemoryWorker(self.memory, answers, multi_label)
        self.ledger = MemoryLedger(Keys(settings.namespace), self.memory)
        self.flows = Flows(self.ledger, settings, _CLIENT, MemoryClaims(settings, self.memory))
        self.paused = paused
        self.away: Unavailable | None = None

    def ask(self, effect: Ask) -> list[Any]:
        if isinstance(self.away, LedgerUnavailable):
            raise self.away
        answers = self.ledger.run(effect.calls)
        self.worker.answer_cancelled()
        return answers

    def publish(self) -> None:
        if isinstance(self.away, BrokerUnavailable):
            raise self.away
        if not self.paused:
            self.worker.run()


class _Controls:
    """What a test can do with a fleet in memory and not with a real one.

    Attributes:
        paused: Work waits for `run_pending`. It may be set at any time.
    """

    _backend: _Backend

    @property
    def paused(self) -> bool:
        return self._backend.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._backend.paused = paused

    @property
    def submitted(self) -> list[Submission]:
        """Every image that was accepted, in order; a repetition with the same id is not listed again."""
        return list(self._backend.memory.submitted)

    def run_pending(self, max_chunks: int | None = None) -> int:
        """Do the work that waits, interactive images first; says how many images got their record.

        Args:
            max_chunks: Stop after so many chunks. A single image is one; `submit_many` has `chunk_size` in each.
        """
        return self._backend.worker.run(max_chunks)

    def expire(self, id: str) -> None:  # noqa: A002 - the field's name everywhere
        """Delete an image's or a job's records, as their time to live does: reading them raises `ResultExpired`."""
        with self._backend.memory.lock:
            self._backend.memory.expire(id)

    @contextmanager
    def unavailable(self, error: type[LedgerUnavailable | BrokerUnavailable] = LedgerUnavailable) -> Iterator[None]:
        """Within the block, calls raise this error.

        With `BrokerUnavailable` a submission is in the ledger all the same, as it may be in a real fleet: the same
        call with the same id later carries on.
        """
        self._backend.away = error()
        try:
            yield
        finally:
            self._backend.away = None


class _Engine(SyncEngine):
    def __init__(self, settings: Settings, backend: _Backend) -> None:
        super().__init__(settings, _CLIENT)
        self._backend = backend

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Ask():
                return self._backend.ask(effect)
            case Publish():
                return self._backend.publish()
        return super()._perform(effect)

    @contextmanager
    def watch(self, job: str) -> Iterator[threading.Event]:
        event = threading.Event()
        with self._backend.memory.watch(job, event.set):
            yield event


class _AsyncEngine(AsyncEngine):
    def __init__(self, settings: Settings, backend: _Backend) -> None:
        super().__init__(settings, _CLIENT)
        self._backend = backend

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Ask():
                return self._backend.ask(effect)
            case Publish():
                return self._backend.publish()
        return await super()._perform(effect)

    async def in_thread(self, function: Any, *args: Any) -> Any:
        return function(*args)

    @asynccontextmanager
    async def watch(self, job: str) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._backend.memory.watch(job, lambda: loop.call_soon_threadsafe(event.set)):
            yield event


class InMemoryFleet(_Controls, Fleet):
    """A `Fleet` that lives in memory and answers what it is told.

    Args:
        answers: Labels with their confidences by reference, or a function of a `Submission`; see `Answers`.
        paused: Work waits for `run_pending`, so that timeouts, progress and cancelling can be seen.
        multi_label: Names of the models of which any number of classes may apply.
        settings: As for `Fleet`.
    """

    def __init__(
        self, answers: Answers, *, paused: bool = False, multi_label: Container[str] = (), **settings: Any
    ) -> None:
        self.settings = Settings.load(broker_url=_URL, **settings)
        self._backend = _Backend(answers, multi_label, self.settings, paused=paused)
        self._flows = self._backend.flows
        self._engine = _Engine(self.settings, self._backend)


class AsyncInMemoryFleet(_Controls, AsyncFleet):
    """An `AsyncFleet` that lives in memory; arguments as for `InMemoryFleet`."""

    def __init__(
        self, answers: Answers, *, paused: bool = False, multi_label: Container[str] = (), **settings: Any
    ) -> None:
        self.settings = Settings.load(broker_url=_URL, **settings)
        self._backend = _Backend(answers, multi_label, self.settings, paused=paused)
        self._flows = self._backend.flows
        self._engine = _AsyncEngine(self.settings, self._backend)
