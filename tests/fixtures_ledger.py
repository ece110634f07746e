"""Fixture `bench`: the ledger on an empty Redis, with short ways to say what its tests say often."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest

from classifleet.config import KEY_TABLE, Keys, Settings
from classifleet.ledger import Call, Commit, Lease, Ledger, Put, SyncRunner, Tally, connect, read_depth
from tests.conftest import SettingsFactory
from tests.support import wait_until

T = TypeVar("T")
QUEUE = "classify.default.bulk"
LONG_MS = 60_000
SHORT_MS = 30
TTL_SECONDS = 500
REQUEST = "request-digest"
LATEST = {"imagenet": "3"}


class Bench:
    """A ledger with short ways to say what the tests say often."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.ledger_url()
        self.keys = Keys(settings.namespace)
        self.ledger = Ledger(self.keys)
        self.redis: Any = connect(settings)
        self.runner = SyncRunner(self.redis, self.url)

    def run(self, call: Call[T]) -> T:
        return self.runner.run(call)

    def put(self, job: str, chunk: str = "", *, images: int = 2, **changes: Any) -> Put:
        arguments: dict[str, Any] = {
            "header": head(),
            "request": REQUEST,
            "chunk": chunk,
            "images": images if chunk else 0,
            "payload": b'{"items":[]}',
            "digest": digest(chunk) if chunk else "",
            "window": 1000,
        }
        return self.run(self.ledger.put(job, **{**arguments, **changes})).outcome

    def seal(self, job: str) -> Put:
        return self.put(job, header=None, seal=True)

    def begin(self, job: str, chunk: str, owner: str = "w1", *, lease_ms: int = LONG_MS, **changes: Any) -> Lease:
        """Begin this very chunk: without a queue, no other is taken instead."""
        arguments: dict[str, Any] = {"latest": LATEST, "queue": "", "grant": uuid.uuid4().hex}
        return self.run(self.ledger.begin(job, chunk, owner, lease_ms=lease_ms, **{**arguments, **changes}))

    def commit(
        self, job: str, chunk: str, attempt: int = 1, *, images: int = 2, **changes: Any
    ) -> tuple[Commit, bool]:
        return self.run(self.ledger.commit(job, chunk, attempt, **{"tally": Tally(ok=images), **changes}))

    def finished(self, job: str, chunks: int = 1) -> None:
        """A job of so many chunks, all committed, sealed."""
        for index in range(chunks):
            self.put(job, str(index))
            self.commit(job, str(index), self.begin(job, str(index)).attempt, records=[("a", b"{}")])
        self.seal(job)

    def job(self, job: str) -> dict[str, str]:
        return self.run(self.ledger.job(job))

    def counts(self, job: str) -> tuple[int, ...]:
        """Accepted images, chunks, queued chunks, done images."""
        fields = self.job(job)
        return tuple(int(fields[name]) for name in ("accepted", "chunks", "queued", "done"))

    def images(self) -> tuple[int, int, int]:
        """The queue's images: queued, leased, done."""
        depth = read_depth(self.runner.run_all(self.ledger.depth(QUEUE)))
        return depth.queued_images, depth.leased_images, depth.done_images

    def members(self, part: str) -> list[str]:
        return [member.decode() for member in self.redis.zrange(self.keys.queue(QUEUE, part), 0, -1)]

    def names(self) -> set[str]:
        """All keys, without the namespace's prefix."""
        names = {name.decode() for name in self.redis.keys("*")}
        assert all(name.startswith(self.keys.prefix) for name in names)
        return {name.removeprefix(self.keys.prefix) for name in names}

    def dump(self) -> dict[str, Any]:
        """All that the ledger holds, except for times."""
        read = {
            b"hash": self.redis.hgetall,
            b"list": lambda key: self.redis.lrange(key, 0, -1),
            b"string": self.redis.get,
        }
        read |= {
            b"zset": lambda key: self.redis.zrange(key, 0, -1),
            b"set": lambda key: sorted(self.redis.smembers(key)),
        }
        found = {key.decode(): read[self.redis.type(key)](key) for key in self.redis.keys("*")}
        for value in found.values():
            if isinstance(value, dict):
                value.pop(b"last_seen", None)
        return found


def head(**changes: str) -> dict[str, str]:
    header = {
        "queue": QUEUE,
        "models": '["imagenet", "nsfw@2"]',
        "ttl_seconds": str(TTL_SECONDS),
        "reply_to": "client-1",
    }
    return {**header, **changes}


def digest(text: str) -> str:
    return text.encode().hex().ljust(16, "0")[:16]


def undocumented(names: set[str]) -> set[str]:
    rows = [
        re.sub(r"<(\w+)>", "[^:]+", re.escape(row.pattern).replace("\\<", "<").replace("\\>", ">"))
        for row in KEY_TABLE
    ]
    return {name for name in names if not any(re.fullmatch(row, name) for row in rows)}


def wait_for_next_millisecond(bench: Bench) -> None:
    """Until the server's clock has moved, so that what comes next has a later time."""
    now = bench.run(bench.ledger.now())
    wait_until(lambda: bench.run(bench.ledger.now()) > now, "the next millisecond")


@pytest.fixture
def bench(settings: SettingsFactory) -> Iterator[Bench]:
    """A ledger on an empty database. After each test every key must be in the documented table, with its type."""
    bench = Bench(settings())
    yield bench
    assert undocumented(bench.names()) == set()
    bench.runner.close()
