"""Workers that die: 1, 2, 3, 19."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.chaos.conftest import Scenario

STOP_SECONDS = 30.0


@pytest.mark.chaos("1", "kill -9 of workers mid-batch", quick=True, within=150)  # some chunks meet victim after victim
def test_kill(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(2)
        with it.load():
            for _ in range(20 if scenario.full else 2):
                it.kill(it.victim())
                it.start(wait=False)


@pytest.mark.chaos("2", "SIGSTOP, publish, kill -9", within=120)  # some chunks go from grave to grave
def test_stop_publish_kill(scenario: Scenario) -> None:
    """A worker that waits for messages with work in flight takes what is published to the grave."""
    with scenario.arena() as it, it.load(backlog=60):
        for turn in range(5 if scenario.full else 1):
            [victim] = it.start()
            it.gated(f"held-{turn}", sink=it.sink)
            it.holder(f"held-{turn}")
            it.stop(victim)
            it.gated(f"published-{turn}", chunks=4)
            for each in ("held", "published"):
                it.place.web.open(f"{each}-{turn}")
            it.inject(lambda victim=victim: it.end(victim), victim)
        it.start()


@pytest.mark.chaos("3", "SIGTERM under load, SIGKILL at the grace")
def test_terminate(scenario: Scenario) -> None:
    grace_seconds = 3
    with scenario.arena(settings={"DRAIN_SECONDS": str(2 * grace_seconds)}) as it:
        it.start(2)
        with it.load():
            for _ in range(4):
                it.start()
                victim = it.victim()
                it.inject(lambda victim=victim: victim.process.signal(signal.SIGTERM), victim, by_others=False)
                assert victim.process.process.wait(STOP_SECONDS) == 0, victim.process.tail()
            for turn in range(3):
                it.gated(f"held-{turn}", sink=it.sink)
                _, victim = it.holder(f"held-{turn}")
                victim.process.signal(signal.SIGTERM)
                with pytest.raises(subprocess.TimeoutExpired):
                    victim.process.process.wait(grace_seconds)
                it.inject(lambda victim=victim: it.end(victim), victim)
                it.place.web.open(f"held-{turn}")
                it.start(wait=False)


@pytest.mark.chaos("19", "rolling restart of all workers", within=30)
def test_rolling_restart(scenario: Scenario) -> None:
    with scenario.arena(settings={"LEASE_SECONDS": "60"}) as it:  # nothing may wait for a lease to run out
        it.start(3)
        with it.load():
            for old in list(it.workers):
                it.start()
                it.inject(lambda old=old: old.process.signal(signal.SIGTERM), it.victim([old]), by_others=False)
                assert old.process.process.wait(STOP_SECONDS) == 0, old.process.tail()
