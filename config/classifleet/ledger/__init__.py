"""The ledger: which image is where, in Redis. The protocol is described in `docs/guarantees.md`."""

from classifleet.ledger._replies import read_depth
from classifleet.ledger.calls import Call, Ledger, Offer
from classifleet.ledger.runner import AsyncRunner, Replicas, SyncRunner, connect, connect_async
from classifleet.ledger.server import Problem, advice, problems, require_fit
from classifleet.ledger.values import (
    FORGOTTEN_SECONDS,
    Begin,
    Commit,
    DeadLetter,
    Discarded,
    Lease,
    Parked,
    Part,
    Put,
    PutReply,
    QueueDepth,
    Tally,
    WorkerFigures,
    WorkerInfo,
)

__all__ = [  # noqa: RUF022 - grouped by noun
    # the protocol as values
    "Ledger", "Call", "Put", "PutReply", "Parked", "Begin", "Commit", "Lease", "Tally", "Part", "DeadLetter",
    "Discarded", "Offer", "QueueDepth", "read_depth", "WorkerInfo", "WorkerFigures", "FORGOTTEN_SECONDS",
    # running it
    "SyncRunner", "AsyncRunner", "Replicas", "connect", "connect_async",
    # the server
    "Problem", "advice", "problems", "require_fit",
]  # fmt: skip
