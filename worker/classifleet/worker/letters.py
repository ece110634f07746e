"""Dead letters: images that failed for a reason of ours, with all that is needed to try them again. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from classifleet.config import ErrorCode, Item, Lane, Payload, Record
from classifleet.ledger import DeadLetter


def dead_letters(payload: Payload, records: Sequence[Record], lane: Lane) -> list[DeadLetter]:
    """A letter for each image whose error code says so; records are in the order of the payload's images."""
    return [
        DeadLetter(
            key=f"{payload.job}.{payload.chunk}.{index}",
            code=record["error"]["code"],
            ref=item.ref,
            body=json.dumps(_body(payload, item, record, lane), ensure_ascii=False, separators=(",", ":")),
        )
        for index, (item, record) in enumerate(zip(payload.items, records, strict=True))
        if "error" in record and ErrorCode(record["error"]["code"]).spec.dead_letter
    ]


def _body(payload: Payload, item: Item, record: Record, lane: Lane) -> dict[str, Any]:
    return {
        "job": payload.job,
        "chunk": payload.chunk,
        "item": item.model_dump(exclude_none=True),
        "models": payload.models,
        "options": payload.options.model_dump(exclude_none=True),
        "deadline_seconds": payload.deadline_seconds,
        "sink": payload.sink,
        "lane": lane,
        "error": record["error"],
        "attempt": record["attempt"],
        "worker": record["worker"],
        "finished_at": record["finished_at"],
    }
