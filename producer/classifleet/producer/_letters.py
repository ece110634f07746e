"""What a dead letter is: an image that failed for a reason of ours, as the ledger keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict

from classifleet.config import InvalidRequest, Lane, Options, redact
from classifleet.config.payload import Item

UNREADABLE: Final = "this classifleet cannot read the letter; a newer one wrote it"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt before the last: its number, the worker, how it ended (`died`, …), and when."""

    attempt: int
    worker: str
    ended: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An image that failed for a reason of ours: `poison`, `model_failed` or `internal`.

    Attributes:
        key: Names the letter.
        job: The job that the image was of; `chunk` and `id` say where in it.
        code: The error's code; `message` has its words.
        ref: Where the image is, redacted as in records.
        models: As they were asked for, like `options`, `deadline_seconds`, `sink` and `lane`.
        attempt: The number of the last attempt, by `worker`; `history` has those before.
        finished_at: When the image got its record.
        requeued_as: The job in which it was tried again; None if it was not.
        readable: False if a newer classifleet wrote it: then only `key`, `job`, `chunk` and `code` are known.
    """

    key: str
    job: str
    chunk: str
    code: str
    id: str = ""
    ref: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_seconds: float | None = None
    sink: str | None = None
    lane: Lane = "bulk"
    message: str = UNREADABLE
    attempt: int = 0
    worker: str = ""
    finished_at: datetime | None = None
    history: tuple[Attempt, ...] = ()
    requeued_as: str | None = None
    readable: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; times as ISO 8601."""
        found = asdict(self)
        found["finished_at"] = self.finished_at and self.finished_at.isoformat()
        found["history"] = [asdict(one) | {"at": one.at.isoformat()} for one in self.history]
        return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant. What is None does not matter; a model without a version fits all its versions."""

    job: str | None = None
    code: str | None = None
    model: str | None = None
    since: datetime | None = None

    def __call__(self, letter: DeadLetter) -> bool:
        """Whether this letter is."""
        return (
            self.job in (None, letter.job)
            and self.code in (None, letter.code)
            and (self.model is None or any(self.model in (m, m.partition("@")[0]) for m in letter.models))
            and (self.since is None or (letter.finished_at is not None and letter.finished_at >= self.since))
        )


def make_wanted(
    *,
    job: str | None = None,
    code: str | None = None,
    model: str | None = None,
    since: timedelta | datetime | None = None,
) -> Wanted:
    """From the arguments of `Fleet.dead_letters`.

    Raises:
        InvalidRequest: `since` is a datetime without a time zone.
    """
    if isinstance(since, datetime) and since.tzinfo is None:
        raise InvalidRequest("since has no time zone: use datetime.now(UTC) - …")
    return Wanted(job, code, model, datetime.now(UTC) - since if isinstance(since, timedelta) else since)


class _Error(BaseModel):
    code: str
    message: str = ""


class Body(BaseModel):
    """What a worker's commit keeps of the image; unlike a letter, it has the reference as it was given."""

    model_config = ConfigDict(frozen=True)

    job: str
    chunk: str
    item: Item
    models: list[str]
    options: Options = Options()
    deadline_seconds: float | None = None
    sink: str | None = None
    lane: Lane = "bulk"
    error: _Error
    attempt: int
    worker: str
    finished_at: AwareDatetime


def parse_letter(key: str, values: Mapping[str, str]) -> tuple[DeadLetter, Body | None]:
    """A letter from its hash, and what is needed to try it again (None if that cannot be read)."""
    requeued_as = values.get("requeued_as")
    try:
        body = Body.model_validate_json(values["letter"])
        history = _history(values.get("history", ""))
    except (ValueError, KeyError, TypeError):  # ValidationError is one: said in the letter's message
        job, chunk, *_ = (*key.rsplit(".", 2), "")
        return DeadLetter(key, job, chunk, values.get("code", ""), requeued_as=requeued_as), None
    letter = DeadLetter(
        key=key,
        job=body.job,
        chunk=body.chunk,
        code=body.error.code,
        id=body.item.id,
        ref=redact(body.item.ref),
        meta=dict(body.item.meta or {}),
        models=tuple(body.models),
        options=body.options.model_dump(exclude_none=True),
        deadline_seconds=body.deadline_seconds,
        sink=body.sink,
        lane=body.lane,
        message=body.error.message,
        attempt=body.attempt,
        worker=body.worker,
        finished_at=body.finished_at,
        history=history,
        requeued_as=requeued_as,
        readable=True,
    )
    return letter, body


def _history(lines: str) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(one["attempt"], one["worker"], one["ended"], datetime.fromtimestamp(one["at"] / 1000, UTC))
        for one in map(json.loads, lines.splitlines())
    )
