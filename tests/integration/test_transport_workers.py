"""The transport in Celery's worker processes: deaths, lost connections, shutdown, and what idling costs."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from classifleet.config import Keys, Settings, message
from classifleet.config.celery_app import Publisher
from classifleet.config.payload import TASK_NAME
from tests.conftest import SettingsFactory
from tests.support.processes import ManagedProcess
from tests.support.waiting import wait_until

BULK, INTERACTIVE = "classify.default.bulk", "classify.default.interactive"
ROOT = Path(__file__).parents[2]


class Plant:
    """Plain workers (`tests/support/plain_worker.py`) on one Redis."""

    def __init__(self, settings: Settings, folder: Path, stack: ExitStack) -> None:
        self.settings = settings
        self.redis = redis.Redis.from_url(settings.broker_url or "")
        self.publisher = Publisher(settings)
        self.prefix = Keys(settings.namespace).broker
        self._folder = folder
        self._stack = stack
        self._started = 0

    def start(self, *, slots: int = 8, lease_seconds: float = 1, wait: bool = True) -> ManagedProcess:
        self._started += 1
        given = {
            "BROKER_URL": self.settings.broker_url,
            "NAMESPACE": self.settings.namespace,
            "TRANSPORT": self.settings.transport,
            "CHUNKS_IN_FLIGHT": slots,
            "LEASE_SECONDS": lease_seconds,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CLASSIFLEET_")}
        environment |= {f"CLASSIFLEET_{name}": str(value) for name, value in given.items()}
        process = ManagedProcess(
            [sys.executable, "-m", "tests.support.plain_worker"],
            self._folder / f"worker-{self._started}.log",
            env=environment,
            cwd=ROOT,
        )
        self._stack.callback(process.stop)
        if wait:
            self.wait_ready(process)
        return process

    def wait_ready(self, process: ManagedProcess) -> None:
        def ready() -> bool:
            assert process.running(), process.tail()
            return " ready." in process.log.read_text()  # what follows it may already be longer than the tail

        wait_until(ready, "the worker", 30)

    def publish(self, count: int, queue: str = BULK, job: str = "j") -> set[str]:
        self.publisher.publish([(queue, message(job, str(number))) for number in range(count)])
        return {f"{job}/{number}" for number in range(count)}

    def notes(self, which: str) -> Counter[str]:
        return Counter(each.decode() for each in self.redis.lrange(f"work:{which}", 0, -1))

    def wait_done(self, expected: set[str], seconds: float = 30) -> None:
        wait_until(lambda: set(self.notes("done")) >= expected, f"{len(expected)} tasks", seconds)

    def wait_settled(self) -> None:
        wait_until(lambda: self.redis.keys(f"{self.prefix}*") == [], "nothing to be held", 10)

    def task_seconds(self, seconds: float) -> None:
        self.redis.set("work:seconds", seconds)


@pytest.fixture
def plant(settings: SettingsFactory, tmp_path: Path) -> Iterator[Plant]:
    with ExitStack() as stack:
        plant = Plant(settings(), tmp_path, stack)
        stack.callback(plant.redis.close)
        stack.callback(plant.publisher.close)
        yield plant


def kill(process: ManagedProcess) -> None:
    process.signal(signal.SIGKILL)
    process.process.wait()


def test_kills_under_load_lose_nothing(plant: Plant) -> None:
    plant.task_seconds(0.005)
    expected: set[str] = set()
    process = plant.start()
    for death in range(3):
        following = plant.start(wait=False)
        expected |= plant.publish(400, BULK, f"bulk-{death}") | plant.publish(100, INTERACTIVE, f"soon-{death}")
        done = sum(plant.notes("done").values())
        wait_until(lambda done=done: sum(plant.notes("done").values()) > done + 60, "work")  # type: ignore[misc]
        kill(process)
        process = following
    plant.wait_ready(process)
    plant.wait_done(expected, 60)
    plant.wait_settled()
    twice = sum(count - 1 for count in plant.notes("done").values())
    assert twice <= 3 * 8  # what the dead were at


def test_a_worker_that_was_stopped_when_work_came_and_then_killed(plant: Plant) -> None:
    """kombu's own transport loses this message: BRPOP has removed it, and nobody wrote down who has it."""
    stopped = plant.start()
    wait_until(lambda: blocked(plant) == 2, "the worker to block on both lanes")
    stopped.signal(signal.SIGSTOP)
    expected = plant.publish(1)
    wait_until(lambda: plant.redis.llen(f"{plant.prefix}{BULK}:woken") == 1, "the worker to be woken")
    kill(stopped)
    plant.start()
    plant.wait_done(expected)
    plant.wait_settled()


def blocked(plant: Plant) -> int:
    return sum(each["cmd"] == "blmove" for each in plant.redis.client_list())


def test_an_idle_worker_finds_what_woke_a_dead_one(plant: Plant) -> None:
    stopped = plant.start()
    wait_until(lambda: blocked(plant) == 2, "the worker to block on both lanes")
    stopped.signal(signal.SIGSTOP)
    plant.start()
    wait_until(lambda: blocked(plant) == 4, "the other one to block")
    expected = plant.publish(1)  # Redis serves whoever has waited longest
    kill(stopped)
    plant.wait_done(expected, 8)


def cut(plant: Plant) -> None:
    """Cut the broker connections of all workers."""
    for client in plant.redis.client_list():
        if client["cmd"] in ("blmove", "evalsha", "eval"):
            plant.redis.client_kill_filter(_id=client["id"])


def test_lost_connections_lose_and_double_nothing(plant: Plant) -> None:
    plant.task_seconds(0.2)
    process = plant.start(lease_seconds=4)
    expected = plant.publish(60) | plant.publish(20, INTERACTIVE, "soon")
    for least in (8, 24):
        wait_until(lambda least=least: sum(plant.notes("done").values()) > least, "work")  # type: ignore[misc]
        cut(plant)
    plant.wait_done(expected, 60)
    plant.wait_settled()
    assert process.running()
    # A reply that was on its way when its connection was cut comes back by its deadline, unstarted; tasks that ran
    # when it was cut are acknowledged on another connection, and not given out again.
    assert set(plant.notes("started").values()) == {1}


def test_sigterm_finishes_what_is_at_work_and_hands_back_the_rest(plant: Plant) -> None:
    plant.task_seconds(0.1)
    process = plant.start()
    expected = plant.publish(200)
    wait_until(lambda: sum(plant.notes("done").values()) > 20, "work")
    process.signal(signal.SIGTERM)
    assert process.process.wait(20) == 0
    assert plant.notes("started") == plant.notes("done")
    assert plant.redis.exists(f"{plant.prefix}reserved", f"{plant.prefix}deadlines") == 0
    assert plant.publisher.depth(BULK) == 200 - sum(plant.notes("done").values())
    plant.task_seconds(0)
    plant.start()
    plant.wait_done(expected)
    assert set(plant.notes("done").values()) == {1}


def test_a_slot_is_filled_as_soon_as_it_is_free(plant: Plant) -> None:
    """Also while the connection of the other lane blocks, and with one lane at its limit."""
    plant.task_seconds(0.05)
    plant.start(slots=4)
    began = time.monotonic()
    plant.wait_done(plant.publish(60))
    assert time.monotonic() - began < 60 / 3 * 0.05 + 1.5


def test_interactive_work_does_not_wait_behind_a_backlog(plant: Plant) -> None:
    plant.task_seconds(0.3)
    plant.start(slots=4)
    plant.publish(200)
    wait_until(lambda: len(plant.notes("started")) > 5, "the backlog to be at work")
    began = time.monotonic()
    plant.wait_done(plant.publish(1, INTERACTIVE, "soon"))
    assert time.monotonic() - began < 0.3 + 0.5


def message_bytes(body: str, headers: Any, content_type: str = "application/json") -> bytes:
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": {"body_encoding": "base64"},
        }
    ).encode()


OURS = {"task": TASK_NAME, "id": "1"}
GARBAGE = {
    "raw pickle": b"\x80\x04K\x01.",
    "pickled body": message_bytes("\x80\x04K\x01.", OURS, "application/x-python-serialize"),
    "unknown task": message_bytes("[[], {}, {}]", {"task": "os.system", "id": "2"}),
    "no task": message_bytes("{}", {}),
    "no id": message_bytes("[[], {}, {}]", {"task": TASK_NAME}),
    "empty body": message_bytes("", OURS),
    "not JSON": message_bytes("{", OURS),
    "headers of a wrong type": message_bytes("{}", [1]),
    "body of a wrong shape": message_bytes("[1]", OURS),
    "arguments of a wrong type": message_bytes("[null, 5, null]", OURS),
    "unknown compression": message_bytes("{}", {**OURS, "compression": "rot13"}),
    "unknown expiry": message_bytes("[[], {}, {}]", {**OURS, "expires": "tomorrow", "eta": 5}),
}


def test_garbage_keeps_no_slot_and_ends_no_worker(plant: Plant) -> None:
    process = plant.start(slots=2)
    expected: set[str] = set()
    for number, body in enumerate(GARBAGE.values()):
        plant.redis.lpush(plant.prefix + BULK, body, body)  # more than there are slots
        expected |= plant.publish(1, BULK, f"good-{number}")
    plant.wait_done(expected)
    wait_until(lambda: plant.redis.hlen(f"{plant.prefix}reserved") == 0, "nothing to be held")
    assert process.running()
    assert 2 * len(GARBAGE) >= plant.redis.llen(f"{plant.prefix}garbage") >= 8


def test_redis_goes_away_and_comes_back(plant: Plant) -> None:
    process = plant.start()
    plant.redis.execute_command("CLIENT", "PAUSE", 1000, "ALL")
    expected = plant.publish(3)
    plant.redis.script_flush()
    cut(plant)
    plant.wait_done(expected)
    assert process.running()


def commands(client: Any) -> int:
    """What clients sent; INFO also counts what scripts do."""
    stats = client.info("commandstats")
    names = ("evalsha", "eval", "blmove", "ping", "brpop", "multi")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)


def test_an_idle_worker_is_quiet_and_wakes_at_once(plant: Plant) -> None:
    plant.start(lease_seconds=60)
    plant.wait_done(plant.publish(1, job="first"))
    wait_until(lambda: blocked(plant) == 2, "the worker to block on both lanes")
    before, began = commands(plant.redis), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 3, "a while", 10)
    assert (commands(plant.redis) - before) / 3 < 3
    latencies = []
    for number in range(10):
        wait_until(lambda: blocked(plant) == 2, "the worker to block again")
        start = time.perf_counter()
        [task] = plant.publish(1, INTERACTIVE, f"next-{number}")
        while not plant.redis.lpos("work:done", task) and time.perf_counter() - start < 5:
            pass
        latencies.append(time.perf_counter() - start)
    assert sorted(latencies)[5] < 0.1
