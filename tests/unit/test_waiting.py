"""Chunks that wait for nothing but strangers, and the place that they free meanwhile."""

from __future__ import annotations

import asyncio

from classifleet.worker.ingest.pace import Pace
from classifleet.worker.waiting import WaitingChunk, WaitingRoom
from tests.support.waiting import wait_until_async


def test_a_chunk_waits_while_all_that_is_left_of_it_is_slow() -> None:
    heard: list[int] = []
    room = WaitingRoom(2)
    room.changed = lambda: heard.append(room.count("bulk"))
    chunk = WaitingChunk(room, "bulk", 3, 1)
    quick, slow, slower = (chunk.image() for _ in range(3))
    slow(True)
    slower(True)
    slower(True)  # said twice
    assert room.count("bulk") == 0
    quick.done()
    assert (room.count("bulk"), room.count("interactive")) == (1, 0)
    slow(False)  # it has arrived, and is decoded
    assert room.count("bulk") == 0
    slow.done()
    assert room.count("bulk") == 1
    slower.done()  # at its deadline
    assert room.count("bulk") == 0
    chunk.close()
    assert heard == [1, 0, 1, 0]


def test_those_for_whom_there_is_no_room_follow_in_order() -> None:
    room = WaitingRoom(1)
    chunks = [WaitingChunk(room, lane, 1, 1) for lane in ("bulk", "interactive", "bulk")]  # type: ignore[arg-type]
    for chunk in chunks:
        chunk.image()(True)
    assert (room.count("bulk"), room.count("interactive")) == (1, 0)
    chunks[0].close()
    assert (room.count("bulk"), room.count("interactive")) == (0, 1)
    chunks[2].close()  # it gives up outside
    chunks[1].close()
    assert (room.count("bulk"), room.count("interactive")) == (0, 0)


def test_the_room_is_bounded_by_what_chunks_hold() -> None:
    room = WaitingRoom(10, total_bytes=100)
    big, bigger, small = (WaitingChunk(room, "bulk", 1, size) for size in (60, 50, 40))
    for chunk in (big, bigger, small):
        chunk.image()(True)
    assert room.count("bulk") == 2  # the small one passes the one that does not fit
    big.close()
    assert room.count("bulk") == 2
    small.close()
    bigger.close()
    assert room.count("bulk") == 0


def test_only_the_stranger_s_time_counts() -> None:
    async def scenario() -> None:
        heard: list[bool] = []
        pace = Pace(heard.append, slow_after_seconds=0.05)
        pace.begin()
        with pace.ours():
            await asyncio.sleep(0.1)  # ours, and longer than the stranger has
            assert heard == [False]
        await wait_until_async(lambda: heard == [False, True], "the stranger to be slow")
        with pace.ours():
            assert heard == [False, True, False]
        await wait_until_async(lambda: heard[3:] == [True], "it is known to be slow at once", timeout=0.04)
        pace.end()
        assert heard[4:] == [False]

    asyncio.run(scenario())
