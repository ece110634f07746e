"""The parts that a file is made of: counted, and some left out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from classifleet.config.errors import ErrorCode, ImageError

MAX_PARTS: Final = 20_000
"""Segments, chunks or blocks that Pillow would walk through. A 20 MiB PNG in chunks of 4 KiB has 5,000."""
Span = tuple[int, int]
"""Where a part begins and ends; the last may end behind the file."""


def counted(spans: Iterable[Span], kind: str) -> list[Span]:
    """The parts of a file of this format.

    Raises:
        ImageError: `undecodable`: there are too many.
    """
    parts = list(islice(spans, MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise too_many(kind)
    return parts


def without(data: bytes, strays: Iterable[Span]) -> bytes:
    """The file without some of its parts, which are in order; itself, if there are none."""
    kept, at = [], 0
    for start, end in strays:
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]]) if kept else data


def too_many(kind: str) -> ImageError:
    """What is raised then."""
    return ImageError(ErrorCode.UNDECODABLE, f"{kind} of more than {MAX_PARTS} parts")
