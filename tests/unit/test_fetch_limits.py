"""What keeps one stranger from slowing the others: slots, hosts and their circuits, memory, time."""

import asyncio
import contextlib

import pytest

from classifleet.config import ErrorCode, ImageError
from classifleet.worker.ingest import hosts as hosts_module
from classifleet.worker.ingest import image_memory
from classifleet.worker.ingest import memory as memory_module
from classifleet.worker.ingest.clock import Clock
from classifleet.worker.ingest.hosts import (
    MIN_OUTCOMES,
    OPEN_MAX_SECONDS,
    OPEN_SECONDS,
    Admission,
    Breaker,
    HostTable,
)
from classifleet.worker.ingest.memory import MemoryBudget, keep_or_release
from classifleet.worker.ingest.retry import HostTrouble, TransientError
from classifleet.worker.ingest.slots import Lanes
from tests.support.waiting import wait_until_async
from tests.support.web import metric


async def settle():
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


# Slots


async def hold(lanes, release, entered):
    async with lanes.slot() as slot:
        slot.begin()
        entered.append(slot)
        await release.wait()


def test_a_slow_fetch_gives_its_slot_to_others():
    async def scenario():
        lanes, release, entered = Lanes(1, 1, slow_after_seconds=0.01), asyncio.Event(), []
        tasks = [asyncio.create_task(hold(lanes, release, entered)) for _ in range(3)]
        await wait_until_async(lambda: len(entered) == 2, "the first is slow and the second has its slot")
        assert (lanes.fast_held, lanes.slow_held) == (1, 1)
        await settle()
        assert len(entered) == 2  # both kinds are taken
        release.set()
        await asyncio.gather(*tasks)
        assert (len(entered), lanes.fast_held, lanes.slow_held) == (3, 0, 0)

    asyncio.run(scenario())


def test_what_is_overdue_moves_as_soon_as_a_slow_slot_is_free():
    async def scenario():
        lanes, first, rest, entered = Lanes(2, 1, slow_after_seconds=0.01), asyncio.Event(), asyncio.Event(), []
        tasks = [asyncio.create_task(hold(lanes, event, entered)) for event in (first, rest, rest)]
        await wait_until_async(lambda: len(entered) == 3, "one has moved and all are in")
        await wait_until_async(lambda: len(lanes._overdue) == 2, "two more are overdue")
        first.set()
        await wait_until_async(lambda: lanes.slow_held == 1 and lanes.fast_held == 1, "one of them has moved")
        rest.set()
        await asyncio.gather(*tasks)
        assert (lanes.fast_held, lanes.slow_held, len(lanes._overdue)) == (0, 0, 0)

    asyncio.run(scenario())


def test_waiting_before_the_work_makes_nobody_slow_and_cancelling_frees():
    async def scenario():
        lanes = Lanes(1, 1, slow_after_seconds=0.0)
        entered = asyncio.Event()

        async def waits():
            async with lanes.slot():
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(waits())
        await entered.wait()
        await settle()
        assert (lanes.fast_held, lanes.slow_held) == (1, 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5), lanes.slot():
            assert lanes.fast_held == 1

    asyncio.run(scenario())


# Circuits


def fail(breaker, times, now=0.0):
    for _ in range(times):
        breaker.finish(breaker.admit(now), False, now)


def test_a_host_that_always_fails_is_left_alone_and_tried_again():
    breaker = Breaker()
    fail(breaker, MIN_OUTCOMES - 1)
    assert breaker.admit(0) is Admission.NORMAL
    breaker.finish(Admission.NORMAL, False, 0)
    assert breaker.admit(OPEN_SECONDS - 0.1) is Admission.REFUSED
    assert breaker.admit(OPEN_SECONDS) is Admission.TRIAL
    assert breaker.admit(OPEN_SECONDS) is Admission.REFUSED  # one at a time
    breaker.finish(Admission.TRIAL, False, OPEN_SECONDS)
    assert breaker.admit(3 * OPEN_SECONDS - 0.1) is Admission.REFUSED  # twice as long
    assert breaker.admit(3 * OPEN_SECONDS) is Admission.TRIAL
    breaker.finish(Admission.TRIAL, True, 3 * OPEN_SECONDS)
    assert breaker.admit(3 * OPEN_SECONDS) is Admission.NORMAL


def test_a_trial_that_says_nothing_makes_way_for_another():
    breaker = Breaker()
    fail(breaker, MIN_OUTCOMES)
    assert breaker.admit(OPEN_SECONDS) is Admission.TRIAL
    breaker.finish(Admission.TRIAL, None, OPEN_SECONDS)
    assert breaker.admit(OPEN_SECONDS) is Admission.TRIAL


def test_the_rest_has_a_limit():
    breaker, now = Breaker(), 0.0
    fail(breaker, MIN_OUTCOMES)
    for _ in range(12):
        now = breaker.open_until
        assert breaker.admit(now) is Admission.TRIAL
        breaker.finish(Admission.TRIAL, False, now)
    assert breaker.open_until - now == OPEN_MAX_SECONDS


def test_those_that_began_before_the_circuit_opened_do_not_prolong_it():
    breaker = Breaker()
    fail(breaker, MIN_OUTCOMES)
    for _ in range(50):
        breaker.finish(Admission.NORMAL, False, 4.0)
    assert breaker.open_until == OPEN_SECONDS
    assert breaker.admit(OPEN_SECONDS) is Admission.TRIAL
    breaker.finish(Admission.NORMAL, False, OPEN_SECONDS)
    assert breaker.admit(OPEN_SECONDS) is Admission.REFUSED  # the trial is still under way


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_failures_among_successes_close_no_host_to_others(share):
    breaker = Breaker()
    for number in range(1_000):
        assert breaker.admit(0) is Admission.NORMAL
        breaker.finish(Admission.NORMAL, int(number * share) == int((number + 1) * share), 0)


# Hosts


def test_a_host_has_so_many_at_one_time_and_no_more():
    async def scenario():
        table, release, now, most = HostTable(2, patience_seconds=1), asyncio.Event(), [], []
        waits = metric("classifleet_fetch_host_waits_total")

        async def visit(name):
            async with table.visit(name):
                now.append(name)
                most.append(now.count(name))
                await release.wait()
                now.remove(name)

        tasks = [asyncio.create_task(visit(name)) for name in "aaaaab"]
        await settle()
        assert sorted(now) == ["a", "a", "b"]
        assert metric("classifleet_fetch_host_waits_total") == waits + 3
        release.set()
        await asyncio.gather(*tasks)
        assert max(most) == 2

    asyncio.run(scenario())


async def visit_failing(table, name, error):
    with contextlib.suppress(type(error)):
        async with table.visit(name):
            raise error


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (TransientError("503"), True),
        (HostTrouble(ErrorCode.FETCH_FAILED, "refused"), True),
        (ImageError(ErrorCode.FORBIDDEN_ADDRESS), False),
        (ImageError(ErrorCode.NOT_FOUND), False),
        (TimeoutError(), False),  # at once: the job had no time, and the host no chance
        (RuntimeError(), False),
    ],
)
def test_only_what_speaks_against_the_host_opens_its_circuit(error, opens):
    async def scenario():
        table = HostTable(4, patience_seconds=60)
        counted = {name: metric(name) for name in ("classifleet_fetch_circuits_open", REFUSALS)}
        for _ in range(2 * MIN_OUTCOMES):
            with contextlib.suppress(ImageError):
                await visit_failing(table, "bad.example", error)
        assert metric("classifleet_fetch_circuits_open") - counted["classifleet_fetch_circuits_open"] == opens
        assert (metric(REFUSALS) - counted[REFUSALS] > 0) == opens
        async with table.visit("other.example"):
            pass

    asyncio.run(scenario())


REFUSALS = "classifleet_fetch_circuit_refusals_total"


def test_a_timeout_counts_when_the_host_had_its_time():
    async def scenario():
        table = HostTable(4, patience_seconds=0)

        async def times_out():
            async with table.visit("slow.example") as visit:
                visit.began = asyncio.get_running_loop().time()
                raise TimeoutError

        for _ in range(MIN_OUTCOMES):
            with pytest.raises(TimeoutError):
                await times_out()
        with pytest.raises(ImageError, match="circuit open") as caught:
            async with table.visit("slow.example"):
                pass
        assert caught.value.code is ErrorCode.FETCH_FAILED

    asyncio.run(scenario())


def test_those_that_waited_for_a_host_that_fails_are_refused_too(monkeypatch):
    async def scenario():
        table, release = HostTable(1, patience_seconds=60), asyncio.Event()
        monkeypatch.setattr(hosts_module, "MIN_OUTCOMES", 1)

        async def visit():
            async with table.visit("bad.example"):
                await release.wait()
                raise TransientError("503")

        tasks = [asyncio.create_task(visit()) for _ in range(5)]
        await settle()
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], TransientError)
        assert all("circuit open" in str(result) for result in results[1:])

    asyncio.run(scenario())


def test_so_many_hosts_are_remembered_and_no_more():
    async def scenario():
        table = HostTable(4, patience_seconds=60, max_hosts=10)
        opened = metric("classifleet_fetch_circuits_open")
        for _ in range(MIN_OUTCOMES):
            await visit_failing(table, "bad.example", TransientError("503"))
        assert metric("classifleet_fetch_circuits_open") == opened + 1
        async with table.visit("busy.example"):
            for number in range(100):
                async with table.visit(f"{number}.example"):
                    pass
                assert len(table) <= 11
            assert "busy.example" in table._hosts
        assert metric("classifleet_fetch_circuits_open") == opened  # forgotten

    asyncio.run(scenario())


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
