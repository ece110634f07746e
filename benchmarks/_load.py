"""Load that does not wait for answers: requests leave when their time has come, however slow the system is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

One = Callable[[Path], Awaitable[object]]


async def open_loop(one: One, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
    """Seconds from the moment that each request should have left until its answer was there."""
    began = time.perf_counter()

    async def request(number: int, at: float) -> float:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        await one(paths[number % len(paths)])
        return time.perf_counter() - began - at

    return list(await asyncio.gather(*(request(number, at) for number, at in enumerate(arrivals))))


async def closed_loop(one: Callable[[Path], Awaitable[int]], paths: Sequence[Path], concurrency: int) -> list[int]:
    """The answer to each path, with so many requests under way."""
    slots = asyncio.Semaphore(concurrency)

    async def request(path: Path) -> int:
        async with slots:
            return await one(path)

    return list(await asyncio.gather(*map(request, paths)))
