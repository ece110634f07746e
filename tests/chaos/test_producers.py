"""Producers that die, and a fleet without workers: 20, 21."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.arena import NAMESPACE, Arena
from tests.chaos.conftest import Scenario
from tests.chaos.load import Accepted
from tests.chaos.observer import QUEUES
from tests.support import ManagedProcess, wait_until

IMAGES = 2000
CHUNK = 4


@pytest.mark.chaos("20", "producer killed inside submit_many, then resumed")
def test_producer(scenario: Scenario, tmp_path: Path) -> None:
    with scenario.arena() as it:
        it.start(2 if scenario.full else 1)
        with it.load(backlog=30):
            for turn in range(5 if scenario.full else 1):
                items = [
                    (f"killed-{turn}/{n}", it.place.ref()) for n in range(IMAGES if scenario.full else IMAGES // 2)
                ]
                submit_and_die(it, f"killed-{turn}", items, tmp_path / f"{turn}.json")


def submit_and_die(it: Arena, job: str, items: list[tuple[str, str]], file: Path) -> None:
    """Killed twice at different places; the third time it ends."""
    file.write_text(json.dumps(items))
    command = (
        sys.executable,
        "-m",
        "tests.chaos.producer",
        it.broker_url,
        it.ledger_url,
        NAMESPACE,
        job,
        str(CHUNK),
        file,
    )
    for share in (0.05, 0.3):
        with ManagedProcess(command, file.with_suffix(".log")) as producer:
            wait_until(lambda share=share: accepted(it, job) > share * len(items), "chunks to be accepted", 60)
            producer.signal(signal.SIGSTOP)
            it.inject(lambda producer=producer: producer.signal(signal.SIGKILL))
            assert it.observer.client.hget(it.observer.keys.job(job), "state") == "open", "it was too fast"
    with ManagedProcess(command, file.with_suffix(".log")) as producer:
        assert producer.process.wait(120) == 0, producer.tail()
    it.accepted.append(Accepted(job, tuple(name for name, _ in items)))


def accepted(it: Arena, job: str) -> int:
    """Images of the job in the ledger."""
    return int(it.observer.client.hget(it.observer.keys.job(job), "accepted") or 0)


@pytest.mark.chaos("21", "all workers gone; the exporter brings the work back", within=90)
def test_no_workers(scenario: Scenario) -> None:
    """What they had reserved is queued again and published again while there is no worker at all."""
    with scenario.arena() as it:
        it.start(2)
        with it.load():
            wait_until(lambda: it.observer.count("done") > 100, "work", 60)
            for victim in it.workers:
                victim.process.signal(signal.SIGSTOP)
            it.wait_at_work(images=9)
        held = it.observer.at_work()
        dead = {each.pid for each in held}
        for victim in it.workers:
            if victim.process.pid in dead:
                it.inject(lambda victim=victim: it.end(victim), victim)
            else:
                it.end(victim)
        with it.redis.client() as broker:
            assert broker.hlen(it.observer.keys.broker + "reserved") > 0, "no message was reserved"
            [exporter] = it.start(1, command=EXPORTER)
            wait_until(lambda: it.observer.chunks("leased") == 0, "the leases to be taken back", 90)
            wait_until(
                lambda: waiting(broker, it) >= it.observer.chunks("queued") > 0,
                "every queued chunk to be published",
                90,
            )
        assert exporter.process.running()
        it.start(1)


EXPORTER = (sys.executable, "-m", "classifleet.producer.cli", "exporter")


def waiting(broker: Any, it: Arena) -> int:
    """Messages on the broker's lists."""
    return sum(broker.llen(f"{it.observer.keys.broker}{queue}") for queue in QUEUES)
