"""Messages that the broker lost: their chunks are published again."""

from __future__ import annotations

from collections import deque
from typing import Final

import structlog

from classifleet.ledger import read_depth
from classifleet.worker.instruments import REDELIVERIES
from classifleet.worker.reconciler.context import PUBLISH_PAGE, Context

log = structlog.get_logger(__name__)
ROUNDS_MISSING: Final = 10
MISSING_MS: Final = 10_000
MOST_A_ROUND: Final = 10_000


class LostMessages:
    """Finds that fewer messages wait in the broker than chunks in the ledger, round after round.

    As many as are missing are published, for the oldest chunks: which ones were lost need not be known, since any
    message of a queue wakes a worker for any of its chunks. So a backlog is never multiplied.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._missing: dict[str, deque[int]] = {}

    def round(self, queue: str) -> int:
        """Look at a queue once; how many messages were published."""
        context = self._context
        depth = read_depth(context.runner.run_all(context.ledger.depth(queue)))
        missing = depth.queued_chunks - context.publisher.depth(queue) if depth.queued_chunks else 0
        history = self._missing.setdefault(queue, deque(maxlen=ROUNDS_MISSING))
        history.append(missing)
        if len(history) < ROUNDS_MISSING or min(history) <= 0:
            return 0
        published = self._publish(queue, min(*history, MOST_A_ROUND))
        history.clear()
        return published

    def _publish(self, queue: str, count: int) -> int:
        context = self._context
        before_ms = context.now_ms() - MISSING_MS
        published = 0
        while published < count and not context.closing.is_set():
            page = min(PUBLISH_PAGE, count - published)
            lost = context.runner.run(context.ledger.oldest_queued(queue, before_ms, page, published))
            if not lost:
                break
            context.publish(queue, lost)
            published += len(lost)
        if published:
            REDELIVERIES.inc(published)
            log.warning("messages missing from the broker; published again", queue=queue, chunks=published)
        return published
