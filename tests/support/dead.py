"""A worker that fails: it commits what is queued as dead letters, over the real ledger."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from classifleet.config import Keys, Payload, Settings, redact
from classifleet.ledger import DeadLetter, Lease, Ledger, SyncRunner, Tally, connect

OWNER: Final = "worker-1"
LEASE_MS: Final = 60_000
TTL_MS: Final = 3_600_000


class FailingWorker:
    """Made of settings; `redis`, `ledger` and `run` are there to look at, and to break, what it leaves."""

    def __init__(self, settings: Settings) -> None:
        self.redis: Any = connect(settings)
        self.keys = Keys(settings.namespace)
        self.ledger = Ledger(self.keys)
        self._runner = SyncRunner(self.redis, settings.ledger_url())
        self.run = self._runner.run

    def fail(self, code: str = "internal", *, died: int = 0, age: timedelta = timedelta(), **body: Any) -> list[str]:
        """Fail every queued chunk after `died` deaths; the letters' keys, in the order of the images."""
        keys: list[str] = []
        for queue in self.run(self.ledger.queues()):
            for member in self.redis.zrange(self.keys.queue(queue, "queued"), 0, -1):
                job, chunk = member.decode().split("/", 1)
                for _ in range(died):
                    self.begin(job, chunk, queue, lease_ms=0)
                    self.run(self.ledger.expire_leases(queue, limit=10))
                keys += self._commit(self.begin(job, chunk, queue), code, age, body)
        return keys

    def begin(self, job: str, chunk: str, queue: str, lease_ms: int = LEASE_MS) -> Lease:
        """Take a chunk, and do nothing with it."""
        grant = uuid.uuid4().hex
        call = self.ledger.begin(job, chunk, OWNER, lease_ms=lease_ms, latest={}, queue=queue, grant=grant)
        lease: Lease = self.run(call)
        return lease

    def _commit(self, lease: Lease, code: str, age: timedelta, body: Mapping[str, Any]) -> list[str]:
        payload = Payload.model_validate_json(lease.payload)
        error = {"code": code, "message": f"it went wrong: {code}", "retryable": True}
        letters = []
        records = []
        for index, item in enumerate(payload.items):
            letter = {
                **json.loads(payload.model_dump_json(exclude={"items", "v"})),
                "item": json.loads(item.model_dump_json(exclude_none=True)),
                "lane": "bulk",
                "error": error,
                "attempt": lease.attempt,
                "worker": OWNER,
                "finished_at": (datetime.now(UTC) - age).isoformat(timespec="milliseconds"),
                **body,
            }
            key = f"{lease.job}.{lease.chunk}.{index}"
            letters.append(DeadLetter(key, code, item.ref, json.dumps(letter)))
            record = {"v": 1, "id": item.id, "job": lease.job, "ref": redact(item.ref), "status": "error"}
            record |= {"error": error, "models": {}, "attempt": lease.attempt, "worker": OWNER, "timings_ms": {}}
            records.append((item.id, json.dumps({**record, "finished_at": ""}).encode()))
        count = len(letters)
        call = self.ledger.commit(
            lease.job,
            lease.chunk,
            lease.attempt,
            Tally(failed=count, codes={code: count}),
            records=records,
            dead=letters,
            dead_ttl_ms=TTL_MS,
            dead_most=1000,
        )
        self.run(call)
        return [letter.key for letter in letters]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._runner.close()
