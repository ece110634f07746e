"""The ledger: which image is where, in Redis. The protocol is described in `docs/guarantees.md`."""

from classifleet.ledger._replies import read_depth
from classifleet.ledger.calls import Call, Ledger
from classifleet.ledger.runner import AsyncRunner, Replicas, SyncRunner, connect, connect_async
from classifleet.ledger.server import Problem, problems, require_fit
from classifleet.ledger.values import (
    Begin,
    Commit,
    DeadLetter,
    Lease,
    Parked,
    Part,
    Put,
    PutReply,
    QueueDepth,
    Tally,
)

__all__ = [  # noqa: RUF022 - grouped by noun
    # the protocol as values
    "Ledger", "Call", "Put", "PutReply", "Parked", "Begin", "Commit", "Lease", "Tally", "Part", "DeadLetter",
    "QueueDepth", "read_depth",
    # running it
    "SyncRunner", "AsyncRunner", "Replicas", "connect", "connect_async",
    # the server
    "Problem", "problems", "require_fit",
]  # fmt: skip
