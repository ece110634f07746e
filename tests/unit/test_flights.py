"""One does it for all who want the same; none of them can hold up, or take down, the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from classifleet.config import Lane
from classifleet.worker.flights import Flights, Urgency

KEY = b"key"
CALM = Urgency("bulk", math.inf)


@pytest.mark.parametrize(
    ("leader", "waiter", "serves"),
    [
        (("bulk", math.inf), ("bulk", math.inf), True),
        (("interactive", math.inf), ("bulk", math.inf), True),
        (("bulk", math.inf), ("interactive", math.inf), False),
        (("bulk", 5.0), ("interactive", 9.0), False),
        (("bulk", 5.0), ("bulk", 9.0), True),
        (("bulk", 9.0), ("bulk", 5.0), False),
        (("interactive", math.inf), ("bulk", 9.0), False),
        (("interactive", 9.0), ("interactive", math.inf), True),
    ],
)
def test_nobody_waits_for_someone_less_urgent(
    leader: tuple[Lane, float], waiter: tuple[Lane, float], serves: bool
) -> None:
    assert Urgency(*leader).serves(Urgency(*waiter)) is serves


def flying(test: Callable[[Flights[str], list[asyncio.Task[Any]]], Awaitable[None]], count: int = 4) -> None:
    """Run a test with a flight that this one leads and so many wait for."""

    async def run() -> None:
        flights: Flights[str] = Flights()
        assert await flights.join(KEY, CALM) == ("lead", None)
        waiting = [asyncio.create_task(flights.join(KEY, CALM)) for _ in range(count)]
        await asyncio.sleep(0)
        await test(flights, waiting)

    asyncio.run(run())


async def settled(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """The results of those that are done, None of the others."""
    for _ in range(3):
        await asyncio.sleep(0)
    return [task.result() if task.done() and not task.cancelled() else None for task in tasks]


def test_all_who_wait_have_what_the_first_found() -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        flights.end(KEY, "found", failed=False)
        assert [found for _, found in await settled(waiting)] == ["found"] * 4
        assert len(flights) == 0

    flying(test)


@pytest.mark.parametrize("failed", [False, True])
def test_when_the_first_ends_without_one_goes_on_and_the_others_wait_for_that(failed: bool) -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        flights.end(KEY, None, failed=failed)
        assert await settled(waiting) == [("lead", None), None, None, None]
        flights.end(KEY, "found", failed=False)
        assert [found for _, found in (await settled(waiting))[1:]] == ["found"] * 3

    flying(test)


def test_what_has_failed_twice_each_does_for_himself() -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        flights.end(KEY, None, failed=True)
        await settled(waiting)
        flights.end(KEY, None, failed=True)
        assert await settled(waiting) == [("lead", None), *[("alone", None)] * 3]
        assert len(flights) == 0

    flying(test)


def test_deadlines_and_cancelled_leaders_are_nobodys_failures() -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        for leaders in range(1, 5):
            flights.end(KEY, None, failed=False)
            assert (await settled(waiting)).count(("lead", None)) == leaders
        flights.end(KEY, None, failed=False)
        assert len(flights) == 0

    flying(test)


def test_who_is_cancelled_is_passed_over() -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        waiting[0].cancel()
        await settled(waiting)
        flights.end(KEY, None, failed=False)
        assert await settled(waiting) == [None, ("lead", None), None, None]

    flying(test)


def test_who_is_cancelled_as_the_lead_comes_passes_it_on() -> None:
    async def test(flights: Flights[str], waiting: list[asyncio.Task[Any]]) -> None:
        flights.end(KEY, None, failed=False)
        waiting[0].cancel()
        assert await settled(waiting) == [None, ("lead", None), None, None]
        waiting[2].cancel()
        flights.end(KEY, "found", failed=False)
        assert [found for _, found in filter(None, (await settled(waiting))[2:])] == ["found"]
        assert len(flights) == 0

    flying(test)


def test_a_new_leader_is_waited_for_by_his_own_urgency() -> None:
    async def run() -> None:
        flights: Flights[str] = Flights()
        await flights.join(KEY, Urgency("bulk", 1.0))
        second = asyncio.create_task(flights.join(KEY, Urgency("bulk", 9.0)))
        await asyncio.sleep(0)
        flights.end(KEY, None, failed=False)
        assert await second == ("lead", None)
        assert await flights.join(KEY, Urgency("bulk", 5.0)) == ("alone", None)

    asyncio.run(run())
