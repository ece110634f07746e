"""Who is known to live: workers and exporters, by what they say of themselves."""

from __future__ import annotations

import threading
from importlib.metadata import version

import pytest

from classifleet.ledger import WorkerInfo, calls
from classifleet.worker import roster as module
from classifleet.worker.instruments import WORKERS
from classifleet.worker.overview import Overview, workers_of
from classifleet.worker.roster import Roster
from tests.fixtures_ledger import Bench
from tests.support import wait_until

WORKER = WorkerInfo("w1", ("default", "gpu"), ("imagenet@1",), "1.0")


def living(bench: Bench) -> list[str]:
    return [worker.owner for worker in bench.run(bench.ledger.workers())]


def test_who_says_so_lives(bench: Bench) -> None:
    assert living(bench) == []
    for _ in range(2):
        bench.run(bench.ledger.enlist(WORKER))
    bench.run(bench.ledger.enlist(WorkerInfo("e1", (), (), "1.0")))
    exporter, worker = bench.run(bench.ledger.workers())
    assert (exporter.owner, exporter.pools) == ("e1", ())
    assert 0 <= worker.silent_seconds < 5
    assert (worker.pools, worker.models, worker.version) == (WORKER.pools, WORKER.models, "1.0")
    bench.run(bench.ledger.strike_off("w1"))
    assert living(bench) == ["e1"]


def test_who_is_silent_for_too_long_does_not(bench: Bench) -> None:
    bench.run(bench.ledger.enlist(WORKER))
    bench.redis.zincrby(bench.keys.shared("workers"), -calls.SILENT_MS - 1, "w1")
    assert living(bench) == []
    bench.run(bench.ledger.enlist(WorkerInfo("e1", (), (), "1.0")))
    assert bench.redis.hkeys(bench.keys.shared("about")) == [b"e1"]


def test_a_process_is_enlisted_until_it_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
    roster = Roster(bench.ledger, bench.runner)
    roster.start("w1", pools=("default",), models=lambda: ("m@1",))
    wait_until(lambda: living(bench) == ["w1"], "the process to be enlisted")
    bench.redis.delete(bench.keys.shared("workers"), bench.keys.shared("about"))
    wait_until(lambda: living(bench) == ["w1"], "the process to be enlisted again")
    [worker] = bench.run(bench.ledger.workers())
    assert worker.version == version("classifleet")
    roster.close()
    wait_until(lambda: living(bench) == [], "the process to be struck off")


def test_workers_by_pool() -> None:
    queues = ["classify.default.bulk", "classify.default.interactive", "classify.my.pool.bulk"]
    exporter = WorkerInfo("e1", (), (), "1.0")
    assert workers_of(queues, [WORKER, WORKER, exporter]) == {"default": 2, "my.pool": 0}


def test_the_exporter_shows_them(bench: Bench) -> None:
    bench.run(bench.ledger.enlist(WORKER))
    WORKERS.clear()
    Overview(bench.ledger, bench.runner, threading.Event(), ["classify.gpu.bulk", "classify.cpu.bulk"]).look()
    [gauge] = WORKERS.collect()
    assert {sample.labels["pool"]: sample.value for sample in gauge.samples} == {"gpu": 1.0, "cpu": 0.0}
    WORKERS.clear()
