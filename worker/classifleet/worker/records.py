"""Records: made, encoded and counted. Pure functions, without torch or numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic_core import to_json

from classifleet.config import ImageError, ImageInfo, Item, ModelAnswer, Payload, Record, Timings, redact
from classifleet.config.record import RECORD_VERSION
from classifleet.ledger import Tally


@dataclass(frozen=True, slots=True)
class Finished:
    """The records of a chunk, encoded, and how they count."""

    records: Sequence[tuple[str, bytes]]
    tally: Tally


def make_record(
    item: Item,
    payload: Payload,
    *,
    attempt: int,
    worker: str,
    status: Literal["ok", "partial", "error"],
    error: ImageError | None,
    image: ImageInfo | None = None,
    models: dict[str, ModelAnswer] | None = None,
    timings: Timings | None = None,
    finished_at: datetime | None = None,
) -> Record:
    """A record from its parts; absent parts are left out. It is finished now, unless something else is said."""
    record = Record(
        v=RECORD_VERSION,
        id=item.id,
        job=payload.job,
        ref=redact(item.ref),
        status=status,
        models=models or {},
        attempt=attempt,
        worker=worker,
        timings_ms=_rounded(timings or {}),
        finished_at=(finished_at or datetime.now(UTC)).isoformat(timespec="milliseconds"),
    )
    if item.meta:
        record["meta"] = item.meta
    if error is not None:
        record["error"] = error.as_info()
    if image is not None:
        record["image"] = image
    return record


def _rounded(timings: Timings) -> Timings:
    rounded = {stage: round(ms, 1) for stage, ms in cast("dict[str, float]", timings).items()}
    return cast("Timings", rounded)


def failed_records(payload: Payload, error: ImageError, *, attempt: int, worker: str) -> list[Record]:
    """The same error for every image of a chunk. They share what is equal: a million of them are made at a time."""
    same = make_record(payload.items[0], payload, attempt=attempt, worker=worker, status="error", error=error)
    same.pop("meta", None)
    return [_with_item(same, item) for item in payload.items]


def _with_item(same: Record, item: Item) -> Record:
    record: Record = {**same, "id": item.id, "ref": redact(item.ref)}
    if item.meta:
        record["meta"] = item.meta
    return record


def finish(records: Sequence[Record]) -> Finished:
    """Encode the records and count their outcomes."""
    by_status = Counter(record["status"] for record in records)
    codes = Counter(record["error"]["code"] for record in records if "error" in record)
    encoded = [(record["id"], to_json(record)) for record in records]
    return Finished(encoded, Tally(by_status["ok"], by_status["partial"], by_status["error"], codes))
