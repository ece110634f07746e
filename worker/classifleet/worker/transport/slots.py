"""How a worker's slots are shared between its two lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from classifleet.config.payload import Lane

KEPT_SHARE: Final = 4  # one slot in so many is kept from each lane for the other


def kept(total: int) -> int:
    """Slots that a lane leaves to the other one: a quarter, and one at least if there are two."""
    return max(total // KEPT_SHARE, 1) if total > 1 else 0


def free_slots(total: int, held: Mapping[Lane, int]) -> dict[Lane, int]:
    """How many chunks each lane may take now, were it alone; together they take no more than `total - held`.

    Neither lane ever fills the worker: an interactive chunk finds a slot beside any backlog of bulk, and bulk goes
    on beside any stream of interactive ones.
    """
    free = max(total - sum(held.values()), 0)
    cap = total - kept(total)
    return {lane: max(min(free, cap - held.get(lane, 0)), 0) for lane in ("interactive", "bulk")}


def lane_of(queue: str) -> Lane:
    """A queue's lane, by the end of its name; one of another kind counts as bulk."""
    return "interactive" if queue.endswith("interactive") else "bulk"
