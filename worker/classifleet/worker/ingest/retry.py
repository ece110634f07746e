"""When to ask again: after 429, 502, 503, 504 and timeouts, while there is time; and after nothing else.

A refused or broken connection is not among them: it is an answer, most often the same the next time, and
`fetch_failed` is retryable by whoever submitted the image. (A pooled connection that the server closed just as it was
used again is no failure of a request: aiohttp repeats that one on a new connection.)

The wait holds no slot, no turn at the host and no memory.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from classifleet.config.errors import ErrorCode, ImageError
from classifleet.worker.ingest.clock import Clock
from classifleet.worker.instruments import FETCH_RETRIES

MAX_ATTEMPTS: Final = 3
BACKOFF_BASE_SECONDS: Final = 0.25
BACKOFF_MAX_SECONDS: Final = 5.0
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_T = TypeVar("_T")


class HostTrouble(ImageError):
    """A failure that speaks against the host: it did not answer, or answered that it cannot."""


class TransientError(HostTrouble):
    """A failure that the same request may not meet again."""

    def __init__(
        self, message: str, *, code: ErrorCode = ErrorCode.FETCH_FAILED, retry_after: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.retry_after_seconds = retry_after


async def with_retries(request: Callable[[], Awaitable[_T]], clock: Clock) -> _T:
    """Make a request, again after each `TransientError`, as often and as long as there is time for it.

    Raises:
        ImageError: What the last attempt raised.
    """
    for attempt in itertools.count(1):
        try:
            return await request()
        except TransientError as error:
            wait_seconds = retry_wait_seconds(attempt, error.retry_after_seconds, random.random())
            if attempt >= MAX_ATTEMPTS or wait_seconds >= clock.seconds_left:
                raise ImageError(error.code, f"{error} (attempts: {attempt})") from error
        FETCH_RETRIES.inc()
        await asyncio.sleep(wait_seconds)
    raise AssertionError("unreachable")


def retry_wait_seconds(attempt: int, retry_after: float | None, jitter: float) -> float:
    """How long to wait after a failed attempt.

    Args:
        attempt: The attempt that failed, counted from 1.
        retry_after: The least wait that the server asked for, in seconds.
        jitter: A random number in [0, 1).

    Returns:
        Seconds: what the server asked for, plus half to all of an exponential backoff.
    """
    backoff = min(BACKOFF_BASE_SECONDS * math.ldexp(1, attempt - 1), BACKOFF_MAX_SECONDS)
    return (retry_after or 0.0) + backoff * (1 + jitter) / 2


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for; None if there is none, or none that can be read.

    Args:
        header: Its value: seconds, or an HTTP date.
        now: The present, for tests.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
