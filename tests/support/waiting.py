"""Poll a condition, never sleep for a while and hope."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05


def wait_until(condition: Callable[[], T | None], description: str, timeout: float = 10.0) -> T:
    """Return the condition's first true value; fail the test, naming what was awaited, after `timeout` seconds.

    An `AssertionError` inside the condition counts as "not yet", so that a block of asserts can be awaited.
    """
    end = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    while True:
        value, failure = _try(condition)
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(_message(description, timeout, value)) from failure
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


async def wait_until_async(condition: Callable[[], T | Awaitable[T]], description: str, timeout: float = 10.0) -> T:
    """`wait_until` on an event loop; the condition may be a coroutine function."""
    end = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(_message(description, timeout, value))
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _try(condition: Callable[[], T]) -> tuple[T | None, AssertionError | None]:
    try:
        return condition(), None
    except AssertionError as error:
        return None, error


def _message(description: str, timeout: float, value: object) -> str:
    return f"waited {timeout:g} s for: {description} (last seen: {value!r})"
