"""What the pipeline wants of a fetcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from classifleet.config import Lane
from classifleet.config.reference import Reference


class Fetch(Protocol):
    """Where image bytes come from; see `Fetcher`."""

    async def fetch(
        self,
        reference: Reference,
        *,
        job: str,
        chunk: str,
        deadline_seconds: float | None,
        lane: Lane,
        slow: Callable[[bool], None],
    ) -> bytes:
        """The image's bytes, or an `ImageError`; `slow` hears whether a stranger keeps us waiting."""
