"""What keeps one stranger from slowing the others: slots, hosts and their circuits, memory, time."""

import asyncio
import contextlib

import pytest

from classifleet.config import ErrorCode, ImageError
from classifleet.worker.ingest import hosts as hosts_module
from classifleet.worker.ingest.hosts import (
    MIN_OUTCOMES,
    OPEN_MAX_SECONDS,
    OPEN_SECONDS,
    Admission,
    Breaker,
    HostTable,
)
from classifleet.worker.ingest.retry import HostTrouble, TransientError
from classifleet.worker.ingest.slots import FetchSlots
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
        lanes, release, entered = FetchSlots(1, 1, slow_after_seconds=0.01), asyncio.Event(), []
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
        lanes, first, rest, entered = FetchSlots(2, 1, slow_after_seconds=0.01), asyncio.Event(), asyncio.Event(), []
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
        lanes = FetchSlots(1, 1, slow_after_seconds=0.0)
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
