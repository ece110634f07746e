"""How the ledger's answers are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from classifleet.ledger.values import Begin, Commit, Lease, Part, Put, PutReply, QueueDepth, WorkerFigures, WorkerInfo

RATE_SLOT_MS: Final = 10_000  # as in lua/prelude.lua
RATE_WINDOW_SLOTS: Final = 6


def read_depth(answers: Sequence[Any]) -> QueueDepth:
    """Put the answers of `Ledger.depth` together."""
    queued, leased, parked, images, rates, oldest_ms, now_ms = answers
    return QueueDepth(
        queued_chunks=queued,
        leased_chunks=leased,
        parked_chunks=parked,
        queued_images=int(images.get("queued", 0)),
        leased_images=int(images.get("leased", 0)),
        parked_images=int(images.get("parked", 0)),
        done_images=int(images.get("done", 0)),
        oldest_seconds=0.0 if oldest_ms is None else max(0.0, (now_ms - oldest_ms) / 1000),
        accepted_rate=_rate(rates, "accepted", now_ms),
        done_rate=_rate(rates, "done", now_ms),
    )


def _rate(rates: Mapping[str, str], what: str, now_ms: int) -> float:
    """Images per second over the last full slots, about a minute of them."""
    current = now_ms // RATE_SLOT_MS
    total = 0
    for field_name, value in rates.items():
        slot, images = map(int, value.split())
        if field_name.startswith(f"{what}:") and current - RATE_WINDOW_SLOTS <= slot < current:
            total += images
    return total / (RATE_WINDOW_SLOTS * RATE_SLOT_MS / 1000)


def read_put(reply: list[bytes]) -> PutReply:
    outcome = Put(reply[0].decode())
    if outcome is not Put.FULL:
        return PutReply(outcome)
    return PutReply(outcome, reply[1].decode(), int(reply[2]), reply[3].decode())


def flat(leases: Sequence[tuple[str, str, int]]) -> list[str | int]:
    return [value for lease in leases for value in lease]


def read_commit(reply: tuple[bytes, int]) -> tuple[Commit, bool]:
    return Commit(reply[0].decode()), bool(reply[1])


def read_lease(reply: list[Any], grant: str) -> Lease:
    outcome = Begin(reply[0].decode())
    if outcome not in (Begin.RUN, Begin.EXPIRED):
        return Lease(outcome)
    _, job, chunk, payload, attempt, deaths, waited_ms, left_ms, models, lone_deaths, digest, trace = reply
    return Lease(
        outcome,
        job.decode(),
        chunk.decode(),
        payload,
        attempt,
        deaths,
        waited_ms,
        int(float(left_ms)) if left_ms else None,
        tuple(json.loads(models)),
        tuple(json.loads(lone_deaths)),
        digest.decode(),
        trace.decode(errors="replace"),
        grant,
    )


def read_workers(reply: list[tuple[bytes, int]]) -> list[WorkerInfo]:
    return sorted((_read_worker(*each) for each in reply), key=lambda worker: worker.owner)


def _read_worker(about: bytes, silent_ms: int) -> WorkerInfo:
    told = json.loads(about)  # perhaps by a newer version, which says more
    pools, models = tuple(told["pools"]), tuple(told["models"])
    names = {field.name for field in fields(WorkerFigures)}
    figures = {name: value for name, value in told.get("figures", {}).items() if name in names}
    return WorkerInfo(
        told["owner"],
        pools,
        models,
        told["version"],
        silent_ms / 1000,
        WorkerFigures(**figures),
        tuple(told.get("loadable", ())),  # an older version does not say it
    )


def read_members(reply: list[bytes]) -> list[tuple[str, str]]:
    pairs = (member.decode().split("/", 1) for member in reply)
    return [(job, chunk) for job, chunk in pairs]


def read_parked_images(reply: list[bytes]) -> list[tuple[str, str, str]]:
    names = (member.decode().split(":") for member in reply)
    return [(job, chunk, sha256) for job, chunk, sha256, _ in names]


def read_strings(reply: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in reply]


def read_map(reply: Mapping[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode("utf-8", "replace") for key, value in reply.items()}


def read_named(names: Sequence[str], reply: Sequence[bytes | None]) -> dict[str, str]:
    found = zip(names, reply, strict=True)
    return {name: value.decode("utf-8", "replace") for name, value in found if value is not None}


def read_first_score(reply: list[Any]) -> float | None:
    if not reply:
        return None
    first = reply[0]
    return float(first[1] if isinstance(first, (tuple, list)) else reply[1])


def read_time(reply: tuple[int, int]) -> int:
    return reply[0] * 1000 + reply[1] // 1000


def read_part(chunk: str, reply: bytes | None) -> Part | None:
    if reply is None:
        return None
    _, attempt, _, ok, partial, failed, name = reply.decode().split(" ", 6)
    return Part(chunk, int(attempt), int(ok), int(partial), int(failed), name)
