"""The one script of the transport: its arguments, and its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from classifleet.config.brokers import woken

GARBAGE_KEPT: Final = 1000  # messages
GARBAGE_BYTES: Final = 2048  # of each; enough to see who wrote it
MESSAGE_BYTES: Final = 256 << 10  # ours have under 1 KiB

SOURCE: Final = (files(__package__) / "turn.lua").read_text()
SHA1: Final = hashlib.sha1(SOURCE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Turn:
    """What one call of the script shall do."""

    nonce: str = ""
    acked: Sequence[str] = ()
    handed_back: Sequence[str] = ()
    parked: Sequence[str] = ()
    kept: Sequence[str] = ()
    restore: int = 0
    free: int = 0
    limits: Sequence[tuple[str, int]] = ()  # queue and free slots of its lane, first served first

    def arguments(self, prefix: str, visibility_ms: int) -> list[str | int]:
        """The number of keys, the keys, and what follows them in EVAL and EVALSHA."""
        keys = [f"{prefix}reserved", f"{prefix}deadlines", f"{prefix}garbage"]
        for queue, _ in self.limits:
            keys += [prefix + queue, prefix + woken(queue)]
        arguments: list[str | int] = [prefix, visibility_ms, self.nonce, GARBAGE_KEPT, GARBAGE_BYTES, MESSAGE_BYTES]
        # Each goes to the front of its queue: the oldest must be the last.
        for tags in (self.acked, self.handed_back[::-1], self.parked, self.kept):
            arguments += [len(tags), *tags]
        arguments += [self.restore, self.free]
        for limit in self.limits:
            arguments += limit
        return [len(keys), *keys, *arguments]


@dataclass(frozen=True, slots=True)
class Reserved:
    """A message that is now this worker's."""

    tag: str
    queue: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call of the script did."""

    restored: int
    oversized: int
    left: dict[str, int]
    reserved: list[Reserved]


def read(turn: Turn, reply: Any) -> Answer:
    """The script's reply, as bytes from redis-py."""
    restored, oversized, left, flat = reply
    names = [queue for queue, _ in turn.limits]
    triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return Answer(
        restored,
        oversized,
        dict(zip(names, left, strict=True)),
        [Reserved(tag.decode(), names[number], body) for tag, number, body in triples],
    )
