"""Workers with different models: who has what, and to whom a chunk is left."""

from __future__ import annotations

from typing import Any

import pytest

from classifleet.config.celery_app import Publisher
from classifleet.config.payload import make_payload
from classifleet.ledger import WorkerInfo
from classifleet.worker import elsewhere as module
from classifleet.worker.elsewhere import Elsewhere, able
from classifleet.worker.reconciler.context import Context
from classifleet.worker.reconciler.parked import ParkedChunks, pinned
from classifleet.worker.sink import Sinks
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import QUEUE, Bench, head

OLD = WorkerInfo("w1", ("default",), ("a@1", "b@1"), "1.0")
NEW = WorkerInfo("w2", ("default", "gpu"), ("a@2",), "1.0", loadable=("a", "a@2", "a@4", "d", "d@1", "e@1"))


@pytest.mark.parametrize(
    ("models", "queue", "there"),
    [
        (["a@1"], "classify.default.bulk", True),
        (["a@1", "b@1"], "classify.default.interactive", True),
        (["a@2", "b@1"], "classify.default.bulk", False),  # no worker has both
        (["a@1"], "classify.gpu.bulk", False),
        (["a@2"], "classify.gpu.bulk", True),
        (["a@3"], "classify.default.bulk", False),
        (["b"], "classify.default.bulk", True),
        (["c"], "classify.default.bulk", False),
        (["a@4", "d"], "classify.gpu.bulk", True),  # it can load them
        (["e@1"], "classify.gpu.bulk", True),
        (["e"], "classify.gpu.bulk", False),  # it can load a version, and would pin no job to it
    ],
)
def test_who_can_do_it(models: list[str], queue: str, there: bool) -> None:
    assert able([OLD, NEW], models, queue) is there


def test_a_worker_does_not_count_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere(bench.ledger, bench.runner, "w1")
    bench.run(bench.ledger.enlist(OLD))
    assert not elsewhere.has(["a@1"], QUEUE)
    bench.run(bench.ledger.enlist(NEW))
    assert not elsewhere.has(["a@2"], QUEUE), "as it was a moment ago"
    monkeypatch.setattr(module, "FRESH_SECONDS", 0)
    assert elsewhere.has(["a@2"], QUEUE)


def test_two_workers_with_different_models(
    bench: Bench, settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that the newer worker began is not done by the older one, as long as the newer one lives."""
    monkeypatch.setattr(module, "FRESH_SECONDS", 0)
    given = settings()
    publisher = Publisher(given)

    def parked(owner: str, here: set[str]) -> ParkedChunks:
        others = Elsewhere(bench.ledger, bench.runner, owner)

        def left_to_others(models: Any, queue: str) -> bool:
            return not here.issuperset(models) and others.has(models, queue)

        shared: Any = (bench.ledger, bench.runner, publisher, Sinks(given), given, owner, True, left_to_others)
        return ParkedChunks(Context(*shared))

    old, new = parked("w1", set(OLD.models)), parked("w2", set(NEW.models))
    items = [{"id": "i", "ref": "data:,x"}]
    payload = make_payload(job="j", chunk="0", items=items, models=["a"]).encode()
    bench.put("j", "0", images=1, payload=payload, header=head(models='["a"]', options="{}"))
    for worker in (OLD, NEW):
        bench.run(bench.ledger.enlist(worker))
    assert bench.begin("j", "0", "w2", latest={"a": "2"}).models == ("a@2",)
    bench.run(bench.ledger.hand_back("w2", [("j", "0", 1)]))
    assert bench.begin("j", "0", "w1", latest={"a": "1"}).models == ("a@2",), "one job, one version"
    assert pinned(bench.job("j")) == ["a@2"]

    assert bench.run(bench.ledger.park("j", "0", "w1", 2))
    old.round()
    assert bench.members("parked") == ["j/0"]
    new.round()
    assert bench.members("queued") == ["j/0"]
    assert bench.begin("j", "0", "w1", latest={}).attempt == 3
    assert bench.run(bench.ledger.park("j", "0", "w1", 3))
    bench.run(bench.ledger.strike_off("w2"))
    old.round()
    assert bench.members("queued") == ["j/0"], "now nobody has it, and somebody has to say so"
    publisher.close()
    bench.redis.delete(*[k for k in bench.redis.keys("*") if not k.startswith(bench.keys.prefix.encode())] or ["-"])
