"""Leases: 10, 13, 14, 16."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.arena import SABOTEUR, WORKER, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.model import MODEL
from tests.chaos.saboteur import CRASHED, GAPS
from tests.support import wait_until
from tests.support.fleet import Worker

LATE = '"outcome": "late"'
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
STALL_SECONDS = 1.0
SUNK = 50  # chunks: the store of the tests must not be what the others wait for


@pytest.mark.chaos("10", "lease shorter than the work")
def test_short_lease(scenario: Scenario) -> None:
    lease_seconds = 1
    with scenario.arena(settings={"LEASE_SECONDS": str(lease_seconds)}) as it:
        it.start(2)
        with it.load():
            it.gated("long")
            before, _ = it.holder("long")
            it.inject()
            threading.Event().wait(5 * lease_seconds)  # the work's length
            after, _ = it.holder("long")
            assert after == before, "a renewed lease was lost"
            it.place.web.open("long")
            for _ in range(3):
                victim = it.victim()
                stop_at_work(it, victim)
                recovery = it.inject(victim=victim)
                wait_until(lambda recovery=recovery: not recovery.left, "others to finish its work", 60)
                victim.process.signal(signal.SIGCONT)


@pytest.mark.chaos("13", "crash between part, commit and ack; a zombie", quick=True)
def test_gaps(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(1, wait=False)
        with it.load():
            gaps = itertools.product(GAPS, (3, 11)) if scenario.full else (("part-commit", 3), ("commit-ack", 3))
            for gap, turn in gaps:
                crash_at(it, gap, turn)
            zombie(it, 5)


def crash_at(it: Arena, gap: str, turn: int) -> None:
    """A worker that dies in this gap, with another chunk at work."""
    [victim] = it.start(command=(*SABOTEUR, "crash", gap, str(turn)), wait=False)
    assert victim.process.process.wait(60) == CRASHED, victim.process.tail()
    it.inject(victim=victim)


def zombie(it: Arena, turn: int) -> None:
    """A worker that stands still before a commit until others have its work, and then commits."""
    [victim] = it.start(command=(*SABOTEUR, "zombie", str(turn)), wait=False)
    wait_until(lambda: stopped(victim), "the zombie to stop", 60)
    recovery = it.inject(victim=victim)
    wait_until(lambda: not recovery.left, "others to finish its work", 60)
    victim.process.signal(signal.SIGCONT)
    wait_until(lambda: LATE in victim.process.log.read_text(), "a late commit", 30)


def stop_at_work(it: Arena, victim: Worker) -> None:
    """SIGSTOP while it holds leases."""

    def stop() -> bool:
        victim.process.signal(signal.SIGSTOP)
        if it.observer.at_work({victim.process.pid}):
            return True
        victim.process.signal(signal.SIGCONT)
        return False

    wait_until(stop, "the victim to be at work", 60)


def stopped(worker: Worker) -> bool:
    """Whether SIGSTOP holds it."""
    assert worker.process.running(), worker.process.tail()
    return Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.chaos("14", "a worker's clock 10 minutes off")
@pytest.mark.skipif(not FAKETIME.exists() and not os.environ.get("CI"), reason="libfaketime is not installed")
def test_clock(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(1, wait=False)
        for offset in ("+600s", "-600s"):
            fake = ("env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1")
            it.start(1, command=(*fake, *WORKER), wait=False)
        for worker in it.workers:
            worker.wait_ready()
        with it.load():
            for victim in list(it.workers):
                it.inject()
                before = it.observer.count("done")
                wait_until(lambda before=before: it.observer.count("done") > before + 200, "200 images", 60)
                it.kill(victim)
            it.start(1)


@pytest.mark.chaos("16", "1,000 chunks to restore at once", within=130)
@pytest.mark.timeout(600)
def test_restore(scenario: Scenario) -> None:
    """Interactive images go on while all of them come back."""
    chunks = 1000
    many = {"CHUNKS_IN_FLIGHT": "1024", "CHUNKS_WAITING": "1024", "LEASE_SECONDS": "6"}
    fetches = dict.fromkeys(("FETCH_CONCURRENCY", "FETCH_SLOW_CONCURRENCY", "FETCH_HOST_CONCURRENCY"), "2048")
    with scenario.arena(settings={"LEASE_SECONDS": "6"}) as it:
        [victim] = it.start(1, **many, **fetches)
        it.gated("restored", chunks=chunks - SUNK)
        it.gated("restored-sink", chunks=SUNK, sink=it.sink)
        it.wait_at_work(images=chunks)
        it.start(1)
        with probing(it) as idle:
            threading.Event().wait(3)
        it.inject(lambda: it.end(victim), victim)
        with probing(it) as stalls:  # from now on: an image that the victim had would wait for its lease
            jobs = [it.fleet.job(job) for job in ("restored", "restored-sink")]
            for job in jobs:
                it.place.web.open(job.id)
            wait_until(lambda: all(job.progress().finished for job in jobs), "all chunks to be done", 120)
        longest = max(stalls)
        print(f"longest wait of an interactive image: {longest:.2f} s, idle {max(idle):.2f} s, {len(stalls)} asked")
        assert longest < max(idle) + STALL_SECONDS


@contextmanager
def probing(it: Arena) -> Iterator[list[float]]:
    """Ask for single images one after the other; how long each took."""
    seconds: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            began = time.monotonic()
            handle = it.fleet.submit(it.place.photo(), models=MODEL, id=it.fleet.new_id())
            it.note(handle.id)
            handle.result(60)
            seconds.append(time.monotonic() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()
