"""Leases that ran out: their chunks are queued and published again."""

from __future__ import annotations

from typing import Final

import structlog

from classifleet.worker.instruments import REDELIVERIES
from classifleet.worker.leases import RENEWALS_PER_LEASE
from classifleet.worker.reconciler.context import Context

log = structlog.get_logger(__name__)
PAGE: Final = 100
PAGES_A_ROUND: Final = 10
LONGEST_GAP_SECONDS: Final = 5.0


class Contact:
    """How long Redis has been in reach without a gap: after one, holders get time to renew their leases.

    Unbroken contact is judged by the ledger's clock, which also sees that this process, or the whole machine, stood
    still. A process that starts cannot know what was before, and waits as after a gap.
    """

    def __init__(self, lease_seconds: float) -> None:
        renewal_seconds = lease_seconds / RENEWALS_PER_LEASE
        self._gap_ms = 1000 * max(renewal_seconds, LONGEST_GAP_SECONDS)
        self._quiet_ms = 1000 * renewal_seconds * 1.5
        self._since: float | None = None
        self._last = 0.0

    def lost(self) -> None:
        """A call failed."""
        self._since = None

    def settled(self, now_ms: float) -> bool:
        """Note that Redis answered; whether it has done so for long enough."""
        if self._since is None or not 0 <= now_ms - self._last <= self._gap_ms:  # below 0: the clock was set back
            self._since = now_ms
        self._last = now_ms
        return now_ms - self._since >= self._quiet_ms


def expire(context: Context, queue: str) -> int:
    """Give back what silent workers of a queue held, up to a thousand chunks; how many."""
    expired = 0
    for _ in range(PAGES_A_ROUND):
        back = context.runner.run(context.ledger.expire_leases(queue, limit=PAGE))
        if not back:
            break
        expired += len(back)
        REDELIVERIES.inc(len(back))
        context.publish(queue, back)
    if expired:
        log.warning("leases ran out; queued again", queue=queue, chunks=expired)
    return expired
