"""One does it for all who want the same; none of them can hold up, or take down, the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from classifleet.config import Lane
from classifleet.worker.flights import Answer, Flight, Flights, Urgency

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


class Place:
    """A flight that is led, and some who wait for it."""

    def __init__(self) -> None:
        self.flights: Flights[str] = Flights()
        self.flight: Flight[str]
        self.waiting: list[asyncio.Task[Answer[str]]] = []

    async def lead(self, urgency: Urgency) -> Flight[str]:
        """Join, to lead."""
        flight, found = await self.flights.join(KEY, urgency)
        assert flight is not None
        assert found is None
        return flight

    def wait(self, urgency: Urgency) -> asyncio.Task[Answer[str]]:
        """Join, to wait."""
        return asyncio.create_task(self.flights.join(KEY, urgency))

    def end(self, found: str | None, *, failed: bool) -> None:
        """The flight's leader ends."""
        self.flights.end(self.flight, found, failed=failed)

    async def told(self) -> list[str | None]:
        """What those who wait were told: what was found, or `lead`, or `alone`."""
        for _ in range(3):
            await asyncio.sleep(0)
        return [None if not task.done() or task.cancelled() else self._said(*task.result()) for task in self.waiting]

    def _said(self, flight: Flight[str] | None, found: str | None) -> str:
        assert flight in (None, self.flight)
        return found or ("alone" if flight is None else "lead")


def flying(test: Callable[[Place], Awaitable[None]]) -> None:
    """Run a test with a flight that this one leads and four wait for."""

    async def run() -> None:
        place = Place()
        place.flight = await place.lead(CALM)
        place.waiting = [place.wait(CALM) for _ in range(4)]
        await asyncio.sleep(0)
        await test(place)

    asyncio.run(run())


def test_all_who_wait_have_what_the_first_found() -> None:
    async def test(place: Place) -> None:
        place.end("found", failed=False)
        assert await place.told() == ["found"] * 4
        assert len(place.flights) == 0

    flying(test)


@pytest.mark.parametrize("failed", [False, True])
def test_when_the_first_ends_without_one_goes_on_and_the_others_wait_for_that(failed: bool) -> None:
    async def test(place: Place) -> None:
        place.end(None, failed=failed)
        assert await place.told() == ["lead", None, None, None]
        place.end("found", failed=False)
        assert await place.told() == ["lead", "found", "found", "found"]

    flying(test)


def test_what_has_failed_twice_each_does_for_himself() -> None:
    async def test(place: Place) -> None:
        place.end(None, failed=True)
        await place.told()
        place.end(None, failed=True)
        assert await place.told() == ["lead", "alone", "alone", "alone"]
        assert len(place.flights) == 0

    flying(test)


def test_deadlines_and_cancelled_leaders_are_nobodys_failures() -> None:
    async def test(place: Place) -> None:
        for leaders in range(1, 5):
            place.end(None, failed=False)
            assert (await place.told()).count("lead") == leaders
        place.end(None, failed=False)
        assert len(place.flights) == 0

    flying(test)


def test_who_is_cancelled_is_passed_over() -> None:
    async def test(place: Place) -> None:
        place.waiting[0].cancel()
        await place.told()
        place.end(None, failed=False)
        assert await place.told() == [None, "lead", None, None]

    flying(test)


def test_who_is_cancelled_as_the_lead_comes_passes_it_on() -> None:
    async def test(place: Place) -> None:
        place.end(None, failed=False)
        place.waiting[0].cancel()
        assert await place.told() == [None, "lead", None, None]
        place.waiting[2].cancel()
        place.end("found", failed=False)
        assert await place.told() == [None, "lead", None, "found"]
        assert len(place.flights) == 0

    flying(test)


def test_a_new_leader_is_waited_for_by_his_own_urgency() -> None:
    async def run() -> None:
        place = Place()
        place.flight = await place.lead(Urgency("bulk", 1.0))
        place.waiting = [place.wait(Urgency("bulk", 9.0))]
        await asyncio.sleep(0)
        place.end(None, failed=False)
        assert await place.told() == ["lead"]
        assert await place.lead(Urgency("bulk", 5.0)) is not place.flight

    asyncio.run(run())


def test_the_first_who_is_more_urgent_leads_those_who_come_after_him() -> None:
    async def test(place: Place) -> None:
        urgent = await place.lead(Urgency("bulk", 5.0))
        late = [place.wait(Urgency("bulk", due)) for due in (5.0, 6.0, 5.0)]
        place.waiting += late
        assert await place.told() == [None] * 7
        assert len(place.flights) == 2
        place.flights.end(urgent, "found", failed=False)
        assert await place.told() == ["found"] * 7, "also those who wait for the first"
        place.end("found too", failed=False)
        assert len(place.flights) == 0

    flying(test)
