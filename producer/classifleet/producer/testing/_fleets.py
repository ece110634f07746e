"""`InMemoryFleet` and `AsyncInMemoryFleet`: the fleets and their flows, performed in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from classifleet.config import (
    BrokerUnavailable,
    ErrorCode,
    ImageError,
    Keys,
    LedgerUnavailable,
    Record,
    Settings,
    Unavailable,
)
from classifleet.producer._async_engine import AsyncEngine
from classifleet.producer._effects import Ask, Effect, Publish
from classifleet.producer._engine import SyncEngine
from classifleet.producer._flows import Flows
from classifleet.producer.async_fleet import AsyncFleet
from classifleet.producer.fleet import Fleet
from classifleet.producer.testing._answers import Answers, failed_record, make_record
from classifleet.producer.testing._ledger import MemoryLedger
from classifleet.producer.testing._memory import Memory, MemoryChunk, MemoryJob, Submission, deadline_passed

NOWHERE: Final = "memory://"
CLIENT: Final = "in-memory"


class Twin:
    """What a test can do with a fleet in memory that it cannot do with a real one."""

    def __init__(self, answers: Answers, multi_label: Container[str], settings: Settings, *, paused: bool) -> None:
        self.memory = Memory()
        self.answers = answers
        self.multi_label = multi_label
        self.paused = paused
        self.flows = Flows(MemoryLedger(Keys(settings.namespace), self.memory), settings, CLIENT)
