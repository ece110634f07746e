"""The ledger: which image is where, in Redis. The protocol is described in `docs/guarantees.md`."""

from classifleet.ledger.calls import Begin, Call, Commit, Lease, Ledger, Part, Put, QueueDepth, Tally, read_depth
from classifleet.ledger.runner import AsyncRunner, SyncRunner, connect, connect_async
from classifleet.ledger.server import Problem, problems, require_fit

__all__ = [  # noqa: RUF022 - grouped by noun
    # the protocol as values
    "Ledger", "Call", "Put", "Begin", "Commit", "Lease", "Tally", "Part", "QueueDepth", "read_depth",
    # running it
    "SyncRunner", "AsyncRunner", "connect", "connect_async",
    # the server
    "Problem", "problems", "require_fit",
]  # fmt: skip
