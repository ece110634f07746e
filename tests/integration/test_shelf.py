"""The models of a worker, with real ones on a real device thread: they come, go, fail, and make room."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifleet.config import ErrorCode, Item, ModelError, Payload, Record, Settings
from classifleet.ledger import Begin, Lease
from classifleet.worker import loading
from classifleet.worker.device import Device
from classifleet.worker.instruments import MODEL_BYTES, MODEL_EVICTIONS, MODEL_INFO, MODEL_LOAD_FAILURES, MODELS
from classifleet.worker.lending import Lender
from classifleet.worker.shelf import Shelf
from classifleet.worker.waiting import WaitingRoom
from tests.support.flavours import EDGE, LABELS, add_flavour
from tests.support.waiting import wait_until

Open = Callable[..., Shelf]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a@1 and b@1."""
    for name in ("a", "b"):
        add_flavour(tmp_path / "models", name, 1)
    return tmp_path / "models"


@pytest.fixture
def device() -> Iterator[Device]:
    running = Device()
    running.start()
    yield running
    running.close()


@pytest.fixture
def open_shelf(folder: Path, device: Device) -> Iterator[Open]:
    """open_shelf(**settings) -> a filled shelf."""
    shelves: list[Shelf] = []

    def make(*, linger_seconds: float = 600, **settings: Any) -> Shelf:
        given = {"model_repository": str(folder), "tune_seconds": 0, "device": "cpu", **settings}
        shelf = Shelf(Settings.load(**given), device, linger_seconds=linger_seconds)
        shelves.append(shelf)
        shelf.fill()
        return shelf

    yield make
    for shelf in shelves:
        shelf.close()
    for metric in (MODELS, MODEL_INFO, MODEL_BYTES, MODEL_EVICTIONS, MODEL_LOAD_FAILURES):
        metric.clear()


def says(shelf: Shelf, device: Device, key: str) -> str:
    """What a model answers, loaded if need be."""

    async def ask() -> str:
        async with shelf.lent([key]):
            got = await device.infer(key, np.zeros((EDGE, EDGE, 3), np.uint8), "bulk")
            return LABELS[int(got.scores.argmax())]

    return asyncio.run(ask())


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Loads that begin from now on wait for it."""
    go = threading.Event()
    real = loading.load_tuned

    def slow(*arguments: Any) -> Any:
        assert go.wait(10)
        return real(*arguments)

    monkeypatch.setattr(loading, "load_tuned", slow)
    return go


def settled(shelf: Shelf, **states: str) -> None:
    """Wait until these models (`a1`) are in these states, and no other is there."""
    wanted = {f"{name[:-1]}@{name[-1]}": state for name, state in states.items()}
    wait_until(lambda: shelf.progress() == wanted, f"{wanted}, not {shelf.progress()}")


def test_versions_are_side_by_side(open_shelf: Open, folder: Path, device: Device) -> None:
    add_flavour(folder, "a", 2, says=1)
    shelf = open_shelf(models=["a@1", "a@2"])
    assert [says(shelf, device, key) for key in ("a@1", "a@2")] == ["one", "two"]
    assert shelf.offers() == {"a": "2"}


def test_a_new_version_is_loaded_and_is_the_latest_when_it_is_ready(
    open_shelf: Open, folder: Path, device: Device
) -> None:
    shelf = open_shelf(linger_seconds=0)
    seen: list[Any] = []
    shelf.changed = lambda: seen.append((shelf.offers()["a"], "a@2" in shelf.ready))
    add_flavour(folder, "a", 2, says=1)
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")
    assert seen == [("1", False), ("2", True)]
    assert says(shelf, device, "a@2") == "two"
    shelf.tidy()
    settled(shelf, a2="ready", b1="ready")
    assert says(shelf, device, "a@1") == "one", "a job that is pinned to it goes on"


def test_a_version_in_use_stays(open_shelf: Open, folder: Path) -> None:
    shelf = open_shelf(linger_seconds=0)

    async def use() -> None:
        async with shelf.lent(["a@1"]):
            add_flavour(folder, "a", 2)
            shutil.rmtree(folder / "a" / "1")
            shelf.look()
            await asyncio.to_thread(settled, shelf, a1="ready", a2="ready", b1="ready")
            shelf.tidy()
            await asyncio.to_thread(says, shelf, shelf._loader._device, "b@1")
            assert "a@1" in shelf.ready

    asyncio.run(use())
    shelf.tidy()
    settled(shelf, a2="ready", b1="ready")
    assert shelf.lacks(["a@1"]) == ["a@1"]


def test_taking_a_version_out_is_a_way_back(open_shelf: Open, folder: Path, device: Device) -> None:
    add_flavour(folder, "a", 2, says=1)
    shelf = open_shelf(linger_seconds=0)
    assert shelf.offers()["a"] == "2"
    shutil.rmtree(folder / "a" / "2")
    shelf.look()
    wait_until(lambda: shelf.offers()["a"] == "1", "the version before")
    shelf.tidy()
    settled(shelf, a1="ready", b1="ready")
    assert says(shelf, device, "a@1") == "one"


def test_a_half_written_version_is_not_loaded_until_it_is_whole(
    open_shelf: Open, folder: Path, device: Device, tmp_path: Path
) -> None:
    add_flavour(tmp_path / "away", "a", 2, says=1)
    shelf = open_shelf(linger_seconds=0)
    source, target = tmp_path / "away" / "a" / "2", folder / "a" / "2"
    target.mkdir()
    shelf.look()
    assert "a@2" not in shelf.progress(), "an empty folder is nothing"
    shutil.copy(source / "model.json", target)
    shelf.look()
    settled(shelf, a1="ready", a2="failed", b1="ready")
    (target / "model.pt").write_bytes((source / "model.pt").read_bytes()[:-100])
    shelf.look()
    wait_until(lambda: "sha256" in shelf.problems().get("a@2", ""), "the half to be tried")
    shelf.tidy()
    assert shelf.offers()["a"] == "1", "what works stays until its successor does"
    assert says(shelf, device, "a@1") == "one"
    shutil.copy(source / "model.pt", target)
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")
    assert (shelf.problems(), says(shelf, device, "a@2")) == ({}, "two")


def test_what_failed_is_tried_again_when_it_changed_or_when_somebody_says_so(
    open_shelf: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf()
    tries: list[str] = []

    def broken(repository: Any, key: str, *_: Any) -> Any:
        tries.append(key)
        raise RuntimeError("cannot stand\nthis device")

    real = loading.load_tuned
    monkeypatch.setattr(loading, "load_tuned", broken)
    add_flavour(folder, "a", 2)
    shelf.look()
    settled(shelf, a1="ready", a2="failed", b1="ready")
    assert shelf.problems() == {"a@2": "RuntimeError: cannot stand"}
    assert shelf.why_not("a@2").code is ErrorCode.MODEL_FAILED
    assert shelf.lacks(["a@2", "a@1", "c"]) == ["a@2", "c"]
    shelf.look()
    shelf.look(again=True)
    wait_until(lambda: len(tries) == 2, "another try")
    settled(shelf, a1="ready", a2="failed", b1="ready")
    monkeypatch.setattr(loading, "load_tuned", real)
    (folder / "a" / "2" / "model.json").touch()
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")


def test_what_others_may_leave_to_this_worker(open_shelf: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("a", 2), ("c", 1)):
        add_flavour(folder, name, version)
    shelf = open_shelf(models=["a", "b"], lazy_models=["b"])
    assert shelf.loadable() == ("a", "a@1", "a@2", "b", "b@1")
    monkeypatch.setattr(loading, "load_tuned", lambda *_: 1 / 0)

    async def use() -> None:
        async with shelf.lent(["b@1"]):
            assert shelf.loadable() == ("a", "a@1", "a@2")

    asyncio.run(use())
    names = ["a", "a@1", "b", "b@1", "c", "c@1"]
    assert [name for name in names if name not in shelf.loadable()] == shelf.lacks(names)


def test_a_model_larger_than_all_memory_is_not_waited_for(open_shelf: Open) -> None:
    shelf = open_shelf(lazy_models=["b"])
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 1})

    async def use() -> str:
        async with shelf.lent(["b@1"]):
            return shelf.why_not("b@1").args[-1]

    assert "larger than models_memory_bytes" in asyncio.run(use())
    assert shelf.progress()["b@1"] == "failed"


def test_an_empty_repository_is_one_that_is_away(open_shelf: Open, folder: Path) -> None:
    shelf = open_shelf(linger_seconds=0)
    folder.rename(folder.with_name("away"))
    shelf.look()
    shelf.tidy()
    assert shelf.progress() == {"a@1": "ready", "b@1": "ready"}
    assert shelf.offers() == {"a": "1", "b": "1"}


def test_at_the_start_every_model_that_is_named_must_load(open_shelf: Open, folder: Path) -> None:
    with pytest.raises(ModelError, match="has no model c; it has a@1, b@1"):
        open_shelf(models=["a", "c"])
    (folder / "b" / "1" / "model.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="sha256"):
        open_shelf()


# --- lazy models -----------------------------------------------------------------------------------------------------


def test_a_lazy_model_is_loaded_at_its_first_use_while_others_run(
    open_shelf: Open, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(lazy_models=["b"])
    assert shelf.progress() == {"a@1": "ready", "b@1": "lazy"}
    assert shelf.offers() == {"a": "1", "b": "1"}
    go = held(monkeypatch)

    async def both() -> tuple[str, str]:
        waits = [asyncio.create_task(asyncio.to_thread(says, shelf, device, "b@1")) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: shelf.progress()["b@1"] == "loading", "the load to begin")
        assert shelf.offers() == {"a": "1", "b": "1"}
        other = await asyncio.to_thread(says, shelf, device, "a@1")
        assert not any(wait.done() for wait in waits)
        go.set()
        return other, *set(await asyncio.gather(*waits))

    assert asyncio.run(both()) == ("one", "one")
    assert shelf.progress() == {"a@1": "ready", "b@1": "ready"}


def test_jobs_wait_for_the_first_version_of_a_new_model(
    open_shelf: Open, folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf()
    go = held(monkeypatch)
    add_flavour(folder, "c", 1, says=1)
    add_flavour(folder, "a", 2, says=1)
    shelf.look()
    assert shelf.offers() == {"a": "1", "b": "1", "c": "1"}, "a has a version that can answer meanwhile"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(says, shelf, device, "c@1")
        wait_until(lambda: "loading" in shelf.progress().values(), "a load to begin")
        assert not answer.done()
        go.set()
        assert answer.result() == "two"
    settled(shelf, a1="ready", a2="ready", b1="ready", c1="ready")
    assert shelf.offers() == {"a": "2", "b": "1", "c": "1"}


def test_a_load_gives_way_to_batches(open_shelf: Open, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of warming, whatever waits is run."""
    shelf = open_shelf(lazy_models=["b"])
    order: list[str] = []
    real = loading._steps

    def steps(*arguments: Any) -> Any:
        for number, step in enumerate(real(*arguments)):
            order.append(f"step {number}")
            if number == 1:
                assert says(shelf, device, "a@1") == "one"
                order.append("a ran")
            yield step

    monkeypatch.setattr(loading, "_steps", steps)
    says(shelf, device, "b@1")
    assert order[:4] == ["step 0", "step 1", "a ran", "step 2"]
    assert len(order) > 9, "three runs of each size"


def test_who_waits_for_a_model_gives_up_at_its_deadline(
    open_shelf: Open, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(lazy_models=["b"])
    go = threading.Event()
    real = loading.load_tuned
    monkeypatch.setattr(loading, "load_tuned", lambda *given: real(*given) if go.wait(10) else None)

    async def hurried() -> None:
        async with asyncio.timeout(0.05), shelf.lent(["b@1"]):
            raise AssertionError("it is not there yet")

    with pytest.raises(TimeoutError):
        asyncio.run(hurried())
    go.set()
    settled(shelf, a1="ready", b1="ready")
    assert not shelf._entries["b@1"].lent
    assert says(shelf, device, "b@1") == "one"


def test_a_chunk_waits_for_its_model_in_the_waiting_room_within_its_deadline(
    open_shelf: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, room, go = open_shelf(lazy_models=["b"]), WaitingRoom(9), threading.Event()
    real = loading.load_tuned
    monkeypatch.setattr(loading, "load_tuned", lambda *given: real(*given) if go.wait(10) else None)
    elsewhere: Any = None
    lender = Lender(shelf, elsewhere, room, "w1")
    payload = Payload(job="j", chunk="0", items=[Item(id="i", ref="data:,x")], models=["b"])
    lease = Lease(Begin.RUN, "j", "0", models=("b@1",))
    got: list[int | None] = []

    async def work(lease: Lease) -> list[Record]:
        assert shelf._entries["b@1"].lent == 1
        got.append(lease.left_ms)
        return []

    async def chunks() -> list[Record]:
        patient = asyncio.create_task(lender.during(payload, replace(lease, left_ms=60_000), "bulk", work))
        late = await lender.during(payload, replace(lease, left_ms=50), "bulk", work)
        assert (room.count("bulk"), got) == (1, []), "it keeps nobody from a place at work"
        go.set()
        assert await patient == []
        assert await lender.during(payload, lease, "bulk", work) == []
        return late

    [record] = asyncio.run(chunks())
    assert record["error"]["code"] == "deadline_exceeded"
    assert got[0] is not None
    assert 0 < got[0] < 60_000 - 49
    assert (got[1:], room.count("bulk"), shelf._entries["b@1"].lent) == ([None], 0, 0)


def test_a_model_that_hangs_while_others_run_is_given_up(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = open_shelf(lazy_models=["b"], model_load_seconds=0.05)
    forever = threading.Event()
    monkeypatch.setattr(loading, "load_tuned", lambda *_: forever.wait())

    async def use() -> None:
        async with shelf.lent(["b@1"]):
            assert shelf.why_not("b@1").code is ErrorCode.MODEL_FAILED

    asyncio.run(use())
    forever.set()
    assert "not loaded within 0.05 s" in shelf.problems()["b@1"]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_lazy_model_makes_room(open_shelf: Open, folder: Path, device: Device) -> None:
    add_flavour(folder, "c", 1)
    shelf = open_shelf(lazy_models=["b", "c"])
    for key in ("b@1", "c@1", "b@1"):
        says(shelf, device, key)
    for entry in shelf._entries.values():
        entry.size_bytes = 1_000_000
    add_flavour(folder, "d", 1, kilobytes=1)
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 3_000_000})
    shelf.look()
    settled(shelf, a1="ready", b1="ready", c1="lazy", d1="ready")
    assert shelf.offers()["c"] == "1", "it comes back when it is asked for"


def test_a_model_in_use_is_never_evicted(
    open_shelf: Open, folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(models=["a"])
    shelf._entries["a@1"].size_bytes = 1_000_000
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 1_000_000, "models": ["a", "b"]})

    async def use() -> None:
        async with shelf.lent(["a@1"]):
            shelf.look()
            await asyncio.to_thread(time.sleep, 0.05)
            assert shelf.progress() == {"a@1": "ready", "b@1": "waiting"}

    asyncio.run(use())
    settled(shelf, a1="lazy", b1="ready")
    monkeypatch.setattr("classifleet.worker.shelf.ROOM_SECONDS", 0.05)

    async def use_both() -> ErrorCode:
        async with shelf.lent(["b@1"]):
            shelf._entries["b@1"].size_bytes = 1_000_000
            async with shelf.lent(["a@1"]):
                return shelf.why_not("a@1").code

    assert asyncio.run(use_both()) is ErrorCode.MODEL_FAILED
    settled(shelf, a1="lazy", b1="ready")
    monkeypatch.undo()
    assert says(shelf, device, "a@1") == "one", "later there is room"
