"""The kills of 1, 2 and 3 for plain Celery with `acks_late`: no promise is tested, its losses are printed."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.chaos.conftest import Scenario
from tests.chaos.plain import PlainArena, plain_arena
from tests.support import ManagedProcess

GRACE_SECONDS = 3.0


@pytest.mark.chaos("plain 1", "kill -9 of workers mid-batch")
def test_kill(scenario: Scenario) -> None:
    with plain_arena(scenario.place, scenario.folder) as it:
        it.start(2)
        with it.load():
            for _ in range(20):
                it.inject(lambda: it.kill(running(it)))
                it.start()
        scenario.rows.append(it.row(scenario.number, scenario.title))


@pytest.mark.chaos("plain 2", "SIGSTOP, publish, kill -9")
def test_stop_publish_kill(scenario: Scenario) -> None:
    with plain_arena(scenario.place, scenario.folder) as it:
        for _ in range(5):
            [victim] = it.start()
            it.send(1, seconds=3.0)
            it.inject(lambda victim=victim: victim.signal(signal.SIGSTOP))
            it.send(4)
            it.kill(victim)
        it.start()
        scenario.rows.append(it.row(scenario.number, scenario.title))


@pytest.mark.chaos("plain 3", "SIGTERM under load, SIGKILL at the grace")
def test_terminate(scenario: Scenario) -> None:
    with plain_arena(scenario.place, scenario.folder) as it:
        it.start(2)
        with it.load():
            for _ in range(7):
                victim = running(it)
                it.inject(lambda victim=victim: victim.signal(signal.SIGTERM))
                try:
                    victim.process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    it.kill(victim)
                it.start()
        scenario.rows.append(it.row(scenario.number, scenario.title))


def running(it: PlainArena) -> ManagedProcess:
    """The worker that has been running for the longest."""
    return next(worker for worker in it.workers if worker.running())
