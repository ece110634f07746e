"""Looks at the ledger's keys from outside, with a client of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import redis

from classifleet.config import Keys, queue_name

QUEUES = (queue_name("default", "interactive"), queue_name("default", "bulk"))


@dataclass(frozen=True, slots=True)
class AtWork:
    """A chunk under a lease, and the process that holds it."""

    job: str
    chunk: str
    attempt: int
    images: int
    pid: int


class Observer:
    """One arena's ledger."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.client: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=60)
        self.keys = keys

    def at_work(self, pids: Collection[int] | None = None) -> list[AtWork]:
        """Chunks under a lease, those of some processes or all."""
        found = []
        for queue in QUEUES:
            for member in self.client.zrange(self.keys.queue(queue, "leased"), 0, -1):
                job, _, chunk = member.partition("/")
                fields = self.client.hmget(self.keys.chunk(job, chunk), "owner", "attempt", "n")
                owner, attempt, images = fields
                if owner is not None:  # None: committed meanwhile
                    pid = int(owner.split(":")[-2])
                    found.append(AtWork(job, chunk, int(attempt), int(images), pid))
        return [each for each in found if pids is None or each.pid in pids]

    def attempts(self, chunks: Iterable[AtWork]) -> list[int | None]:
        """The attempt that won each chunk; None while there is none."""
        with self.client.pipeline(transaction=False) as pipe:
            for each in chunks:
                pipe.hget(self.keys.parts(each.job), each.chunk)
            return [None if won is None else int(won.split()[1]) for won in pipe.execute()]

    def count(self, state: str) -> int:
        """Images of a state, by the queues' counters."""
        return sum(int(self.client.hget(self.keys.queue(queue, "images"), state) or 0) for queue in QUEUES)

    def chunks(self, state: str) -> int:
        """Chunks of a state: `queued`, `leased` or `parked`."""
        return sum(self.client.zcard(self.keys.queue(queue, state)) for queue in QUEUES)

    def close(self) -> None:
        """Close the client."""
        self.client.close()
