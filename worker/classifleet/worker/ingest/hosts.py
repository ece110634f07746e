"""What is known of hosts: how many fetches each has now, and whether it has been failing of late.

A host gets a bounded number of fetches at one time; those that wait hold nothing. A host that fails nearly every
time is left alone for a while: its circuit is open, and its images fail at once instead of waiting for it. Then one
fetch tries. A few failures among successes open nothing, so that nobody closes a shared host to others with a
handful of bad references. Hosts nobody asks for are forgotten, the longest unused first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Final

from classifleet.config import Lane
from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.ingest.retry import HostTrouble
from classifleet.worker.instruments import FETCH_CIRCUITS_OPEN, FETCH_CIRCUITS_OPENED, FETCH_HOST_WAITS, FETCH_REFUSALS
from classifleet.worker.lanes import LaneSlots

MAX_HOSTS: Final = 4096
WINDOW: Final = 20  # outcomes that are remembered
MIN_OUTCOMES: Final = 10
FAILING_SHARE: Final = 0.8
OPEN_SECONDS: Final = 5.0  # the first time; doubled each time the trial fails
OPEN_MAX_SECONDS: Final = 60.0


class Admission(Enum):
    """What a breaker says to a fetch."""

    NORMAL = auto()
    TRIAL = auto()
    REFUSED = auto()


class Breaker:
    """A circuit breaker: pure, with the time given by the caller.

    closed ── fails nearly always ──► open ── time ──► one trial ── fails ──► open, twice as long
       ▲                                                   └────── succeeds ──► closed
    """

    __slots__ = ("_open_seconds", "_outcomes", "_trying", "open_until")

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._open_seconds = OPEN_SECONDS
        self._trying = False
        self.open_until: float | None = None

    def admit(self, now: float) -> Admission:
        """Whether a fetch may begin; unless it is refused, `finish` must follow."""
        if self.open_until is None:
            return Admission.NORMAL
        if now < self.open_until or self._trying:
            return Admission.REFUSED
        self._trying = True
        return Admission.TRIAL

    def finish(self, admission: Admission, outcome: bool | None, now: float) -> None:
        """A fetch has ended.

        Args:
            admission: What `admit` said.
            outcome: Whether the host did its part; None if that cannot be said.
            now: Seconds of the clock that `admit` was asked with.
        """
        trial = admission is Admission.TRIAL
        if trial:
            self._trying = False
        if outcome is None:
            return
        if self.open_until is None:
            self._outcomes.append(outcome)
            if self._failing():
                self.open_until = now + self._open_seconds
        elif outcome:  # also of a fetch that began before the circuit opened
            self.open_until, self._open_seconds = None, OPEN_SECONDS
            self._outcomes.clear()
        elif trial:
            self._open_seconds = min(2 * self._open_seconds, OPEN_MAX_SECONDS)
            self.open_until = now + self._open_seconds

    def _failing(self) -> bool:
        count = len(self._outcomes)
        return count >= MIN_OUTCOMES and count - sum(self._outcomes) >= FAILING_SHARE * count


class _Host:
    __slots__ = ("breaker", "turns", "users")

    def __init__(self, concurrency: int) -> None:
        self.breaker = Breaker()
        self.turns = LaneSlots(concurrency)
        self.users = 0


class Visit:
    """One request to a host, from its turn on."""

    __slots__ = ("answered", "began")

    def __init__(self) -> None:
        self.answered = False
        """Set it when the host has answered; what comes after may still fail."""
        self.began: float | None = None
        """Set it when work begins, in seconds of the event loop."""


class HostTable:
    """The hosts of one fetcher, on one event loop.

    Args:
        concurrency: Requests to one host at one time.
        patience_seconds: A timeout is held against a host that was given at least so long: not against one that a
            job with a deadline of a millisecond asked.
        max_hosts: Hosts that are remembered, beside those in use.
    """

    def __init__(self, concurrency: int, *, patience_seconds: float, max_hosts: int = MAX_HOSTS) -> None:
        self._concurrency = concurrency
        self._patience_seconds = patience_seconds
        self._max_hosts = max_hosts
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    @asynccontextmanager
    async def visit(self, name: str, lane: Lane = "bulk") -> AsyncIterator[Visit]:
        """Wait for a turn at a host; what is raised inside tells how it went.

        Raises:
            ImageError: `fetch_failed`: the host's circuit is open.
        """
        host = self._get(name)
        host.users += 1
        try:
            _require_rested(name, host)  # before waiting, and again when the turn has come
            if host.turns.full(lane):
                FETCH_HOST_WAITS.inc()
            async with host.turns.held(lane), self._judged(host, _admit(name, host)) as visit:
                yield visit
        finally:
            host.users -= 1
            self._forget()

    @asynccontextmanager
    async def _judged(self, host: _Host, admission: Admission) -> AsyncIterator[Visit]:
        visit = Visit()
        outcome: bool | None = None
        try:
            yield visit
            outcome = visit.answered or None
        except HostTrouble:
            outcome = False
            raise
        except TimeoutError:
            outcome = None if self._elapsed(visit) < self._patience_seconds else False
            raise
        except ImageError:
            outcome = visit.answered or None
            raise
        finally:
            self._record(host, admission, outcome)

    @staticmethod
    def _record(host: _Host, admission: Admission, outcome: bool | None) -> None:
        was_open = host.breaker.open_until is not None
        host.breaker.finish(admission, outcome, _now())
        is_open = host.breaker.open_until is not None
        if is_open and not was_open:
            FETCH_CIRCUITS_OPENED.inc()
        FETCH_CIRCUITS_OPEN.inc(is_open - was_open)

    @staticmethod
    def _elapsed(visit: Visit) -> float:
        return 0.0 if visit.began is None else _now() - visit.began

    def _get(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._concurrency)
        self._hosts.move_to_end(name)
        return host

    def _forget(self) -> None:
        """Drop the oldest, unless it is in use: then it moves to the young end."""
        while len(self._hosts) > self._max_hosts:
            name, host = next(iter(self._hosts.items()))
            if host.users:
                self._hosts.move_to_end(name)
                return
            del self._hosts[name]
            FETCH_CIRCUITS_OPEN.inc(-(host.breaker.open_until is not None))


def _require_rested(name: str, host: _Host) -> None:
    until, now = host.breaker.open_until, _now()
    if until is not None and now < until:
        raise _refused(name, until - now)


def _admit(name: str, host: _Host) -> Admission:
    admission = host.breaker.admit(_now())
    if admission is Admission.REFUSED:
        raise _refused(name, max(0.0, (host.breaker.open_until or 0.0) - _now()))
    return admission


def _refused(name: str, seconds: float) -> ImageError:
    FETCH_REFUSALS.inc()
    return ImageError(
        ErrorCode.FETCH_FAILED, f"{name} has been failing; it is not asked again for {seconds:.0f} s (circuit open)"
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
