from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import structlog
from redis.exceptions import OutOfMemoryError, ResponseError

from classifleet.config import LedgerUnavailable, NotReplicated, StorageUnavailable
from classifleet.worker import outages as module
from classifleet.worker.outages import Interrupted, Outages, is_away, patiently, pause_seconds


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def test_an_outage_is_said_once_and_its_end_once(logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", structlog.get_logger())
    outages = Outages()
    outages.works("ledger")
    for _ in range(100):
        outages.failed("ledger", "refused")
    outages.failed("sink", "503")
    assert set(outages.away()) == {"ledger", "sink"}
    for _ in range(100):
        outages.works("ledger")
    assert set(outages.away()) == {"sink"}
    said = [(line["event"], line["dependency"]) for line in logged]
    assert said == [("away; tried again until it is back", "ledger"), ("away; tried again until it is back", "sink"),
                    ("back", "ledger")]  # fmt: skip


def unavailable(cause: Exception) -> LedgerUnavailable:
    error = LedgerUnavailable("no")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (unavailable(redis.ConnectionError()), True),
        (unavailable(redis.TimeoutError()), True),
        (unavailable(OutOfMemoryError()), True),
        (unavailable(redis.BusyLoadingError()), True),
        (unavailable(ResponseError("WRONGTYPE")), False),
        (unavailable(ResponseError("NOREPLICAS Not enough good replicas to write. script: f00")), True),
        (unavailable(ResponseError("BUSY Redis is busy running a script.")), True),
        (unavailable(ResponseError("Error running script: @user_script:17: -MISCONF Redis is configured to")), True),
        (unavailable(ResponseError("Error running script: @user_script:17: -READONLY You can't write")), True),
        (unavailable(ResponseError("Error running script: @user_script:17: -OOM command not allowed")), True),
        (NotReplicated("0 of 1 replicas"), True),
        (StorageUnavailable("503"), True),
    ],
)
def test_whether_waiting_helps(error: Exception, away: bool) -> None:
    assert is_away(error) is away


def failing(error: Exception, times: int) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return call


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 1e-6)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 1e-3)


def test_patience() -> None:
    never = threading.Event()
    away, refused = unavailable(redis.ConnectionError()), unavailable(ResponseError())
    assert patiently(failing(away, 50), on=LedgerUnavailable, seconds=60, interrupt=never) == "done"
    assert patiently(failing(refused, 2), on=LedgerUnavailable, seconds=60, interrupt=never) == "done"
    with pytest.raises(LedgerUnavailable):
        patiently(failing(refused, 3), on=LedgerUnavailable, seconds=60, interrupt=never)
    with pytest.raises(LedgerUnavailable):
        patiently(failing(away, 1), on=LedgerUnavailable, seconds=0, interrupt=never)
    with pytest.raises(StorageUnavailable):
        patiently(failing(StorageUnavailable(), 1), on=LedgerUnavailable, seconds=60, interrupt=never)


def test_a_process_that_ends_does_not_wait() -> None:
    ending = threading.Event()
    ending.set()
    with pytest.raises(Interrupted):
        patiently(failing(StorageUnavailable(), 1), on=StorageUnavailable, seconds=60, interrupt=ending)
    assert patiently(failing(StorageUnavailable(), 0), on=StorageUnavailable, seconds=60, interrupt=ending) == "done"


def test_pauses_grow_up_to_a_limit() -> None:
    assert 0 < pause_seconds(1) <= pause_seconds(3) * 2
    assert pause_seconds(1000) <= module.LONGEST_PAUSE_SECONDS
