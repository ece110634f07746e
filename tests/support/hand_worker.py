"""A worker without models: it answers what is queued when a test tells it to, over the real ledger."""

from __future__ import annotations

import json
import uuid
from types import TracebackType
from typing import Any, Final, Self

from classifleet.config import Keys, Payload, Settings
from classifleet.ledger import Begin, Ledger, SyncRunner, Tally, connect

OWNER: Final = "hand-worker"
LEASE_MS: Final = 60_000
LABEL: Final = "answered by hand"


class HandWorker:
    """Looks at the ledger alone, so it also finds chunks whose message was lost."""

    def __init__(self, settings: Settings) -> None:
        self._redis: Any = connect(settings)
        self._runner = SyncRunner(self._redis, settings.ledger_url())
        self._keys = Keys(settings.namespace)
        self._ledger = Ledger(self._keys)

    def answer(self, most: int = -1) -> int:
        """Answer the oldest queued chunks of every queue; how many."""
        answered = 0
        for queue in self._runner.run(self._ledger.queues()):
            for member in self._redis.zrange(self._keys.queue(queue, "queued"), 0, most - 1 if most > 0 else -1):
                job, chunk = member.decode().split("/", 1)
                answered += self._answer(job, chunk, queue)
        return answered

    def _answer(self, job: str, chunk: str, queue: str) -> bool:
        grant = uuid.uuid4().hex
        lease = self._runner.run(
            self._ledger.begin(job, chunk, OWNER, lease_ms=LEASE_MS, latest={}, queue=queue, grant=grant)
        )
        if lease.outcome is not Begin.RUN:
            return False  # of a cancelled job, and there is nothing else
        job, chunk = lease.job, lease.chunk
        payload = Payload.model_validate_json(lease.payload)
        records = [(item.id, _record(job, item.id)) for item in payload.items]
        tally = Tally(ok=len(records))
        self._runner.run(self._ledger.commit(job, chunk, lease.attempt, tally, records=records))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._runner.close()


def _record(job: str, image_id: str) -> bytes:
    answer = {
        "status": "ok",
        "kind": "single",
        "predictions": [{"class": LABEL, "class_id": 0, "confidence": 1.0}],
        "truncated": False,
        "top": LABEL,
        "confidence": 1.0,
    }
    record = {"v": 1, "id": image_id, "job": job, "ref": "", "status": "ok", "models": {"m@1": answer}}
    return json.dumps({**record, "attempt": 1, "worker": OWNER, "timings_ms": {}, "finished_at": ""}).encode()
