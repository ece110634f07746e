"""The producer's logic as generators of effects, so that `Fleet` and `AsyncFleet` share every line of it.

A flow yields what it wants done and is sent the answer::

    def flow() -> Flow[int]:
        [fields] = yield Ask([ledger.job("…")])
        yield Publish([…])
        return int(fields["done"])

An engine performs the effects, in the calling thread (`SyncEngine`) or on an event loop (`AsyncEngine`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from classifleet.config import Message
from classifleet.config.celery_app import Publisher
from classifleet.config.errors import BrokerFull
from classifleet.ledger import Call

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """Run calls on the ledger in one round trip; answers with the list of their answers."""

    calls: Sequence[Call[Any]]


@dataclass(frozen=True, slots=True)
class Publish:
    """Put `(queue, message)` pairs on the broker."""

    messages: Sequence[tuple[str, Message]]


@dataclass(frozen=True, slots=True)
class Listen:
    """Wait until something is heard of the watched job, or the seconds have passed."""

    watch: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Blocking:
    """Call something that blocks on a disk or an object store; answers with what it returns."""

    function: Callable[[], Any]


Effect = Ask | Publish | Listen | Pause | Blocking
Flow = Generator[Effect, Any, T]


def publish(publisher: Publisher, messages: Sequence[tuple[str, Message]]) -> None:
    """Perform `Publish`.

    Raises:
        BrokerUnavailable: The broker did not answer.
    """
    # The ledger has the chunks: what a full broker refuses, the reconciler publishes as soon as there is room.
    with suppress(BrokerFull):
        publisher.publish(messages)
