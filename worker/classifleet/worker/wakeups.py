"""Wake-up calls: what a message must look like, and what the queue that it came by says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classifleet.config import Lane
from classifleet.config.payload import MESSAGE_VERSION


def is_message(message: Mapping[str, Any]) -> bool:
    """Whether it is one of ours, in a version that is known here."""
    return (
        message.get("v") == MESSAGE_VERSION
        and isinstance(message.get("job"), str)
        and isinstance(message.get("chunk"), str)
    )


def lane_of(queue: str) -> Lane:
    """The lane of a queue, by its name."""
    return "interactive" if queue.endswith(".interactive") else "bulk"
