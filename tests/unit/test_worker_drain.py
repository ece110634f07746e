"""The order in which a worker ends, with a worker that notes what it is told."""

from __future__ import annotations

import threading

import pytest

from classifleet.worker import drain as module
from classifleet.worker.drain import Drain
from tests.support import wait_until


class Told:
    """Has chunks at work that end when told to: by themselves, by `abort`, or never."""

    def __init__(self, lets_go: bool = True) -> None:
        self.calls: list[str] = []
        self.idle = threading.Event()
        self.lets_go = lets_go

    def refuse(self) -> None:
        self.calls.append("refuse")

    def stop_reserving(self, timeout: float) -> None:
        self.calls.append("stop reserving")

    def wait_idle(self, timeout: float) -> bool:
        return self.idle.wait(timeout)

    def at_work(self) -> int:
        return 0 if self.idle.is_set() else 1

    def abort(self) -> None:
        self.calls.append("abort")
        if self.lets_go:
            self.idle.set()

    def give_all_back(self) -> None:
        self.calls.append("give all back")

    def finish(self, exitcode: int) -> None:
        self.calls.append(f"finish {exitcode}")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "ABORT_SECONDS", 0.01)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.01)


def drained(told: Told, seconds: float, *whys: str, exitcode: int = 0) -> tuple[list[str], list[int]]:
    exits: list[int] = []
    drain = Drain(told, seconds, exit_now=exits.append)
    drain.start()
    for why in whys:
        drain.request(why, exitcode)
    wait_until(lambda: exits, "the end")
    return told.calls, exits


def test_what_is_at_work_is_finished() -> None:
    told = Told()
    told.idle.set()
    assert drained(told, 60, "SIGTERM") == (["refuse", "stop reserving", "finish 0"], [0])


def test_what_takes_too_long_is_handed_back() -> None:
    assert drained(Told(), 0, "SIGTERM") == (["refuse", "stop reserving", "abort", "finish 0"], [0])


def test_asked_again_it_is_handed_back_at_once() -> None:
    assert drained(Told(), 3600, "SIGTERM", "SIGTERM")[0] == ["refuse", "stop reserving", "abort", "finish 0"]


def test_what_does_not_let_go_loses_its_leases() -> None:
    calls, _ = drained(Told(lets_go=False), 0, "memory", exitcode=3)
    assert calls == ["refuse", "stop reserving", "abort", "give all back", "finish 3"]


def test_a_drain_that_fails_ends_all_the_same() -> None:
    class Broken(Told):
        def refuse(self) -> None:
            raise RuntimeError("a defect")

    assert drained(Broken(), 0, "SIGTERM", exitcode=3)[1] == [3]
