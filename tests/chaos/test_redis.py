"""Faults of Redis and of the connections to it: 4, 5, 6, 7, 9."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from classifleet.config import UnknownJob
from tests.chaos.arena import SABOTEUR, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.load import Load
from tests.chaos.saboteur import HOLD, in_forward
from tests.support import wait_until


@pytest.mark.chaos("4", "CLIENT KILL of every connection during forward")
def test_client_kill(scenario: Scenario) -> None:
    passes = scenario.folder / "forward"
    passes.mkdir()
    with scenario.arena() as it:
        it.start(2, command=(*SABOTEUR, "forward", str(passes)))
        with it.load(), it.redis.client() as admin:

            def kill_all() -> None:
                before = in_forward(passes)
                killed = [admin.client_kill_filter(_type=kind, skipme=True) for kind in ("normal", "pubsub")]
                assert sum(killed) > 0
                assert before & in_forward(passes), "no forward pass was under way"

            for _ in range(10):
                (passes / HOLD).touch()
                wait_until(lambda: in_forward(passes), "a forward pass", 60)
                it.inject(kill_all)
                (passes / HOLD).unlink()
                wait_for_more(it, 64)


@pytest.mark.chaos("5", "Redis killed, with AOF")
def test_redis_killed(scenario: Scenario) -> None:
    """With `everysec` a write waits in Redis for up to two seconds while a slow disk is written to (guarantees.md)."""
    with scenario.arena(part="a", redis_options=("--appendfsync", "always")) as it:
        it.start(2)
        with it.load():
            for _ in range(3):
                it.inject(it.kill_redis)
                it.restart_redis()
                wait_for_more(it, 200)


@pytest.mark.chaos("5", "Redis killed, without persistence", within=240)
def test_redis_forgets(scenario: Scenario) -> None:
    """What was accepted is unknown then, and nothing says otherwise; submitted again, it completes once."""
    options = ("--appendonly", "no")
    with scenario.arena(part="b", settings={"EPHEMERAL": "true"}, redis_options=options) as it:
        it.start(1)
        load = it.load(backlog=60)
        jobs = {
            "done": [(f"done/{n}", it.place.ref()) for n in range(40)],
            "held": [("held/0", it.place.web.gated("forgotten", it.place.photo().name))],
            "queued": [(f"queued/{n}", it.place.ref()) for n in range(400)],
            "sink": [(f"sink/{n}", it.place.ref()) for n in range(40)],
        }
        with load:
            for job, items in jobs.items():
                it.submit(job, items, sink=it.sink if job == "sink" else None)
                if job == "done":
                    it.fleet.job(job).wait(60)
            it.inject(it.kill_redis)
            it.restart_redis()
            for job in jobs:
                for ask in (it.fleet.job(job).progress, it.fleet.handle(job).done):
                    with pytest.raises(UnknownJob):
                        ask()
            wait_for_acceptance(load)
        assert load.again() > 0, "nothing of the load was forgotten"
        it.accepted.clear()
        for job, items in jobs.items():
            it.submit(job, items, sink=it.sink if job == "sink" else None)
        it.place.web.open("forgotten")


@pytest.mark.chaos("6", "FLUSHDB of the broker's database")
def test_broker_forgets(scenario: Scenario) -> None:
    with scenario.arena(ledger_database=1) as it:
        it.start(2)
        with it.load(), it.redis.client() as broker:
            for _ in range(5):
                it.inject(broker.flushdb)
                wait_for_more(it, 150)


@pytest.mark.chaos("7", "Redis paused 30 s", within=90)
def test_redis_pauses(scenario: Scenario) -> None:
    with scenario.arena() as it:
        it.start(2)
        with it.load():
            it.inject(lambda: it.redis.process.signal(signal.SIGSTOP))
            threading.Event().wait(30)  # the fault's length
            it.redis.process.signal(signal.SIGCONT)
            wait_for_more(it, 200)


@pytest.mark.chaos("9", "maxmemory reached")
@pytest.mark.parametrize(("part", "share"), [("a", 0.8), ("b", 0.0)], ids=["admission", "out of memory"])
def test_memory(scenario: Scenario, part: str, share: float) -> None:
    """Producers are refused, by the ledger's own check or by Redis; what was accepted is finished meanwhile."""
    with scenario.arena(part=part) as it:
        it.start(2)
        producer = it.connect(max_memory_share=share)
        with it.load(fleet=producer, backlog=4000) as load, it.redis.client() as admin:
            wait_until(lambda: it.observer.count("queued") > 1500, "a backlog", 60)
            used = admin.info("memory")["used_memory"]
            it.inject(lambda: fill(admin, used + (200 << 10)))
            wait_until(lambda: load.refusals.get("QueueFull", 0) > 2, "a refusal", 30)
            assert set(load.refusals) == {"QueueFull"}
            if not share:
                # Not at any moment: buffers of clients come and go.
                wait_until(lambda: admin.info("memory")["used_memory"] > used, "Redis to be at its limit", 30)
            wait_for_more(it, 300)
            admin.config_set("maxmemory", 0)
            wait_for_acceptance(load)


def fill(admin: Any, limit: int) -> None:
    """The most memory from now on."""
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", limit)


def wait_for_more(it: Arena, images: int) -> None:
    """So many images more are done."""
    before = it.observer.count("done")
    wait_until(lambda: it.observer.count("done") >= before + images, f"{images} images more", 60)


def wait_for_acceptance(load: Load) -> None:
    """One submission more is accepted."""
    before = len(load.accepted)
    wait_until(lambda: len(load.accepted) > before, "a submission to be accepted", 60)
