"""Turns and slots of the two lanes, and the threads that serve them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from classifleet.config import Lane
from classifleet.worker.lanes import (
    BULK_EVERY,
    SPARE_TIMES,
    LaneExecutor,
    LaneQueue,
    LaneSlots,
    may_hold,
    next_turn,
)
from tests.support.waiting import wait_until_async


@pytest.mark.parametrize(
    ("interactive", "bulk", "passed_over", "expected"),
    [
        (False, False, 0, None),
        (False, False, 99, None),
        (True, False, 99, "interactive"),
        (False, True, 0, "bulk"),
        (True, True, 0, "interactive"),
        (True, True, BULK_EVERY - 2, "interactive"),
        (True, True, BULK_EVERY - 1, "bulk"),
    ],
)
def test_next_turn(interactive: bool, bulk: bool, passed_over: int, expected: Lane | None) -> None:
    assert next_turn(interactive, bulk, passed_over) == expected


@pytest.mark.parametrize(
    ("lane", "interactive", "bulk", "total", "own", "expected"),
    [
        ("bulk", 0, 0, 1, 0, True),
        ("interactive", 0, 1, 1, 0, False),
        ("bulk", 0, 6, 8, 1, True),
        ("bulk", 0, 7, 8, 1, False),  # the last is for interactive
        ("interactive", 0, 7, 8, 1, True),
        ("interactive", 7, 0, 8, 1, False),  # and the other way round
        ("bulk", 7, 0, 8, 1, True),
        ("bulk", 4, 4, 8, 1, False),
    ],
)
def test_may_hold(lane: Lane, interactive: int, bulk: int, total: int, own: int, expected: bool) -> None:
    assert may_hold(lane, {"interactive": interactive, "bulk": bulk}, total, own) is expected


def test_a_queue_serves_interactive_first_and_bulk_every_eighth_time() -> None:
    queue: LaneQueue[str] = LaneQueue()
    for number in range(20):
        queue.append("bulk", f"b{number}")
        queue.append("interactive", f"i{number}")
    served = [queue.pop() for _ in range(24)]
    assert [name for name in served if name[0] == "b"] == ["b0", "b1", "b2", "b3"]  # 20 of 24 were interactive
    assert [served.index(name) for name in ("b0", "b1", "b2")] == [7, 15, 22]  # the last since no other waited
    assert [queue.pop() for _ in range(16)] == [f"b{n}" for n in range(4, 20)]
    with pytest.raises(IndexError):
        queue.pop()


def test_slots_go_to_interactive_first_and_each_lane_keeps_its_own() -> None:
    async def scenario() -> None:
        slots, order = LaneSlots(8), []

        async def take(lane: Lane, name: str) -> None:
            await slots.acquire(lane)
            order.append(name)

        tasks = [asyncio.create_task(take("bulk", f"b{n}")) for n in range(9)]
        await wait_until_async(lambda: len(order) == 7, "bulk to hold all but one")
        await slots.acquire("interactive")
        tasks.append(asyncio.create_task(take("interactive", "i")))
        await asyncio.sleep(0)
        slots.release("bulk")
        await wait_until_async(lambda: order[7:] == ["i"], "interactive to overtake")
        slots.release("interactive")
        await wait_until_async(lambda: order[8:] == ["b7"], "bulk's turn")
        slots.release("bulk")
        await asyncio.gather(*tasks)
        assert order[9:] == ["b8"]

    asyncio.run(scenario())


def test_giving_up_a_wait_for_a_slot_loses_none() -> None:
    async def scenario() -> None:
        slots = LaneSlots(1)
        await slots.acquire("bulk")
        gives_up, has_it, waits = (asyncio.create_task(slots.acquire("bulk")) for _ in range(3))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.sleep(0)
        slots.release("bulk")
        has_it.cancel()  # its turn has come, and it does not know yet
        await asyncio.gather(gives_up, has_it, return_exceptions=True)
        await asyncio.wait_for(waits, 5)
        assert slots.full("bulk")

    asyncio.run(scenario())


def test_threads_take_interactive_first_and_leave_what_was_given_up() -> None:
    gate, order = threading.Event(), []

    async def scenario() -> None:
        with LaneExecutor(1, "test") as executor:
            tasks = [asyncio.create_task(executor.run("bulk", gate.wait, 10))]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(executor.run("bulk", order.append, f"b{n}")) for n in range(3)]
            tasks += [asyncio.create_task(executor.run("interactive", order.append, "i"))]
            await asyncio.sleep(0)
            tasks[2].cancel()
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert order == ["i", "b0", "b2"]


def test_lost_threads_are_replaced_up_to_a_bound_and_end_when_their_calls_return() -> None:
    gates = [threading.Event() for _ in range(1 + SPARE_TIMES)]

    async def scenario() -> None:
        with LaneExecutor(1, "test") as executor:
            for number, gate in enumerate(gates, 1):
                future = executor.submit("bulk", gate.wait, 10)
                await wait_until_async(executor.busy, "the call to begin")
                assert executor.give_up(60) == ([], pytest.approx(60, abs=1))
                assert executor.give_up(0)[0] == [future]
                assert (executor.lost, executor.busy()) == (number, False)
            waits = executor.submit("bulk", int, "7")
            executor.give_up(0)
            assert not waits.done()  # so many are stuck that nothing more is begun
            gates[0].set()
            assert await waits == 7
            assert executor.lost == len(gates) - 1
        assert executor.lost == len(gates) - 1  # the end waits for none of them
        for gate in gates:
            gate.set()
        await wait_until_async(lambda: not executor.lost, "the threads to end")

    asyncio.run(scenario())


def test_without_more_threads_those_that_there_are_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        with LaneExecutor(2, "test") as executor:
            first = executor.submit("bulk", gate.wait, 10)
            await wait_until_async(executor.busy, "the call to begin")
            monkeypatch.setattr(threading.Thread, "start", refuse)
            second = executor.submit("bulk", int, "7")
            assert not second.done()
            gate.set()
            assert await asyncio.gather(first, second) == [True, 7]

    asyncio.run(scenario())


def test_what_a_call_raises_arrives() -> None:
    async def scenario() -> None:
        with LaneExecutor(1, "test") as executor, pytest.raises(ValueError, match="invalid literal"):
            await executor.run("bulk", int, "x")

    asyncio.run(scenario())
