"""Chunks whose models are not ready here: left to another worker, waited for, looked for, and in the end answered."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import Item, Payload
from classifleet.config.celery_app import Publisher
from classifleet.ledger import WorkerInfo
from classifleet.worker import elsewhere, loading
from classifleet.worker import shelf as shelf_module
from classifleet.worker.device import Device
from classifleet.worker.elsewhere import Elsewhere
from classifleet.worker.lending import Lender
from classifleet.worker.probes import Vitals, live
from classifleet.worker.reconciler.context import Context
from classifleet.worker.reconciler.parked import ParkedChunks
from classifleet.worker.shelf import Shelf
from classifleet.worker.shelved import NoRoom
from classifleet.worker.sink import Sinks
from classifleet.worker.waiting import WaitingRoom
from tests.conftest import SettingsFactory
from tests.fixtures_ledger import QUEUE, Bench, head
from tests.support import wait_until
from tests.support.flavours import add_flavour
from tests.support.shelves import Open, held, says
from tests.support.workshop import OWNER, Workshop, open_workshop


@pytest.fixture
def workshop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    monkeypatch.setattr(elsewhere, "FRESH_SECONDS", 0)
    with open_workshop(bench) as workshop:
        yield workshop


def lender(bench: Bench, shelf: Shelf, owner: str = OWNER) -> Lender:
    return Lender(shelf, Elsewhere(bench.ledger, bench.runner, owner), WaitingRoom(9), owner)


def put(bench: Bench, job: str, model: str) -> None:
    payload = Payload(job=job, chunk="0", items=[Item(id="i", ref="data:,x")], models=[model])
    bench.put(job, "0", images=1, payload=payload.encode(), header=head(models=f'["{model}"]', options="{}"))


def enlist(bench: Bench, owner: str, shelf: Shelf) -> None:
    info = WorkerInfo(owner, ("default",), tuple(shelf.ready), "1.0", loadable=shelf.loadable())
    bench.run(bench.ledger.enlist(info))


def test_a_chunk_that_two_workers_can_do_is_not_left_parked(
    bench: Bench, settings: SettingsFactory, open_shelf: Open, workshop: Workshop
) -> None:
    """Its job began where there is no version of the model at all, so that it is pinned to none."""
    given, publisher = settings(), Publisher(settings())
    put(bench, "j", "a")
    for owner in ("w2", "w3"):
        enlist(bench, owner, open_shelf())
    workshop.lender = lender(bench, open_shelf(models=["b"]))  # type: ignore[assignment]
    workshop.build(given)
    workshop.run("0")
    assert (bench.members("parked"), workshop.pipeline.begun) == (["j/0"], 0)
    for owner in ("w2", "w3"):
        there = lender(bench, open_shelf(), owner)
        shared: Any = (bench.ledger, bench.runner, publisher, Sinks(given), given, owner, True, there.others_have)
        ParkedChunks(Context(*shared)).round()
        assert bench.members("queued") == ["j/0"]
    publisher.close()
    bench.redis.delete(*[k for k in bench.redis.keys("*") if not k.startswith(bench.keys.prefix.encode())] or ["-"])


def test_an_unknown_version_is_looked_for_once_and_the_leases_are_kept(
    bench: Bench,
    settings: SettingsFactory,
    open_shelf: Open,
    workshop: Workshop,
    shelf_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = open_shelf()
    real, go, looks = shelf_module.open_repository, threading.Event(), []

    def slow(*arguments: Any) -> Any:
        looks.append(arguments)
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(shelf_module, "open_repository", slow)
    workshop.lender = lender(bench, shelf)  # type: ignore[assignment]
    leases = workshop.build(settings(lease_seconds=1))._leases
    leases.start()
    for job in ("j", "k"):
        put(bench, job, "a@2")
    add_flavour(shelf_folder, "a", 2)
    message = {"v": 1, "chunk": "0"}
    running = [workshop.pool.submit(workshop.chunks.run, message | {"job": job}, QUEUE) for job in ("j", "k")]
    wait_until(lambda: len(looks) == 1 and len(leases._held) == 2, "both chunks to look")
    end = bench.run(bench.ledger.now()) + 1500
    wait_until(lambda: bench.run(bench.ledger.now()) > end, "longer than a lease")
    bench.run(bench.ledger.expire_leases(QUEUE, limit=10))
    assert bench.members("leased") == ["j/0", "k/0"]
    assert [bench.run(bench.ledger.chunk(job, "0"))["deaths"] for job in ("j", "k")] == ["0", "0"]
    go.set()
    for future in running:
        future.result(20)
    leases.close()
    assert (len(looks), workshop.pipeline.begun, leases._held) == (1, 2, set())
    assert "a@2" in shelf.ready


def broken(*_: Any) -> Any:
    raise RuntimeError("cannot stand this device")


def test_a_chunk_whose_model_fails_here_is_left_to_who_has_it(
    bench: Bench, settings: SettingsFactory, open_shelf: Open, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlist(bench, "w2", open_shelf(lazy_models=["b"]))  # it has not loaded it yet either
    workshop.lender = lender(bench, open_shelf(lazy_models=["b"]))  # type: ignore[assignment]
    monkeypatch.setattr(loading, "load_tuned", broken)
    workshop.build(settings())
    put(bench, "j", "b@1")
    workshop.run("0")
    assert (bench.members("parked"), workshop.pipeline.begun) == (["j/0"], 0)
    bench.run(bench.ledger.unpark(QUEUE, [("j", "0")]))
    bench.run(bench.ledger.strike_off("w2"))
    workshop.run("0")
    assert (bench.members("queued"), workshop.pipeline.begun) == ([], 1), "nobody else has it"


def test_a_chunk_without_room_for_its_model_is_handed_back_a_few_times(
    bench: Bench, settings: SettingsFactory, open_shelf: Open, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(lazy_models=["b"])

    def full(*_: Any) -> None:
        raise NoRoom("others are in use")

    monkeypatch.setattr(shelf, "_make_room", full)
    workshop.lender = lender(bench, shelf)  # type: ignore[assignment]
    workshop.build(settings())
    put(bench, "j", "b@1")
    for _ in range(4):
        workshop.run("0")
        assert (bench.members("queued"), workshop.pipeline.begun) == (["j/0"], 0)
    workshop.run("0")
    assert (bench.members("queued"), workshop.pipeline.begun) == ([], 1)


def test_who_waits_for_a_model_keeps_no_suspect_from_its_turn(
    bench: Bench, settings: SettingsFactory, open_shelf: Open, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(lazy_models=["b"])
    go = held(monkeypatch)
    workshop.lender = lender(bench, shelf)  # type: ignore[assignment]
    workshop.build(settings(chunk_timeout_seconds=20))
    put(bench, "j", "b@1")
    waiting = workshop.start("0")
    wait_until(lambda: shelf.progress()["b@1"] == "loading", "the load to begin")
    put(bench, "suspect", "a@1")
    bench.redis.hset(bench.keys.chunk("suspect", "0"), "deaths", 2)
    suspect = workshop.pool.submit(workshop.chunks.run, {"v": 1, "job": "suspect", "chunk": "0"}, QUEUE)
    suspect.result(10)
    assert (workshop.pipeline.begun, waiting.done()) == (1, False)
    go.set()
    waiting.result(10)
    assert workshop.pipeline.begun == 2


def test_what_was_loaded_for_a_chunk_stays_until_it_has_ended(
    bench: Bench, settings: SettingsFactory, open_shelf: Open, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it waits at the gate; and another model, for which there is no room, is waited for meanwhile."""
    measured = itertools.count(step=2 << 20)
    monkeypatch.setattr(loading, "_used", lambda _: next(measured))
    shelf = open_shelf(lazy_models=["*"], models_memory_bytes=3 << 20)
    for key in ("a@1", "b@1"):  # so that it is known what they take
        says(shelf, key)
    workshop.lender = lender(bench, shelf)  # type: ignore[assignment]
    workshop.build(settings(chunk_timeout_seconds=20))
    put(bench, "j", "a@1")
    with workshop.chunks._gate.alone(20):
        at_gate = workshop.start("0")
        wait_until(lambda: workshop.chunks._gate._waiting["bulk"] == 1, "the chunk to be at the gate")
        with shelf.lent(["b@1"]):
            wait_until(lambda: shelf._returned._waiters, "b@1 to wait for the room that a@1 takes")
            assert shelf.progress() == {"a@1": "ready", "b@1": "waiting"}
    at_gate.result(20)
    wait_until(lambda: shelf.progress() == {"a@1": "lazy", "b@1": "ready"}, "its turn")
    assert (bench.members("queued"), workshop.pipeline.begun) == ([], 1)


def test_a_model_that_hangs_while_it_warms_is_seen() -> None:
    device, go = Device(), threading.Event()
    device.start()
    assert device.busy_seconds() == 0
    thread = threading.Thread(target=device.call, args=(go.wait,))
    thread.start()

    def well() -> bool:
        return live(Vitals(forward_seconds=device.busy_seconds()), stuck_seconds=0.05, chunk_seconds=9).ok

    wait_until(lambda: not well(), "it to be seen")
    go.set()
    thread.join()
    wait_until(well, "it to be well again")
    device.close()
