"""Fleet-wide duties, done by whichever process holds them.

Leases that ran out, messages that the broker lost, and the ends of jobs.
It imports no torch, so that a process without a model can do it too.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pydantic import ValidationError

from classifleet.config import (
    ClassifleetError,
    ErrorCode,
    ImageError,
    Payload,
    Record,
    StorageError,
    Unavailable,
    message,
)
from classifleet.config.celery_app import Publisher
from classifleet.ledger import Ledger, Part, SyncRunner, read_depth
from classifleet.ledger.calls import MANUAL_ATTEMPT
from classifleet.worker.instruments import REDELIVERIES
from classifleet.worker.records import failed_records, finish
from classifleet.worker.sink import Sinks, part_name

log = structlog.get_logger(__name__)
DUTY: Final = "reconciler"
INTERVAL_SECONDS: Final = 1.0
DUTY_LEASE_SECONDS: Final = 15.0
CHUNKS_PER_ROUND: Final = 100
ROUNDS_MISSING: Final = 10
JOBS_PER_ROUND: Final = 16
PAGE: Final = 256


class Reconciler:
    """Looks after the ledger once a second while it holds the duty."""

    def __init__(self, ledger: Ledger, runner: SyncRunner, publisher: Publisher, sinks: Sinks, owner: str) -> None:
        self._ledger = ledger
        self._runner = runner
        self._publisher = publisher
        self._sinks = sinks
        self._owner = owner
        self._missing: dict[str, deque[int]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="classifleet-reconciler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the round that it is in."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_SECONDS):
            try:
                self.round()
            except Unavailable as error:
                log.warning("reconciler waits", error=str(error))
            except ClassifleetError as error:
                log.error("reconciler", error=str(error))

    def round(self) -> bool:
        """One round; false if another process has the duty."""
        if not self._hold():
            return False
        for queue in self._runner.run(self._ledger.queues()):
            self._expire(queue)
            self._publish_lost(queue)
        for job in self._runner.run(self._ledger.finalisable(JOBS_PER_ROUND)):
            self._hold()
            self._end(job)
        return True

    def _hold(self) -> bool:
        return self._runner.run(self._ledger.hold(DUTY, self._owner, lease_ms=int(DUTY_LEASE_SECONDS * 1000)))

    def _expire(self, queue: str) -> None:
        back = self._runner.run(self._ledger.expire_leases(queue, limit=CHUNKS_PER_ROUND))
        if back:
            REDELIVERIES.inc(len(back))
            log.warning("leases ran out; queued again", queue=queue, chunks=len(back))
            self._publisher.publish([(queue, message(job, chunk)) for job, chunk in back])

    def _publish_lost(self, queue: str) -> None:
        """Publish again what is queued in the ledger and missing from the broker round after round.

        A message that was published twice is harmless, so it need not be known which ones are missing: the oldest
        are published, and those that are truly lost become the oldest.
        """
        depth = read_depth(self._runner.run_all(self._ledger.depth(queue)))
        missing = depth.queued_chunks - self._publisher.depth(queue) if depth.queued_chunks else 0
        history = self._missing.setdefault(queue, deque(maxlen=ROUNDS_MISSING))
        history.append(missing)
        if len(history) < ROUNDS_MISSING or min(history) <= 0:
            return
        before_ms = self._runner.run(self._ledger.now()) - int(ROUNDS_MISSING * INTERVAL_SECONDS * 1000)
        count = min(min(history), CHUNKS_PER_ROUND)
        lost = self._runner.run(self._ledger.oldest_queued(queue, before_ms, count))
        if lost:
            history.clear()
            REDELIVERIES.inc(len(lost))
            log.warning("messages missing from the broker; published again", queue=queue, chunks=len(lost))
            self._publisher.publish([(queue, message(job, chunk)) for job, chunk in lost])

    def _end(self, job: str) -> None:
        fields = self._runner.run(self._ledger.job(job))
        if not fields or "finished_at" in fields:
            self._runner.run(self._ledger.finish(job))
            return
        if fields["state"] == "cancelled":
            self._answer_cancelled(job, fields)
            fields = self._runner.run(self._ledger.job(job))
        if fields["done"] != fields["accepted"]:
            return  # chunks of a cancelled job that are at work: their commits come, or their leases run out
        try:
            self._finish(job, fields)
        except StorageError as error:
            log.error("manifest not written; tried again next round", job=job, error=str(error))

    def _finish(self, job: str, fields: dict[str, str]) -> None:
        parts = list(self._parts(job))
        for part in parts:
            if not part.name:
                self._runner.run(self._ledger.expire_records(job, part.chunk, int(fields["ttl_seconds"])))
        if "sink" in fields and any(part.name for part in parts):
            self._sinks.write_manifest(fields["sink"], job, _summary(fields), [p for p in parts if p.name])
        if self._runner.run(self._ledger.finish(job)):
            log.info("job ended", job=job, state=fields["state"], images=int(fields["done"]))

    def _parts(self, job: str) -> Iterator[Part]:
        offset = 0
        while chunks := self._runner.run(self._ledger.log(job, offset, PAGE)):
            offset += len(chunks)
            self._hold()
            for part in self._runner.run_all([self._ledger.part(job, chunk) for chunk in chunks]):
                if part is not None:
                    yield part

    def _answer_cancelled(self, job: str, fields: dict[str, str]) -> None:
        """Give every image that was still queued its record."""
        offset = 0
        while chunks := self._runner.run(self._ledger.pending(job, offset, PAGE)):
            self._hold()
            hashes = self._runner.run_all([self._ledger.chunk(job, chunk) for chunk in chunks])
            queued = [
                (chunk, held) for chunk, held in zip(chunks, hashes, strict=True) if held.get("state") == "queued"
            ]
            offset += len(chunks) - len(queued)
            for chunk, held in queued:
                self._commit_cancelled(job, chunk, held, fields)

    def _commit_cancelled(self, job: str, chunk: str, held: dict[str, str], fields: dict[str, str]) -> None:
        finished = finish(self._cancelled_records(job, chunk, held))
        part = ""
        if "sink" in fields and _allowed(self._sinks, fields["sink"]):
            part = part_name(chunk, MANUAL_ATTEMPT)
            self._sinks.write_part(fields["sink"], job, part, (record for _, record in finished.records))
        records = () if part else finished.records
        self._runner.run(self._ledger.commit(job, chunk, MANUAL_ATTEMPT, finished.tally, part=part, records=records))

    def _cancelled_records(self, job: str, chunk: str, held: dict[str, str]) -> list[Record]:
        try:
            payload = Payload.model_validate_json(held["payload"])
        except ValidationError:
            # A newer schema: its items are still a list of objects with an id and a ref.
            raw = json.loads(held["payload"])
            items = [{"id": item["id"], "ref": item["ref"]} for item in raw["items"]]
            payload = Payload.model_validate({"job": job, "chunk": chunk, "items": items, "models": raw["models"]})
        return failed_records(payload, ImageError(ErrorCode.CANCELLED), attempt=MANUAL_ATTEMPT, worker=self._owner)


def _allowed(sinks: Sinks, sink: str) -> bool:
    try:
        sinks.require_allowed(sink)
    except ImageError:
        return False
    return True


def _summary(fields: dict[str, str]) -> dict[str, Any]:
    return {
        "state": "cancelled" if fields["state"] == "cancelled" else "done",
        "models": json.loads(fields["models"]),
        "versions": {name[4:]: version for name, version in fields.items() if name.startswith("pin:")},
        "options": json.loads(fields["options"]),
        "images": {name: int(fields[name]) for name in ("accepted", "ok", "partial", "failed")},
        "by_code": {name[5:]: int(count) for name, count in fields.items() if name.startswith("code:")},
        "created_at": _iso(float(fields["created_at"])),
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _iso(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
