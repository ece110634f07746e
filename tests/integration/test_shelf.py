"""The models of a worker, with real ones on a real device thread: they come, go and fail."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from classifleet.config import ErrorCode, ModelError
from classifleet.worker import loading
from tests.support.flavours import add_flavour
from tests.support.shelves import Open, held, lent, says, settled
from tests.support.waiting import wait_until


def test_versions_are_side_by_side(open_shelf: Open, shelf_folder: Path) -> None:
    add_flavour(shelf_folder, "a", 2, says=1)
    shelf = open_shelf(models=["a@1", "a@2"])
    assert [says(shelf, key) for key in ("a@1", "a@2")] == ["one", "two"]
    assert shelf.offers() == {"a": "2"}


def test_a_new_version_is_loaded_and_is_the_latest_when_it_is_ready(open_shelf: Open, shelf_folder: Path) -> None:
    shelf = open_shelf(linger_seconds=0)
    seen: list[Any] = []
    shelf.changed = lambda: seen.append((shelf.offers()["a"], "a@2" in shelf.ready))
    add_flavour(shelf_folder, "a", 2, says=1)
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")
    assert seen == [("1", False), ("2", True)]
    assert says(shelf, "a@2") == "two"
    shelf.tidy()
    settled(shelf, a2="ready", b1="ready")
    assert says(shelf, "a@1") == "one", "a job that is pinned to it goes on"


def test_a_version_in_use_stays(open_shelf: Open, shelf_folder: Path) -> None:
    shelf = open_shelf(linger_seconds=0)

    async def use() -> None:
        async with lent(shelf, "a@1"):
            add_flavour(shelf_folder, "a", 2)
            shutil.rmtree(shelf_folder / "a" / "1")
            shelf.look()
            await asyncio.to_thread(settled, shelf, a1="ready", a2="ready", b1="ready")
            shelf.tidy()
            await asyncio.to_thread(says, shelf, "b@1")
            assert "a@1" in shelf.ready

    asyncio.run(use())
    shelf.tidy()
    settled(shelf, a2="ready", b1="ready")
    assert shelf.lacks(["a@1"]) == ["a@1"]


def test_taking_a_version_out_is_a_way_back(open_shelf: Open, shelf_folder: Path) -> None:
    add_flavour(shelf_folder, "a", 2, says=1)
    shelf = open_shelf(linger_seconds=0)
    assert shelf.offers()["a"] == "2"
    shutil.rmtree(shelf_folder / "a" / "2")
    shelf.look()
    wait_until(lambda: shelf.offers()["a"] == "1", "the version before")
    shelf.tidy()
    settled(shelf, a1="ready", b1="ready")
    assert says(shelf, "a@1") == "one"


def test_a_half_written_version_is_not_loaded_until_it_is_whole(
    open_shelf: Open, shelf_folder: Path, tmp_path: Path
) -> None:
    add_flavour(tmp_path / "away", "a", 2, says=1)
    shelf = open_shelf(linger_seconds=0)
    source, target = tmp_path / "away" / "a" / "2", shelf_folder / "a" / "2"
    target.mkdir()
    shelf.look()
    assert "a@2" not in shelf.progress(), "an empty shelf_folder is nothing"
    shutil.copy(source / "model.json", target)
    shelf.look()
    settled(shelf, a1="ready", a2="failed", b1="ready")
    (target / "model.pt").write_bytes((source / "model.pt").read_bytes()[:-100])
    shelf.look()
    wait_until(lambda: "sha256" in shelf.problems().get("a@2", ""), "the half to be tried")
    shelf.tidy()
    assert shelf.offers()["a"] == "1", "what works stays until its successor does"
    assert says(shelf, "a@1") == "one"
    shutil.copy(source / "model.pt", target)
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")
    assert (shelf.problems(), says(shelf, "a@2")) == ({}, "two")


def test_what_failed_is_tried_again_when_it_changed_or_when_somebody_says_so(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf()
    tries: list[str] = []

    def broken(repository: Any, key: str, *_: Any) -> Any:
        tries.append(key)
        raise RuntimeError("cannot stand\nthis device")

    real = loading.load_tuned
    monkeypatch.setattr(loading, "load_tuned", broken)
    add_flavour(shelf_folder, "a", 2)
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
    (shelf_folder / "a" / "2" / "model.json").touch()
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")


def test_what_others_may_leave_to_this_worker(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("a", 2), ("c", 1)):
        add_flavour(shelf_folder, name, version)
    shelf = open_shelf(models=["a", "b"], lazy_models=["b"])
    assert shelf.loadable() == ("a", "a@1", "a@2", "b", "b@1")
    monkeypatch.setattr(loading, "load_tuned", lambda *_: 1 / 0)

    async def use() -> None:
        async with lent(shelf, "b@1"):
            assert shelf.loadable() == ("a", "a@1", "a@2")

    asyncio.run(use())
    names = ["a", "a@1", "b", "b@1", "c", "c@1"]
    assert [name for name in names if name not in shelf.loadable()] == shelf.lacks(names)


def test_a_model_larger_than_all_memory_is_not_waited_for(open_shelf: Open) -> None:
    shelf = open_shelf(lazy_models=["b"])
    shelf._settings = shelf._settings.model_copy(update={"models_memory_bytes": 1})

    async def use() -> str:
        async with lent(shelf, "b@1"):
            return shelf.why_not("b@1").args[-1]

    assert "larger than models_memory_bytes" in asyncio.run(use())
    assert shelf.progress()["b@1"] == "failed"


def test_an_empty_repository_is_one_that_is_away(open_shelf: Open, shelf_folder: Path) -> None:
    shelf = open_shelf(linger_seconds=0)
    shelf_folder.rename(shelf_folder.with_name("away"))
    shelf.look()
    shelf.tidy()
    assert shelf.progress() == {"a@1": "ready", "b@1": "ready"}
    assert shelf.offers() == {"a": "1", "b": "1"}


def test_an_empty_look_brings_back_nothing_that_was_taken_out(open_shelf: Open, shelf_folder: Path) -> None:
    for version in (2, 3):
        add_flavour(shelf_folder, "a", version)
    shelf = open_shelf(lazy_models=["b"])
    shutil.rmtree(shelf_folder / "a" / "3")
    shelf.look()
    settled(shelf, a2="ready", a3="ready", b1="lazy")
    shelf_folder.rename(shelf_folder.with_name("away"))
    shelf.look()
    shelf_folder.with_name("away").rename(shelf_folder)
    assert says(shelf, "b@1") == "one", "whatever changes, what is offered is found again"
    assert shelf.offers() == {"a": "2", "b": "1"}
    assert shelf.lacks(["a@1", "a@2", "a@3", "a@4"]) == ["a@4"]


def test_a_version_that_is_planned_again_before_it_was_unloaded_stays(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = open_shelf(linger_seconds=0)
    add_flavour(shelf_folder, "a", 2)
    shelf.look()
    settled(shelf, a1="ready", a2="ready", b1="ready")
    go = held(monkeypatch)
    add_flavour(shelf_folder, "c", 1)
    shelf.look()
    shelf.tidy()  # it is the turn of a@1 when c@1 is loaded
    shutil.rmtree(shelf_folder / "a" / "2")
    shelf.look()
    go.set()
    settled(shelf, a1="ready", b1="ready", c1="ready")


def test_a_version_that_is_removed_while_it_is_loaded_is_loaded(
    open_shelf: Open, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the device is not to be forgotten there."""
    shelf = open_shelf(lazy_models=["b"])
    steps = loading._steps

    def removed(*arguments: Any) -> Any:
        shutil.rmtree(shelf_folder / "b")
        return steps(*arguments)

    monkeypatch.setattr(loading, "_steps", removed)
    assert says(shelf, "b@1") == "one"
    settled(shelf, a1="ready", b1="ready")


def test_at_the_start_every_model_that_is_named_must_load(open_shelf: Open, shelf_folder: Path) -> None:
    with pytest.raises(ModelError, match="has no model c; it has a@1, b@1"):
        open_shelf(models=["a", "c"])
    (shelf_folder / "b" / "1" / "model.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="sha256"):
        open_shelf()


def test_others_are_told_while_a_model_is_loaded(open_shelf: Open, shelf_folder: Path) -> None:
    shelf = open_shelf()
    states: list[str] = []

    @contextmanager
    def aside() -> Iterator[None]:
        states.append(shelf.progress()["c@1"])
        yield
        states.append(shelf.progress()["c@1"])

    shelf.aside = aside
    add_flavour(shelf_folder, "c", 1)
    shelf.look()
    settled(shelf, a1="ready", b1="ready", c1="ready")
    assert states == ["waiting", "warming"]
