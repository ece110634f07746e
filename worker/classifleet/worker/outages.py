"""What this process needs and cannot reach: said once when it goes, and once when it is back."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar, get_args

import redis
import structlog
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from classifleet.config import LedgerUnavailable
from classifleet.config.errors import NotReplicated
from classifleet.ledger import Call, Replicas, SyncRunner
from classifleet.worker.instruments import DEPENDENCY_UP

log = structlog.get_logger(__name__)
T = TypeVar("T")
Dependency = Literal["broker", "ledger", "replicas", "sink"]
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
REFUSED_TRIES: Final = 3
_AWAY: Final = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError, OSError)
# What a Redis says that will take writes again: in a script's error they need not come first.
_REFUSALS: Final = re.compile(r"\b(BUSY|CLUSTERDOWN|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN) ")


class Outages:
    """The state of each dependency. Safe across threads."""

    def __init__(self) -> None:
        self._since: dict[Dependency, float] = {}
        self._lock = threading.Lock()
        for dependency in get_args(Dependency):
            DEPENDENCY_UP.labels(dependency).set(1)

    def failed(self, dependency: Dependency, error: object) -> None:
        """A call failed because the dependency is away."""
        with self._lock:
            first = dependency not in self._since
            self._since.setdefault(dependency, time.monotonic())
        DEPENDENCY_UP.labels(dependency).set(0)
        if first:
            log.warning("away; tried again until it is back", dependency=dependency, error=str(error))

    def works(self, dependency: Dependency) -> None:
        """A call was answered."""
        if dependency not in self._since:
            return
        with self._lock:
            since = self._since.pop(dependency, None)
        DEPENDENCY_UP.labels(dependency).set(1)
        if since is not None:
            log.warning("back", dependency=dependency, seconds=round(time.monotonic() - since, 1))

    def away(self) -> dict[Dependency, float]:
        """For how many seconds each has been away."""
        now = time.monotonic()
        with self._lock:
            return {dependency: now - since for dependency, since in self._since.items()}


class WatchedRunner(SyncRunner):
    """Runs the ledger's calls, and tells `Outages` whether Redis answers."""

    def __init__(self, client: redis.Redis, url: str, replicas: Replicas, outages: Outages) -> None:
        super().__init__(client, url, replicas)
        self._outages = outages

    def run_all(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run calls in one round trip; see `SyncRunner.run_all`."""
        try:
            answers = super().run_all(calls)
        except NotReplicated as error:
            self._outages.works("ledger")
            self._outages.failed("replicas", error)
            raise
        except LedgerUnavailable as error:
            if is_away(error):
                self._outages.failed("ledger", error)
            raise
        self._outages.works("ledger")
        if self._replicas.are_needed_by(calls):
            self._outages.works("replicas")
        return answers


class Interrupted(Exception):
    """The process is ending, and does not wait any longer."""


def is_away(error: BaseException) -> bool:
    """Whether waiting helps; a script that failed on its keys fails again."""
    if not isinstance(error, LedgerUnavailable) or isinstance(error, NotReplicated):
        return True
    if isinstance(error.__cause__, _AWAY):
        return True
    return isinstance(error.__cause__, redis.ResponseError) and bool(_REFUSALS.search(str(error.__cause__)))


def patiently(
    call: Callable[[], T],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    seconds: float,
    interrupt: threading.Event,
) -> T:
    """Repeat a call until it is answered, with growing pauses.

    Raises:
        Exception: The last failure, one of `on`: after so many seconds, or after three if waiting does not help.
        Interrupted: The event was set meanwhile.
    """
    end = time.monotonic() + seconds
    tries = 0
    while True:
        try:
            return call()
        except on as error:
            tries += 1
            if time.monotonic() >= end or (tries >= REFUSED_TRIES and not is_away(error)):
                raise
        if interrupt.wait(pause_seconds(tries)):
            raise Interrupted


def pause_seconds(tries: int) -> float:
    """How long to wait after so many failures: doubled each time, half of it by chance."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10))
    return longest * random.uniform(0.5, 1.0)
