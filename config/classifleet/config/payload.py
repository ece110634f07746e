"""Payload v1: what a producer asks of the fleet, one chunk of images at a time.

The payload lives once, in the ledger. The Celery message that wakes a worker carries only the chunk's name.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from classifleet.config.errors import InvalidRequest

PAYLOAD_VERSION: Final = 1
MESSAGE_VERSION: Final = 1
TASK_NAME: Final = "classifleet.classify"

MAX_CHUNK_ITEMS: Final = 256
MAX_ID_CHARS: Final = 1024
MAX_META_ITEMS: Final = 16
MAX_META_CHARS: Final = 256
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Lane = Literal["interactive", "bulk"]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
MetaText = Annotated[str, StringConstraints(max_length=MAX_META_CHARS)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*(@[1-9][0-9]*)?$")]


class _Wire(BaseModel):
    """A part of the payload: frozen, and an unknown field is a newer schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Wire):
    """One image: the caller's id, where it is, and a small map that comes back with its record."""

    id: ItemId
    ref: str
    meta: Annotated[dict[MetaText, MetaText], Field(max_length=MAX_META_ITEMS)] | None = None


class Options(_Wire):
    """What to answer: the `top_k` best classes, or all of them; `threshold` drops confidences below it."""

    top_k: Annotated[int, Field(ge=1, le=10_000)] = 5
    scores: Literal["top", "all"] = "top"
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class Payload(_Wire):
    """One chunk of a job."""

    v: Literal[1] = PAYLOAD_VERSION
    job: str
    chunk: str
    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_CHUNK_ITEMS)]
    models: Annotated[list[ModelName], Field(min_length=1, max_length=16)]
    options: Options = Options()
    deadline_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    sink: str | None = None

    @field_validator("items")
    @classmethod
    def _ids_are_unique(cls, items: list[Item]) -> list[Item]:
        if len({item.id for item in items}) != len(items):
            ids = [item.id for item in items]
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"the id {twice!r} is given to two images")
        return items

    def encode(self) -> bytes:
        """The payload as it lies in the ledger."""
        return self.model_dump_json(exclude_none=True).encode()

    def digest(self) -> str:
        """Identifies the request: equal for a repetition, however long that one may take."""
        same = self.model_dump_json(exclude={"deadline_seconds"}, exclude_none=True)
        return hashlib.sha256(same.encode()).hexdigest()[:16]


class Message(TypedDict):
    """The keyword arguments of the Celery task: which chunk to begin."""

    v: int
    job: str
    chunk: str


def chunk_name(number: int) -> str:
    """The name of a job's chunk; names sort as their numbers do."""
    return f"{number:08d}"


def message(job: str, chunk: str) -> Message:
    """The wake-up call for one chunk."""
    return {"v": MESSAGE_VERSION, "job": job, "chunk": chunk}


def check_job_id(job: str) -> str:
    """Return the id, which is also a Redis key's and an object's name.

    Raises:
        InvalidRequest: It has characters that a key or a path must not have.
    """
    if not JOB_ID.fullmatch(job):
        raise InvalidRequest(
            f"the job id {job[:140]!r} is not valid: use 1 to 128 letters, digits, '.', '_' or '-', "
            "a letter or digit first"
        )
    return job


def explain(error: ValidationError) -> str:
    """What pydantic found, in one line: where and why."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
    )


def make_payload(**fields: object) -> Payload:
    """Build a payload.

    Raises:
        InvalidRequest: Naming the field and what is wrong with it.
    """
    try:
        return Payload.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None
