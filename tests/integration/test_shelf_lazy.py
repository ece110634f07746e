"""Models that are loaded at their first use, and those that make room for others."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from classifleet.config import ErrorCode, Item, Payload, Record
from classifleet.ledger import Begin, Lease
from classifleet.worker import loading
from classifleet.worker.lending import Lender, Loads
from classifleet.worker.shelf import Shelf
from classifleet.worker.waiting import WaitingRoom
from tests.support.flavours import add_flavour
from tests.support.shelves import Open, held, lent, says, settled
from tests.support.waiting import wait_until

MB = 1 << 20


# --- lazy models -----------------------------------------------------------------------------------------------------


def test_a_lazy_model_is_loaded_at_its_first_use_while_others_run(
    open_shelf: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(lazy_models=["b"])
    assert shelf.progress() == {"a@1": "ready", "b@1": "lazy"}
    assert shelf.offers() == {"a": "1", "b": "1"}
    go = held(monkeypatch)

    async def both() -> tuple[str, str]:
        waits = [asyncio.create_task(asyncio.to_thread(says, shelf, "b@1")) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: shelf.progress()["b@1"] == "loading", "the load to begin")
        assert shelf.offers() == {"a": "1", "b": "1"}
        other = await asyncio.to_thread(says, shelf, "a@1")
        assert not any(wait.done() for wait in waits)
        go.set()
        return other, *set(await asyncio.gather(*waits))

    assert asyncio.run(both()) == ("one", "one")
    assert shelf.progress() == {"a@1": "ready", "b@1": "ready"}


def test_jobs_wait_for_the_first_version_of_a_new_model(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf()
    go = held(monkeypatch)
    add_flavour(shelf_folder, "c", 1, says=1)
    add_flavour(shelf_folder, "a", 2, says=1)
    shelf.look()
    assert shelf.offers() == {"a": "1", "b": "1", "c": "1"}, "a has a version that can answer meanwhile"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(says, shelf, "c@1")
        wait_until(lambda: "loading" in shelf.progress().values(), "a load to begin")
        assert not answer.done()
        go.set()
        assert answer.result() == "two"
    settled(shelf, a1="ready", a2="ready", b1="ready", c1="ready")
    assert shelf.offers() == {"a": "2", "b": "1", "c": "1"}


def test_a_load_gives_way_to_batches(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of warming, whatever waits is run."""
    shelf = open_shelf(lazy_models=["b"])
    order: list[str] = []
    real = loading._steps

    def steps(*arguments: Any) -> Any:
        for number, step in enumerate(real(*arguments)):
            order.append(f"step {number}")
            if number == 1:
                assert says(shelf, "a@1") == "one"
                order.append("a ran")
            yield step

    monkeypatch.setattr(loading, "_steps", steps)
    says(shelf, "b@1")
    assert order[:4] == ["step 0", "step 1", "a ran", "step 2"]
    assert len(order) > 9, "three runs of each size"


def test_who_waits_for_a_model_gives_up_at_its_deadline(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = open_shelf(lazy_models=["b"])
    go = held(monkeypatch)

    async def hurried() -> None:
        async with asyncio.timeout(0.05), lent(shelf, "b@1"):
            raise AssertionError("it is not there yet")

    with pytest.raises(TimeoutError):
        asyncio.run(hurried())
    go.set()
    settled(shelf, a1="ready", b1="ready")
    assert not shelf._entries["b@1"].lent
    assert says(shelf, "b@1") == "one"


def test_a_chunk_waits_for_its_model_in_the_waiting_room_within_its_deadline(
    open_shelf: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, room = open_shelf(lazy_models=["b"]), WaitingRoom(9)
    go = held(monkeypatch)
    elsewhere: Any = None
    lender = Lender(shelf, elsewhere, room, "w1")
    payload = Payload(job="j", chunk="0", items=[Item(id="i", ref="data:,x")], models=["b"])
    lease = Lease(Begin.RUN, "j", "0", models=("b@1",))

    async def chunks(loads: Loads) -> tuple[int | None, list[Record]]:
        patient = asyncio.create_task(lender.bring(payload, replace(lease, left_ms=60_000), "bulk", loads))
        _, late = await lender.bring(payload, replace(lease, left_ms=50), "bulk", loads)
        assert room.count("bulk") == 1, "it keeps nobody from a place at work"
        go.set()
        left, records = await patient
        assert records == []
        assert (await lender.bring(payload, lease, "bulk", loads))[0].left_ms is None
        return left.left_ms, late

    with lender.lent(["b@1"]) as loads:
        left_ms, [record] = asyncio.run(chunks(loads))
    assert record["error"]["code"] == "deadline_exceeded"
    assert left_ms is not None
    assert 0 < left_ms < 60_000 - 49
    with lender.lent(["b@1"]) as loads:
        assert not loads
    assert (room.count("bulk"), shelf._entries["b@1"].lent) == (0, 0)


def test_a_model_that_hangs_while_others_run_is_given_up(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = open_shelf(lazy_models=["b"])
    shelf._loader._settings = shelf._settings.model_copy(update={"model_load_seconds": 0.05})  # a had more
    forever = threading.Event()
    monkeypatch.setattr(loading, "load_tuned", lambda *_: forever.wait())

    async def use() -> None:
        async with lent(shelf, "b@1"):
            assert shelf.why_not("b@1").code is ErrorCode.MODEL_FAILED

    asyncio.run(use())
    forever.set()
    assert "not loaded within 0.05 s" in shelf.problems()["b@1"]


# --- memory ----------------------------------------------------------------------------------------------------------


def each_takes(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    """Models that are loaded from now on take so much, as it is measured; their files are far smaller."""
    measured = itertools.count(step=size_bytes)  # once before, and once after
    monkeypatch.setattr(loading, "_used", lambda _: next(measured))


def taken(shelf: Shelf) -> int:
    """What is taken by all models, in bytes."""
    return sum(entry.size_bytes for entry in shelf._entries.values() if entry.state == "ready")


def kept_up(shelf: Shelf) -> None:
    """Wait until all that the keeper was told has been done."""
    done = threading.Event()
    shelf._work.put(done.set)
    assert done.wait(10)


def test_the_least_recently_used_lazy_model_makes_room(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_flavour(shelf_folder, "c", 1)
    each_takes(monkeypatch, MB)
    shelf = open_shelf(lazy_models=["b", "c"], models_memory_bytes=3 * MB)
    for key in ("b@1", "c@1", "b@1"):
        says(shelf, key)
    assert taken(shelf) == 3 * MB
    add_flavour(shelf_folder, "d", 1, kilobytes=1)
    shelf.look()
    settled(shelf, a1="ready", b1="ready", c1="lazy", d1="ready")
    assert taken(shelf) == 3 * MB
    assert shelf.offers()["c"] == "1", "it comes back when it is asked for"


def test_what_a_model_takes_beyond_its_file_makes_room_when_it_is_known(
    open_shelf: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_takes(monkeypatch, 2 * MB)
    shelf = open_shelf(lazy_models=["b"], models_memory_bytes=3 * MB)
    assert says(shelf, "b@1") == "one"
    settled(shelf, a1="lazy", b1="ready")
    go = held(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(says, shelf, "a@1")
        wait_until(lambda: shelf.progress()["a@1"] == "loading", "the load to begin")
        states = shelf.progress()
        go.set()
        assert answer.result() == "one"
    assert states["b@1"] == "lazy", "this time it was known before"
    assert taken(shelf) == 2 * MB


def test_what_is_too_much_goes_as_soon_as_it_is_unused(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    each_takes(monkeypatch, 2 * MB)
    shelf = open_shelf(lazy_models=["b"], models_memory_bytes=3 * MB)

    async def use() -> None:
        async with lent(shelf, "a@1", "b@1"):
            shelf.tidy()
            await asyncio.to_thread(kept_up, shelf)
            assert taken(shelf) == 4 * MB

    asyncio.run(use())
    shelf.tidy()
    kept_up(shelf)
    assert taken(shelf) == 2 * MB


def test_models_that_are_too_many_at_the_start_are_said_and_lazy(
    open_shelf: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_takes(monkeypatch, 2 * MB)
    with structlog.testing.capture_logs() as lines:
        shelf = open_shelf(models_memory_bytes=3 * MB)
    assert shelf.progress() == {"a@1": "lazy", "b@1": "ready"}
    [said] = [line for line in lines if line["log_level"] == "warning"]
    assert (said["event"].split()[0], said["unloaded"]) == ("models_memory_bytes", ["a@1"])
    assert shelf.offers() == {"a": "1", "b": "1"}
    assert says(shelf, "a@1") == "one"


def test_a_model_that_nobody_waits_for_comes_back_if_none_has_to_go_for_that(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_flavour(shelf_folder, "a", 2)
    each_takes(monkeypatch, MB)
    shelf = open_shelf(lazy_models=["*"], shadow={"a": {"2": 100}}, models_memory_bytes=2 * MB)
    settled(shelf, a1="lazy", a2="ready", b1="lazy")

    async def use() -> None:
        async with lent(shelf, "a@1", "b@1"):
            settled(shelf, a1="ready", a2="lazy", b1="ready")

    asyncio.run(use())
    shelf.wish("a@2")
    kept_up(shelf)
    settled(shelf, a1="ready", a2="lazy", b1="ready")
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 3 * MB})
    shelf.wish("a@2")
    settled(shelf, a1="ready", a2="ready", b1="ready")
    used = shelf._entries["a@2"].used_at
    shelf.wish("a@2")
    assert shelf._entries["a@2"].used_at > used


def test_a_model_in_use_is_never_evicted(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(models=["a"])
    shelf._entries["a@1"].size_bytes = 1_000_000
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 1_000_000, "models": ["a", "b"]})

    async def use() -> None:
        async with lent(shelf, "a@1"):
            shelf.look()
            await asyncio.to_thread(time.sleep, 0.05)
            assert shelf.progress() == {"a@1": "ready", "b@1": "waiting"}

    asyncio.run(use())
    settled(shelf, a1="lazy", b1="ready")
    monkeypatch.setattr("classifleet.worker.shelf.ROOM_SECONDS", 0.05)

    async def use_both() -> ErrorCode:
        async with lent(shelf, "b@1"):
            shelf._entries["b@1"].size_bytes = 1_000_000
            async with lent(shelf, "a@1"):
                return shelf.why_not("a@1").code

    assert asyncio.run(use_both()) is ErrorCode.MODEL_FAILED
    settled(shelf, a1="lazy", b1="ready")
    monkeypatch.undo()
    assert says(shelf, "a@1") == "one", "later there is room"


def test_a_job_of_two_models_gets_both_if_their_files_fit(open_shelf: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they took the last time they do not: but that was measured beside others, and is inexact."""
    monkeypatch.setattr("classifleet.worker.shelf.ROOM_SECONDS", 0.05)
    shelf = open_shelf(lazy_models=["b"], models_memory_bytes=3 * MB)
    for key in ("a@1", "b@1"):
        shelf._entries[key].size_bytes = 2 * MB

    async def use_both() -> dict[str, str]:
        async with lent(shelf, "a@1"), lent(shelf, "b@1"):
            return shelf.progress()

    assert asyncio.run(use_both()) == {"a@1": "ready", "b@1": "ready"}
