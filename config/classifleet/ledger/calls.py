"""The ledger's operations as values: what to ask of Redis and how to read the answer, but not how to wait for it.

A `Call` is run by `SyncRunner` or `AsyncRunner` (see `runner.py`), so that the protocol is written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from classifleet.config.keys import Keys
from classifleet.ledger import _replies, _scripts
from classifleet.ledger._scripts import Script
from classifleet.ledger.values import Commit, DeadLetter, Discarded, Lease, Parked, Part, PutReply, Tally, WorkerInfo

T = TypeVar("T")
Offer = str | Sequence[tuple[str, float]]
GRANT_CHARACTERS: Final = 8  # that a commit is known by
SILENT_MS: Final = 45_000  # who has been silent for so long is not taken for alive any more


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One question to Redis: a script or a plain command, its arguments, and the reading of its answer.

    What a durable one wrote must survive the loss of the primary, if the setting `durability` says so.
    """

    ask: Script | str
    keys: tuple[str, ...]
    args: tuple[Any, ...]
    read: Callable[[Any], T]
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """Builds the calls of one namespace."""

    keys: Keys

    def put(
        self,
        job: str,
        *,
        header: Mapping[str, str] | None,
        request: str,
        chunk: str = "",
        images: int = 0,
        payload: bytes = b"",
        digest: str = "",
        deadline_ms: int | None = None,
        window: int = 0,
        seal: bool = False,
        limit: int = 0,
        room: int = 0,
        share: float = 0.0,
        trace: str = "",
        expects: int | None = None,
    ) -> Call[PutReply]:
        """Open a job (with a header), add a chunk to it, seal it: any of the three, in this order, atomically.

        A new chunk is refused when its queue would hold more than `limit` images (0: no limit), or when less than
        `1 - share` of Redis' `maxmemory` would be left beside `room` bytes for its records and those of all others.
        `trace` is the submitter's (see `config.tracing`); it is handed out with the chunk's leases.
        A job with fewer chunks than its producer `expects` is not sealed (None: it does not know).
        """
        return self._script(
            _scripts.PUT,
            (
                job,
                json.dumps(header) if header else "",
                request,
                chunk,
                images,
                payload,
                digest,
                "" if deadline_ms is None else deadline_ms,
                window,
                int(seal),
                limit,
                room,
                share,
                trace,
                "" if expects is None else expects,
            ),
            _replies.read_put,
            durable=True,
        )

    def put_blob(
        self, job: str, chunk: str, sha256: str, data: bytes, *, ttl_ms: int, cap: int, share: float = 0.0
    ) -> Call[Parked]:
        """Park an image, unless all parked images together would exceed `cap` bytes; `share` is as for `put`."""
        return self._script(_scripts.PUT_BLOB, (job, chunk, sha256, data, ttl_ms, cap, share), Parked)

    def take_back_blobs(
        self, job: str, chunk: str, sha256s: Iterable[str], *, idle_seconds: int = 0, ttl_ms: int = 0
    ) -> Call[int]:
        """Drop the parked images of a chunk that was refused: how many; none if the ledger has the chunk.

        With `idle_seconds` only those parked so long ago that no producer waits with, and no dead letter needs. With
        `ttl_ms`, the images of a chunk that is not done are kept for so long from now on, where half of it is over.
        """
        return self._script(_scripts.TAKE_BACK_BLOBS, (job, chunk, idle_seconds, ttl_ms, *sha256s), int)

    def parked_images(self, offset: int, count: int) -> Call[list[tuple[str, str, str]]]:
        """Parked images as (job, chunk, sha256), those first whose time is up first."""
        return self._command(
            "ZRANGE", self.keys.shared("blobs"), _replies.read_parked_images, offset, offset + count - 1
        )

    def get_blob(self, job: str, chunk: str, sha256: str) -> Call[bytes | None]:
        """A parked image."""
        return self._command("GET", self.keys.blob(job, chunk, sha256), lambda reply: reply)

    def begin(
        self,
        job: str,
        chunk: str,
        owner: str,
        *,
        lease_ms: int,
        latest: Mapping[str, Offer],
        queue: str,
        grant: str,
    ) -> Call[Lease]:
        """Answer a wake-up call that came by `queue` and named this chunk.

        `latest` pins the versions of unversioned models at the job's first `begin`: one by model, or several with
        their weights, of which each job gets one by its id. `grant` identifies this call: if
        its answer is lost, the same call has the same answer, as long as the chunk is held.
        """
        args = (job, chunk, owner, lease_ms, json.dumps(latest), queue, grant)
        return self._script(_scripts.BEGIN, args, lambda reply: _replies.read_lease(reply, grant))

    def mark(self, job: str, chunk: str, owner: str, attempt: int, image: str) -> Call[bool]:
        """Say which image of a suspect chunk is touched next (empty: none); false if the lease is lost."""
        return self._script(_scripts.MARK, (job, chunk, owner, attempt, image), bool)

    def park(self, job: str, chunk: str, owner: str, attempt: int) -> Call[bool]:
        """Put a chunk aside that this worker does not understand."""
        return self._script(_scripts.PARK, (job, chunk, owner, attempt), bool)

    def unpark(self, queue: str, chunks: Sequence[tuple[str, str]]) -> Call[list[tuple[str, str]]]:
        """Queue parked chunks again; what is listed as parked and is not is dropped. The answer: those to publish."""
        return self._script(
            _scripts.UNPARK, (queue, *(name for pair in chunks for name in pair)), _replies.read_members
        )

    def parked(self, queue: str, count: int, offset: int = 0) -> Call[list[tuple[str, str]]]:
        """The chunks of a queue that have been parked for the longest."""
        return self._command(
            "ZRANGE", self.keys.queue(queue, "parked"), _replies.read_members, offset, offset + count - 1
        )

    def renew(self, owner: str, leases: Sequence[tuple[str, str, int]], *, lease_ms: int) -> Call[list[bool]]:
        """Prolong leases given as (job, chunk, attempt); false where one is no longer held."""
        return self._script(
            _scripts.RENEW, (owner, lease_ms, *_replies.flat(leases)), lambda reply: [bool(r) for r in reply]
        )

    def commit(
        self,
        job: str,
        chunk: str,
        attempt: int,
        tally: Tally,
        *,
        part: str = "",
        records: Iterable[tuple[str, bytes]] = (),
        dead: Sequence[DeadLetter] = (),
        dead_ttl_ms: int = 0,
        dead_most: int = 0,
        digest: str = "",
        grant: str = "",
    ) -> Call[tuple[Commit, bool]]:
        """Finish a chunk: the first commit wins. The flag says that the job now waits for its finaliser.

        Dead letters live for `dead_ttl_ms`; the oldest go when there are more than `dead_most`. With the `digest` of
        its lease a commit is refused when the job was deleted meanwhile, and its id used again for other images. With
        its `grant` it is told from that of another worker which, after a failover, was granted the same attempt.
        """
        flat: list[Any] = [value for pair in records for value in pair]
        head = (job, chunk, attempt, tally.ok, tally.partial, tally.failed, json.dumps(dict(tally.codes)), part)
        letters = (json.dumps([asdict(letter) for letter in dead]), dead_ttl_ms, dead_most)
        whose = (digest, grant[:GRANT_CHARACTERS] or "-")
        return self._script(_scripts.COMMIT, (*head, *letters, *whose, *flat), _replies.read_commit, durable=True)

    def failed(self, job: str, chunk: str, owner: str, attempt: int) -> Call[int]:
        """Note that a chunk failed as a whole: how often it has, deaths and hand-backs not counted."""
        return self._script(_scripts.FAILED, (job, chunk, owner, attempt), int)

    def sink_failed(self, job: str, chunk: str, *, gap_ms: int) -> Call[int]:
        """Note that a sink took no records of a chunk: for how many milliseconds it has been so, for chunk or job.

        A successful commit of the job ends that time, and so do `gap_ms` in which nobody tried.
        """
        return self._script(_scripts.SINK_FAILED, (job, chunk, gap_ms), int)

    def hand_back(
        self, owner: str, leases: Sequence[tuple[str, str, int]], *, died: bool = False
    ) -> Call[list[tuple[str, str]]]:
        """Return leases unused; `died` counts a death for each. The answer lists the chunks to publish again."""
        return self._script(_scripts.HAND_BACK, (owner, int(died), *_replies.flat(leases)), _replies.read_members)

    def revoke(self, queue: str, grant: str, *, keep_ms: int) -> Call[list[tuple[str, str]]]:
        """Hand back what a `begin` was granted whose answer never came; for `keep_ms` it is granted nothing more."""
        return self._script(_scripts.REVOKE, (queue, grant, keep_ms), _replies.read_members)

    def expire_leases(self, queue: str, *, limit: int) -> Call[list[tuple[str, str]]]:
        """Queue again what a silent worker held. The answer lists the chunks to publish again."""
        return self._script(_scripts.EXPIRE_LEASES, (queue, limit), _replies.read_members)

    def oldest_queued(
        self, queue: str, older_than_ms: int, count: int, offset: int = 0
    ) -> Call[list[tuple[str, str]]]:
        """The oldest queued chunks that have been queued since before a time on the ledger's clock."""
        page = ("-inf", older_than_ms, "LIMIT", offset, count)
        return self._command("ZRANGEBYSCORE", self.keys.queue(queue, "queued"), _replies.read_members, *page)

    def cancel(self, job: str) -> Call[str]:
        """Cancel a job: `CANCELLED`, `FINISHED` or `UNKNOWN`."""
        return self._script(_scripts.CANCEL, (job,), bytes.decode)

    def abandon(self, silent_ms: int, count: int) -> Call[list[str]]:
        """Give up waiting for producers that have been silent for so long; their jobs."""
        return self._script(_scripts.ABANDON, (silent_ms, count), _replies.read_strings)

    def dead_letters(self, offset: int, count: int) -> Call[list[str]]:
        """Keys of dead letters, newest first."""
        return self._command("ZREVRANGE", self.keys.shared("dead"), _replies.read_strings, offset, offset + count - 1)

    def dead_letter_count(self, now_ms: int) -> Call[int]:
        """How many dead letters there are."""
        return self._command("ZCOUNT", self.keys.shared("dead"), int, f"({now_ms}", "+inf")

    def dead_letter(self, key: str) -> Call[dict[str, str]]:
        """A dead letter: `letter` (JSON), `history` (a line of JSON for each attempt before the last), `code`."""
        return self._command("HGETALL", self.keys.dead(key), _replies.read_map)

    def note_requeued(self, key: str, job: str) -> Call[bool]:
        """Note on a dead letter as which job it was tried again; false if it has expired."""
        return self._script(_scripts.NOTE_REQUEUED, (key, job), bool)

    def discard(self, key: str) -> Call[Discarded]:
        """Drop a dead letter, and the image that was parked for it and for no other letter."""
        return self._script(_scripts.DISCARD, (key,), Discarded)

    def finish(self, job: str, done: int | None = None) -> Call[bool]:
        """End a job whose images are all done (and are as many as the caller knows of), and start its time to live."""
        return self._script(_scripts.FINISH, (job, "" if done is None else done), bool)

    def delete(self, job: str, *, page: int = 256) -> Call[int]:
        """Delete a page of a finished job: 1 when it is gone, 0 while there is more, -1 when it still runs."""
        return self._script(_scripts.DELETE, (job, page), int)

    def hold(self, duty: str, owner: str, *, lease_ms: int) -> Call[bool]:
        """Take or keep a fleet-wide duty."""
        return self._script(_scripts.HOLD, (duty, owner, lease_ms), bool)

    def enlist(self, info: WorkerInfo) -> Call[int]:
        """Say that a process of the fleet lives; to be repeated several times within `SILENT_MS`."""
        about = json.dumps({**asdict(info), "silent_seconds": 0.0})
        return self._script(_scripts.ENLIST, (info.owner, about, SILENT_MS), int)

    def strike_off(self, owner: str) -> Call[int]:
        """Say that a process of the fleet ends."""
        return self._script(_scripts.STRIKE_OFF, (owner,), int)

    def workers(self) -> Call[list[WorkerInfo]]:
        """The workers and exporters that live, as far as it is known: one that died is listed for `SILENT_MS`."""
        return self._script(_scripts.WORKERS, (SILENT_MS,), _replies.read_workers)

    def job(self, job: str) -> Call[dict[str, str]]:
        """A job's fields; empty if there is no such job."""
        return self._command("HGETALL", self.keys.job(job), _replies.read_map)

    def jobs(self, offset: int, count: int) -> Call[list[str]]:
        """Job ids, newest first."""
        return self._command("ZREVRANGE", self.keys.shared("jobs"), _replies.read_strings, offset, offset + count - 1)

    def jobs_before(self, ms: int, offset: int, count: int) -> Call[list[str]]:
        """Job ids, oldest first, of jobs made before a time on the ledger's clock."""
        page = ("-inf", ms, "LIMIT", offset, count)
        return self._command("ZRANGEBYSCORE", self.keys.shared("jobs"), _replies.read_strings, *page)

    def has_job(self, job: str) -> Call[bool]:
        """Whether the job has not expired."""
        return self._command("EXISTS", self.keys.job(job), bool)

    def created(self, job: str) -> Call[float | None]:
        """When the job was made, in milliseconds; known for a while after the job itself has expired."""
        return self._command("ZSCORE", self.keys.shared("jobs"), lambda reply: reply, job)

    def now(self) -> Call[int]:
        """The ledger's clock, in milliseconds."""
        return Call("TIME", (), (), _replies.read_time)

    def forget_job(self, job: str) -> Call[int]:
        """Drop the id of a job that has expired from the list of jobs."""
        return self._command("ZREM", self.keys.shared("jobs"), int, job)

    def queues(self) -> Call[list[str]]:
        """Names of all queues that ever had a chunk."""
        return self._command(
            "SMEMBERS", self.keys.shared("queues"), lambda reply: sorted(_replies.read_strings(reply))
        )

    def finalisable(self, count: int, now_ms: int | None = None, offset: int = 0) -> Call[list[str]]:
        """Jobs that wait for their finaliser, oldest first; those that are due by `now_ms`."""
        page = ("-inf", "+inf" if now_ms is None else now_ms, "LIMIT", offset, count)
        return self._command("ZRANGEBYSCORE", self.keys.shared("finalise"), _replies.read_strings, *page)

    def defer(self, job: str, until_ms: int) -> Call[int]:
        """Have the finaliser look at a job later, unless its last image ends before that."""
        return self._command("ZADD", self.keys.shared("finalise"), int, "XX", until_ms, job)

    def pending(self, job: str, offset: int, count: int) -> Call[list[str]]:
        """Queued chunks of a job."""
        return self._command("ZRANGE", self.keys.pending(job), _replies.read_strings, offset, offset + count - 1)

    def chunk(self, job: str, chunk: str, *names: str) -> Call[dict[str, str]]:
        """An unfinished chunk's fields, those named or all; empty when it is finished or unknown."""
        key = self.keys.chunk(job, chunk)
        if not names:
            return self._command("HGETALL", key, _replies.read_map)
        return self._command("HMGET", key, partial(_replies.read_named, names), *names)

    def has_chunk(self, job: str, chunk: str) -> Call[bool]:
        """Whether there is an unfinished chunk of that name."""
        return Call("EXISTS", (self.keys.chunk(job, chunk),), (), bool)

    def log(self, job: str, offset: int, count: int) -> Call[list[str]]:
        """Finished chunks of a job in the order in which they finished."""
        return self._command("LRANGE", self.keys.log(job), _replies.read_strings, offset, offset + count - 1)

    def part(self, job: str, chunk: str) -> Call[Part | None]:
        """The winning commit of a chunk."""
        return self._command("HGET", self.keys.parts(job), lambda reply: _replies.read_part(chunk, reply), chunk)

    def records(self, job: str, chunk: str) -> Call[dict[str, bytes]]:
        """A chunk's records as JSON, by image id; empty when they expired or lie in a sink."""
        return self._command(
            "HGETALL", self.keys.records(job, chunk), lambda reply: {k.decode(): v for k, v in reply.items()}
        )

    def expire_records(self, job: str, chunk: str, seconds: int) -> Call[bool]:
        """Start the time to live of a chunk's records."""
        return self._command("EXPIRE", self.keys.records(job, chunk), bool, seconds)

    def depth(self, queue: str) -> list[Call[Any]]:
        """The calls whose answers `read_depth` turns into a `QueueDepth`."""
        return [
            self._command("ZCARD", self.keys.queue(queue, "queued"), int),
            self._command("ZCARD", self.keys.queue(queue, "leased"), int),
            self._command("ZCARD", self.keys.queue(queue, "parked"), int),
            self._command("HGETALL", self.keys.queue(queue, "images"), _replies.read_map),
            self._command("HGETALL", self.keys.queue(queue, "rates"), _replies.read_map),
            self._command("ZRANGE", self.keys.queue(queue, "queued"), _replies.read_first_score, 0, 0, "WITHSCORES"),
            self.now(),
        ]

    def _script(
        self, script: Script, args: tuple[Any, ...], read: Callable[[Any], T], *, durable: bool = False
    ) -> Call[T]:
        return Call(script, (self.keys.prefix,), args, read, durable)

    def _command(self, name: str, key: str, read: Callable[[Any], T], *args: Any) -> Call[T]:
        return Call(name, (key,), args, read)
