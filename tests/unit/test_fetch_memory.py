"""The memory and the time of fetches: what is bounded, who waits, and who is cut."""

import asyncio

import pytest

from classifleet.worker.ingest import image_memory
from classifleet.worker.ingest import memory as memory_module
from classifleet.worker.ingest.clock import Clock
from classifleet.worker.ingest.memory import MemoryBudget, keep_or_release
from tests.support.waiting import wait_until_async
from tests.support.web import metric


async def settle():
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


# Memory


def budget_of(total, image, count):
    budget = MemoryBudget(total, image)
    return budget, [budget.hold(Clock(60)) for _ in range(count)]


def test_a_fetch_that_finds_no_room_waits_for_it_and_keeps_its_turn():
    async def scenario():
        budget, (first, favoured, second, third) = budget_of(200, 100, 4)
        await first.grow(80)
        await favoured.grow(90)  # from the reserve
        order = []

        async def grow(hold, size):
            await hold.grow(size)
            order.append(hold)

        tasks = [asyncio.create_task(grow(second, 15)), asyncio.create_task(grow(third, 5))]
        await settle()
        assert (order, budget.used_bytes) == ([], 170)  # the third would fit, and does not overtake
        await favoured.grow(10)  # may finish whoever waits
        favoured.release()
        await asyncio.gather(*tasks)
        assert (order, budget.used_bytes) == ([second, third], 100)
        assert metric("classifleet_fetched_bytes") == 100

    asyncio.run(scenario())


def test_whatever_the_sizes_all_of_them_finish_within_the_budget():
    async def scenario():
        budget, most = MemoryBudget(250, 100), []

        async def fetch(size):
            hold = budget.hold(Clock(60))
            for _ in range(size):
                await hold.grow(1)
                most.append(budget.used_bytes)
                await asyncio.sleep(0)
            hold.release()

        await asyncio.wait_for(asyncio.gather(*(fetch(100 - n % 3) for n in range(20))), 30)
        assert 150 < max(most) <= 250
        assert budget.used_bytes == 0

    asyncio.run(scenario())


def test_nothing_begins_above_half():
    async def scenario():
        budget, (hold,) = budget_of(200, 50, 1)
        await budget.room()
        await hold.grow(120)
        tasks = [asyncio.create_task(budget.room()) for _ in range(3)]
        await settle()
        assert not any(task.done() for task in tasks)
        tasks.pop().cancel()
        hold.release()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("begins", [True, False])
def test_when_memory_is_short_whoever_sits_on_most_for_longest_is_cut(monkeypatch, begins):
    monkeypatch.setattr(memory_module, "SHORT_SECONDS", 0.01)

    async def scenario():
        budget, holds = budget_of(100, 30, 4)
        small, large, whole, waiting = holds
        cut = []
        for hold, size in ((small, 10), (large, 40), (whole, 20)):
            await hold.grow(size)
            monkeypatch.setattr(hold.clock, "cut", lambda hold=hold: cut.append(hold))
        whole.arrived()
        evictions = metric("classifleet_fetch_evictions_total")
        if not begins:
            await waiting.grow(25)  # from the reserve; the next one finds nothing
            waiting.waits = True
        waits = budget.room() if begins else budget.hold(Clock(60)).grow(10)
        task = asyncio.create_task(waits)
        await wait_until_async(lambda: cut, "one is cut")
        assert cut == [large]
        assert large.evicted
        large.release()
        await asyncio.wait_for(task, 5)
        assert metric("classifleet_fetch_evictions_total") == evictions + 1

    asyncio.run(scenario())


def test_nobody_is_cut_for_what_waits_to_be_decoded(monkeypatch):
    monkeypatch.setattr(memory_module, "SHORT_SECONDS", 0.01)

    async def scenario():
        budget, (whole, honest, waiting) = budget_of(100, 30, 3)
        await whole.grow(70)
        whole.arrived()
        honest.charge(10)
        rounds = []
        original = budget._cut_one
        monkeypatch.setattr(budget, "_cut_one", lambda: (rounds.append(1), original()))
        task = asyncio.create_task(waiting.grow(90))
        beginner = asyncio.create_task(budget.room())
        await wait_until_async(lambda: len(rounds) > 5, "it was thought of")
        assert not honest.evicted
        whole.release()
        waiting.release()
        await asyncio.wait((task, beginner), timeout=5)
        assert beginner.done()

    asyncio.run(scenario())


def test_whoever_gives_up_waiting_leaves_nothing_behind():
    async def scenario():
        budget, (full, favoured, gone, next_one) = budget_of(100, 30, 4)
        await full.grow(65)
        await favoured.grow(20)
        waiting = asyncio.create_task(gone.grow(50))
        behind = asyncio.create_task(next_one.grow(5))
        await settle()
        waiting.cancel()
        await settle()
        favoured.release()
        await asyncio.wait((waiting, behind), timeout=5)
        assert waiting.cancelled()
        assert behind.done()
        assert budget.used_bytes == 70

    asyncio.run(scenario())


def test_a_thread_cannot_charge_a_fetch_that_was_given_up():
    async def scenario():
        budget, (full, favoured, gone) = budget_of(100, 30, 3)
        await full.grow(65)
        await favoured.grow(20)
        late = asyncio.create_task(gone.grow(50))
        await settle()
        gone.release()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late, 1)
        with pytest.raises(TimeoutError):
            await gone.grow(1)
        assert budget.used_bytes == 85

    asyncio.run(scenario())


def test_an_image_stays_charged_until_it_is_decoded():
    async def scenario():
        budget = MemoryBudget(100, 50)

        async def fetched(size):
            hold = budget.hold(Clock(60))
            await hold.grow(size)
            keep_or_release(hold)

        await fetched(10)  # outside: not charged any more
        assert budget.used_bytes == 0
        with image_memory() as memory:
            await fetched(20)
            assert budget.used_bytes == 20
            memory.release()
            assert budget.used_bytes == 0
            await fetched(30)
        assert budget.used_bytes == 0
        assert not budget.under_way

    asyncio.run(scenario())


# Time


def test_waiting_is_not_work_and_a_deadline_is_a_deadline():
    async def scenario():
        clock = Clock(0.2)
        async with clock.queueing():
            await asyncio.sleep(0.3)  # longer than all the time for work
        assert clock.seconds_left == pytest.approx(0.2, abs=0.1)
        with pytest.raises(TimeoutError):
            async with clock.working():
                await asyncio.Event().wait()
        assert clock.seconds_left <= 0
        short = Clock(60, 0.05)
        with pytest.raises(TimeoutError):
            async with short.queueing():
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            async with short.queueing():
                pytest.fail("the deadline had passed")

    asyncio.run(scenario())


def test_work_can_be_cut():
    async def scenario():
        clock = Clock(60)
        clock.cut()  # nothing is under way
        asyncio.get_running_loop().call_later(0.01, clock.cut)
        with pytest.raises(TimeoutError):
            async with clock.working():
                await asyncio.Event().wait()

    asyncio.run(scenario())


def test_waiting_within_work_is_not_work():
    async def scenario():
        clock = Clock(0.1)
        async with clock.working():
            with clock.paused():
                await asyncio.sleep(0.3)
            assert clock.seconds_left > 0
        with pytest.raises(TimeoutError):
            async with clock.working():
                await asyncio.Event().wait()

    asyncio.run(scenario())
