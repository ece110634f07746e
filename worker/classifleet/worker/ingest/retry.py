"""When to ask a server again: pure functions of the attempt and of what the server said."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError

MAX_ATTEMPTS: Final = 3
BACKOFF_BASE_SECONDS: Final = 0.25
BACKOFF_MAX_SECONDS: Final = 5.0
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class TransientError(ImageError):
    """A failure that the same request may not meet again."""

    def __init__(
        self, message: str, *, code: ErrorCode = ErrorCode.FETCH_FAILED, retry_after: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.retry_after_seconds = retry_after


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
