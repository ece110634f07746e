"""Suspects are alone, and nobody waits longer than needed. Threads say where they are; nothing is timed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest

from classifleet.config import Lane
from classifleet.worker.gate import Gate, GateClosed, Turn
from tests.support import wait_until

SECONDS = 10.0


class Guest:
    """A thread that enters the gate, says so, and leaves when told to."""

    def __init__(self, pool: ThreadPoolExecutor, enter: Callable[[], AbstractContextManager[None]]) -> None:
        self.inside = threading.Event()
        self.leave = threading.Event()
        self.result: Future[None] = pool.submit(self._visit, enter)

    def _visit(self, enter: Callable[[], AbstractContextManager[None]]) -> None:
        with enter():
            self.inside.set()
            self.leave.wait(SECONDS)

    def end(self) -> None:
        self.leave.set()
        self.result.result(SECONDS)


class House:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.gate = Gate()
        self.pool = pool
        self.guests: list[Guest] = []
        self.turns: list[Turn] = []

    def _guest(self, enter: Callable[[], AbstractContextManager[None]]) -> Guest:
        guest = Guest(self.pool, enter)
        self.guests.append(guest)
        return guest

    def shared(self, lane: Lane = "bulk") -> Guest:
        waiting = self.waiting(lane)
        guest = self._guest(lambda: self.gate.shared(lane, SECONDS))
        wait_until(lambda: guest.inside.is_set() or self.waiting(lane) > waiting, "the guest to come")
        return guest

    def alone(self) -> Guest:
        suspects = self.gate._suspects
        guest = self._guest(self._alone)
        wait_until(lambda: guest.inside.is_set() or self.gate._suspects > suspects, "the suspect to come")
        return guest

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.gate.alone(SECONDS) as turn:
            self.turns.append(turn)
            yield

    def waiting(self, lane: Lane) -> int:
        return self.gate._waiting[lane]


@pytest.fixture
def house() -> Iterator[House]:
    with ThreadPoolExecutor(16) as pool:
        house = House(pool)
        yield house
        house.gate.close()
        for guest in house.guests:
            guest.leave.set()


def test_ordinary_chunks_share(house: House) -> None:
    guests = [house.shared(), house.shared("interactive"), house.shared()]
    assert all(guest.inside.wait(SECONDS) for guest in guests)


def test_a_suspect_waits_and_what_comes_then_waits_for_it(house: House) -> None:
    first = house.shared()
    suspect = house.alone()
    late = house.shared("interactive")
    assert not suspect.inside.is_set()
    assert not late.inside.is_set()
    first.end()
    assert suspect.inside.wait(SECONDS)
    assert not late.inside.is_set()
    suspect.end()
    assert late.inside.wait(SECONDS)


def test_suspects_exclude_each_other_and_let_pass_all_that_waits(house: House) -> None:
    first, second = house.alone(), house.alone()
    bulk = house.shared()
    assert [guest.inside.is_set() for guest in (first, second, bulk)] == [True, False, False]
    first.end()
    assert bulk.inside.wait(SECONDS)
    assert not second.inside.is_set()
    bulk.end()
    assert second.inside.wait(SECONDS)


def test_between_images_interactive_chunks_pass(house: House) -> None:
    suspect = house.alone()
    assert suspect.inside.wait(SECONDS)
    turn = house.turns[0]
    assert not house.gate.let_pass(turn, SECONDS)
    interactive, bulk = house.shared("interactive"), house.shared()
    assert house.gate.interactive_waits()
    passing = house.pool.submit(house.gate.let_pass, turn, SECONDS)
    assert interactive.inside.wait(SECONDS)
    assert not passing.done()
    interactive.end()
    assert passing.result(SECONDS)
    assert not bulk.inside.is_set()
    suspect.end()
    assert bulk.inside.wait(SECONDS)


def test_a_turn_that_ends_while_others_pass_leaves_the_gate_open(house: House) -> None:
    """Its chunk ran out of time, and the thread that let others pass is left behind."""
    suspect = house.alone()
    assert suspect.inside.wait(SECONDS)
    interactive = house.shared("interactive")
    passing = house.pool.submit(house.gate.let_pass, house.turns[0], SECONDS)
    assert interactive.inside.wait(SECONDS)
    suspect.end()
    with pytest.raises(GateClosed):
        passing.result(SECONDS)
    with pytest.raises(GateClosed):
        house.gate.let_pass(house.turns[0], SECONDS)
    interactive.end()
    assert house.shared().inside.wait(SECONDS)


def test_who_gives_up_letting_pass_leaves_another_suspect_alone(house: House) -> None:
    first = house.alone()
    assert first.inside.wait(SECONDS)
    interactive, second = house.shared("interactive"), house.alone()
    with pytest.raises(GateClosed):
        house.gate.let_pass(house.turns[0], 0)
    assert interactive.inside.wait(SECONDS)
    interactive.end()
    assert second.inside.wait(SECONDS)
    first.end()
    assert not house.shared().inside.is_set()


def test_the_wait_is_bounded_and_leaves_no_trace(house: House) -> None:
    shared = house.shared()
    with pytest.raises(GateClosed), house.gate.alone(0):
        pass
    shared.end()
    with house.gate.alone(0):
        with pytest.raises(GateClosed), house.gate.shared("bulk", 0):
            pass
        with pytest.raises(GateClosed), house.gate.alone(0):
            pass
    with house.gate.shared("interactive", 0):
        pass


def test_closing_wakes_all_that_wait(house: House) -> None:
    suspect = house.alone()
    waiting = [house.shared(), house.alone()]
    house.gate.close()
    for guest in waiting:
        with pytest.raises(GateClosed):
            guest.result.result(SECONDS)
    suspect.end()
    with pytest.raises(GateClosed), house.gate.shared("bulk", SECONDS):
        pass
