"""Which models the other workers of the fleet have: a chunk that this one cannot do is left to one that can."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from classifleet.ledger import Ledger, SyncRunner, WorkerInfo

FRESH_SECONDS: Final = 5.0


class Elsewhere:
    """What the workers that live say of themselves, a few seconds old at most. Safe across threads."""

    def __init__(self, ledger: Ledger, runner: SyncRunner, owner: str) -> None:
        self._ledger = ledger
        self._runner = runner
        self._owner = owner
        self._known: tuple[float, tuple[WorkerInfo, ...]] = (-FRESH_SECONDS, ())

    def has(self, models: Collection[str], queue: str) -> bool:
        """Whether another worker of the queue has all of these models, or can load them.

        Raises:
            LedgerUnavailable: That is not known.
        """
        asked, workers = self._known
        if time.monotonic() - asked > FRESH_SECONDS:
            found = self._runner.run(self._ledger.workers())
            workers = tuple(found)
            self._known = (time.monotonic(), workers)
        return able([worker for worker in workers if worker.owner != self._owner], models, queue)


def able(workers: Collection[WorkerInfo], models: Collection[str], queue: str) -> bool:
    """Whether one of the workers serves a queue and has all of these models, or can load them.

    A model without a version is one that no worker had when its job began: whoever has any version of it will do.
    """
    pool = queue.removeprefix("classify.").rpartition(".")[0]
    return any(pool in worker.pools and all(_has(worker, model) for model in models) for worker in workers)


def _has(worker: WorkerInfo, model: str) -> bool:
    if model in worker.models or model in worker.loadable:
        return True
    return "@" not in model and model in {key.partition("@")[0] for key in worker.models}
