"""Records for chunks that no worker will answer: those of cancelled jobs, and those whose deadline passed unread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from pydantic import ValidationError

from classifleet.config import ErrorCode, ImageError, Payload, StorageError, StorageUnavailable
from classifleet.config.payload import Item
from classifleet.ledger import Call
from classifleet.ledger.values import MANUAL_ATTEMPT
from classifleet.worker.reconciler.context import Context
from classifleet.worker.records import Finished, failed_records, finish
from classifleet.worker.sink import part_name

Held = tuple[str, Mapping[str, str]]  # a chunk, and of its fields in the ledger at least NEEDED
log = structlog.get_logger(__name__)
NEEDED: Final = ("payload", "digest", "n")


def answer(context: Context, job: str, fields: Mapping[str, str], held: Sequence[Held], code: ErrorCode) -> None:
    """Commit the same error for every image of these chunks; where a worker was faster, its commit stands.

    Raises:
        StorageError, StorageUnavailable: The sink did not take a part; those before it may be written. It is not
            waited for for ever (`sink_patience_seconds`): then the records go to Redis.
        LedgerUnavailable: Some may be committed.
    """
    error = ImageError(code)
    payloads = [readable_payload(job, chunk, chunk_fields) for chunk, chunk_fields in held]
    finished = [finish(failed_records(p, error, attempt=MANUAL_ATTEMPT, worker=context.owner)) for p in payloads]
    digests = [chunk_fields.get("digest", "") for _, chunk_fields in held]
    sink = fields.get("sink", "")
    writes = bool(sink) and context.writes_to(sink)
    try:
        for payload, each, digest in zip(payloads, finished, digests, strict=True) if writes else ():
            name = part_name(payload.chunk, MANUAL_ATTEMPT, digest)
            context.sinks.write_part(sink, job, name, (record for _, record in each.records))
    except (StorageError, StorageUnavailable) as refusal:
        if not context.gives_up_sink(job, [chunk for chunk, _ in held]):
            raise
        log.error("sink given up; records in Redis", job=job, sink=sink, chunks=len(held), error=str(refusal))
        writes = False
    calls = [_commit(context, *each, writes) for each in zip(payloads, finished, digests, strict=True)]
    context.runner.run_all(calls)
    for payload in payloads:
        context.claims.delete(payload)


def _commit(context: Context, payload: Payload, finished: Finished, digest: str, writes: bool) -> Call[Any]:
    part = part_name(payload.chunk, MANUAL_ATTEMPT, digest) if writes else ""
    records = () if writes else finished.records
    return context.ledger.commit(
        payload.job, payload.chunk, MANUAL_ATTEMPT, finished.tally, part=part, records=records, digest=digest
    )


def readable_payload(job: str, chunk: str, fields: Mapping[str, str]) -> Payload:
    """The payload, or of one that is not understood the ids and references of its images; of garbage, made-up ids."""
    try:
        return Payload.model_validate_json(fields.get("payload", ""))
    except ValidationError:
        items = _items(fields.get("payload", ""), int(fields.get("n", "1")), chunk)
        return Payload.model_construct(job=job, chunk=chunk, items=items, models=[])


def _items(text: str, count: int, chunk: str) -> list[Item]:
    try:
        raw = json.loads(text)["items"]
        items = [Item.model_construct(id=str(item["id"]), ref=str(item["ref"]), meta=None) for item in raw]
    except (ValueError, TypeError, KeyError):
        items = []
    return items or [Item.model_construct(id=f"{chunk}/{i}", ref="", meta=None) for i in range(count)]
