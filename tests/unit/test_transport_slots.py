"""How slots are shared between lanes."""

from __future__ import annotations

import pytest

from classifleet.worker.transport.slots import free_slots, kept, lane_of


@pytest.mark.parametrize(("total", "expected"), [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2), (32, 8), (33, 8)])
def test_a_quarter_is_kept_and_one_at_least(total: int, expected: int) -> None:
    assert kept(total) == expected


@pytest.mark.parametrize(
    ("total", "interactive", "bulk", "expected"),
    [
        (32, 0, 0, (24, 24)),
        (32, 0, 24, (8, 0)),  # bulk is at its limit; interactive has what was kept for it
        (32, 24, 0, (0, 8)),  # the other way round
        (32, 20, 4, (4, 8)),
        (32, 8, 24, (0, 0)),
        (2, 0, 0, (1, 1)),
        (2, 0, 1, (1, 0)),
        (2, 1, 0, (0, 1)),
        (1, 0, 0, (1, 1)),  # after a lost connection Celery may leave one slot
        (1, 1, 0, (0, 0)),
        (4, 6, 3, (0, 0)),  # slots were taken away
    ],
)
def test_neither_lane_fills_the_worker(total: int, interactive: int, bulk: int, expected: tuple[int, int]) -> None:
    free = free_slots(total, {"interactive": interactive, "bulk": bulk})
    assert (free["interactive"], free["bulk"]) == expected


@pytest.mark.parametrize("total", range(1, 40))
def test_no_slot_stays_free_while_both_lanes_have_work(total: int) -> None:
    held = {"interactive": 0, "bulk": 0}
    while sum(held.values()) < total:
        free = free_slots(total, held)
        lane = "interactive" if free["interactive"] else "bulk"
        assert free[lane] > 0
        held[lane] += 1
    assert sum(free_slots(total, held).values()) == 0


def test_lanes_by_name() -> None:
    assert lane_of("classify.gpu.interactive") == "interactive"
    assert lane_of("classify.gpu.bulk") == "bulk"
    assert lane_of("celery") == "bulk"
