"""Every Redis key that classifleet writes, apart from the broker's own queues.

`KEY_TABLE` is the documented table (`docs/redis-keys.md` is generated from it); the chaos suite fails if a key
outside it is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one namespace. The braces keep all keys of a namespace in one hash slot."""

    namespace: str

    @property
    def prefix(self) -> str:
        """What every key starts with; the Lua scripts get this and append the rest."""
        return f"classifleet:{{{self.namespace}}}:"

    def records(self, job: str, chunk: str) -> str:
        """The hash of a chunk's records, by image id."""
        return f"{self.prefix}records:{job}:{chunk}"

    def job(self, job: str) -> str:
        """The hash of a job's state and counters."""
        return f"{self.prefix}job:{job}"

    def log(self, job: str) -> str:
        """The list of a job's finished chunks in the order in which they finished."""
        return f"{self.prefix}log:{job}"

    def parts(self, job: str) -> str:
        """The hash of a job's winning commits, by chunk."""
        return f"{self.prefix}parts:{job}"

    def pending(self, job: str) -> str:
        """The sorted set of a job's chunks without a final answer."""
        return f"{self.prefix}pending:{job}"

    def chunk(self, job: str, chunk: str) -> str:
        """The hash of an unfinished chunk."""
        return f"{self.prefix}chunk:{job}:{chunk}"

    def blob(self, job: str, chunk: str, sha256: str) -> str:
        """An image too large for its chunk's payload."""
        return f"{self.prefix}blob:{job}:{chunk}:{sha256}"

    def queue(self, queue: str, part: str) -> str:
        """One of a queue's keys: `queued`, `leased`, `parked`, `ring`, `grants`, `images`, `rates`."""
        return f"{self.prefix}queue:{queue}:{part}"

    def shared(self, name: str) -> str:
        """One of the keys that the whole namespace shares, by name: `jobs`, `queues`, `finalise` and so on."""
        return f"{self.prefix}{name}"

    def reply(self, client: str) -> str:
        """The channel on which a producer process hears of finished chunks."""
        return f"{self.prefix}reply:{client}"

    def dead(self, key: str) -> str:
        """The hash of a dead letter."""
        return f"{self.prefix}dead:{key}"

    def content(self, digest: str) -> str:
        """An answer by the content of its picture, in the Redis of the content cache alone."""
        return f"{self.prefix}content:{digest}"

    @property
    def broker(self) -> str:
        """What the keys of a Redis broker start with: `broker:` and the queue, and what it knows of its messages."""
        return f"{self.prefix}broker:"

    def lock(self, name: str) -> str:
        """The lease of a fleet-wide duty."""
        return f"{self.prefix}lock:{name}"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One row of the documented table."""

    pattern: str
    type: str
    lifetime: str
    writer: str
    meaning: str


KEY_TABLE: Final = (
    KeyRow("schema", "string", "for ever", "producer, worker", "Version of this layout; checked at start."),
    KeyRow("jobs", "zset", "members go with their job", "ledger", "Job ids by time of creation."),
    KeyRow("queues", "set", "for ever", "ledger", "Names of queues that ever had a chunk."),
    KeyRow("job:<job>", "hash", "result TTL after the end", "ledger", "State, request and counters of a job."),
    KeyRow("pending:<job>", "zset", "until the job ends", "ledger", "Queued chunks of the job, by time of entry."),
    KeyRow("parts:<job>", "hash", "as its job", "ledger", "Winning commit of each finished chunk."),
    KeyRow("log:<job>", "list", "as its job", "ledger", "Finished chunks in order of finishing."),
    KeyRow("chunk:<job>:<chunk>", "hash", "until its commit", "ledger", "Payload, lease, attempts, trace of a chunk."),
    KeyRow("records:<job>:<chunk>", "hash", "as its job", "worker", "Records by image id (jobs without a sink)."),
    KeyRow(
        "blob:<job>:<chunk>:<sha256>",
        "string",
        "until its commit, or its TTL",
        "producer",
        "An image over the inline cap.",
    ),
    KeyRow("blobs", "zset", "members by their TTL", "ledger", "Blobs with sizes, by time of expiry."),
    KeyRow("blob_bytes", "string", "for ever", "ledger", "Sum of the sizes in `blobs`."),
    KeyRow("queue:<queue>:queued", "zset", "for ever", "ledger", "Queued chunks by time of entry."),
    KeyRow("queue:<queue>:leased", "zset", "for ever", "ledger", "Chunks at work by the end of their lease."),
    KeyRow("queue:<queue>:parked", "zset", "for ever", "ledger", "Chunks that no worker understood, by time."),
    KeyRow("queue:<queue>:ring", "zset", "for ever", "ledger", "Jobs with queued chunks, by images begun."),
    KeyRow("queue:<queue>:grants", "hash", "fields as their leases", "ledger", "The chunk that each `begin` got."),
    KeyRow("revoked:<grant>", "string", "a lease", "ledger", "A `begin` whose worker ended without its answer."),
    KeyRow("queue:<queue>:images", "hash", "for ever", "ledger", "Sums of images by state; the ring's turn."),
    KeyRow("queue:<queue>:rates", "hash", "for ever", "ledger", "Images accepted and done in slots of ten seconds."),
    KeyRow("open", "zset", "members until sealed", "ledger", "Open jobs by the time of their producer's last word."),
    KeyRow("room", "string", "for ever", "ledger", "Bytes kept free for records of accepted images."),
    KeyRow("memory", "string", "0.2 s", "ledger", "Memory of Redis: used, and the most that it may use."),
    KeyRow("dead", "zset", "dead letter TTL", "ledger", "Dead letters by time of expiry."),
    KeyRow("dead:<letter>", "hash", "dead letter TTL", "ledger", "An image that failed for a reason of ours."),
    KeyRow(
        "kept:<job>:<chunk>:<sha256>", "string", "dead letter TTL", "ledger", "Letters that share an image, if many."
    ),
    KeyRow("finalise", "zset", "members until finalised", "ledger", "Jobs whose end must be written."),
    KeyRow("broker:<queue>", "list", "while messages wait", "producer", "Wake-up calls for workers, newest first."),
    KeyRow("broker:<queue>:woken", "list", "until the next turn of any worker", "worker", "Such as woke a worker."),
    KeyRow("broker:reserved", "hash", "while workers hold any", "worker", "Wake-up calls that workers hold, by tag."),
    KeyRow("broker:deadlines", "zset", "as `broker:reserved`", "worker", "Until when without a sign of its worker."),
    KeyRow("broker:garbage", "list", "for ever; 1,000 at most", "worker", "Starts of messages that are none."),
    KeyRow("workers", "zset", "members until silent for 45 s", "worker", "Workers and exporters by their last word."),
    KeyRow("about", "hash", "fields as `workers`", "worker", "What each of them is, as JSON."),
    KeyRow(
        "content:<digest>",
        "string",
        "`content_cache_ttl_seconds`",
        "worker",
        "Scores by a picture's content; in `content_cache_url` alone.",
    ),
    KeyRow("lock:<name>", "string", "its lease", "worker", "Who does a fleet-wide duty now."),
)
