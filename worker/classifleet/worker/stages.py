"""A bound on one stage of one image, so that its record says which stage hung."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from classifleet.config import ErrorCode, ImageError


@asynccontextmanager
async def bounded(stage: str, seconds: float, code: ErrorCode = ErrorCode.INTERNAL) -> AsyncIterator[None]:
    """Give a stage so many seconds.

    Raises:
        ImageError: It took longer. What the body itself raises, other time-outs among it, is left as it is.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise ImageError(code, f"{stage} took longer than {seconds:g} s") from None
