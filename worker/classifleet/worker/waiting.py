"""Chunks of which nothing is left but slow fetches: they keep nobody from a place at work.

A chunk is done when its last image is, and one image that drips takes until its deadline. With 2 % of such images
nearly half of all chunks of 32 have one. So a chunk all of whose images are done, or wait for strangers, moves to the
waiting room, and another may begin in its place. When an image arrives after all, the chunk goes on at once.

How many wait, of chunks of `n` images at a rate of `r` images/s, when a share `p` of the images takes `t` seconds:

    r * t * (1 - (1 - p)^n) / n chunks, and r * p * t slow fetches

With 32 images a chunk, 2 % and 15 s that is 22 chunks and 30 fetches at 100 images/s, 89 and 120 at 400, and 446 and
600 at 2,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from classifleet.config import Lane
from classifleet.worker.instruments import WAITING_CHUNKS

WAITING_BYTES: Final = 256 << 20  # of payloads and finished records, in all that wait


class WaitingRoom:
    """Has room for so many chunks; those that find none wait at their place at work. Lives on one event loop.

    Args:
        chunks: That may wait, at most.
        total_bytes: That they may hold together, by their own account.
    """

    def __init__(self, chunks: int, *, total_bytes: int = WAITING_BYTES) -> None:
        self.changed: Callable[[], None] = lambda: None
        """Called when a chunk has entered or left, on the event loop."""
        self._chunks = chunks
        self._bytes_left = total_bytes
        self._inside: set[WaitingChunk] = set()
        self._outside: dict[WaitingChunk, None] = {}  # in order of arrival
        self._by_lane: Counter[Lane] = Counter()

    def count(self, lane: Lane) -> int:
        """How many chunks of a lane wait; from any thread."""
        return self._by_lane[lane]

    def enter(self, chunk: WaitingChunk) -> None:
        """A chunk has nothing to do."""
        if chunk not in self._inside and chunk not in self._outside:
            self._outside[chunk] = None
            self._admit()

    def leave(self, chunk: WaitingChunk) -> None:
        """A chunk goes on, or has ended."""
        self._outside.pop(chunk, None)
        if chunk in self._inside:
            self._inside.remove(chunk)
            self._bytes_left += chunk.size_bytes
            self._count(chunk.lane, -1)
            self._admit()

    def _admit(self) -> None:
        for chunk in list(self._outside):
            if len(self._inside) < self._chunks and chunk.size_bytes <= self._bytes_left:
                del self._outside[chunk]
                self._inside.add(chunk)
                self._bytes_left -= chunk.size_bytes
                self._count(chunk.lane, 1)

    def _count(self, lane: Lane, change: int) -> None:
        self._by_lane[lane] += change
        WAITING_CHUNKS.labels(lane).set(self._by_lane[lane])
        self.changed()


class WaitingChunk:
    """What the images of one chunk wait for.

    Args:
        room: Where the chunk goes while all of them wait for strangers.
        lane: Of the chunk.
        images: How many it has.
        size_bytes: What it holds meanwhile, about.
    """

    def __init__(self, room: WaitingRoom, lane: Lane, images: int, size_bytes: int) -> None:
        self.lane = lane
        self.size_bytes = size_bytes
        self._room = room
        self._busy = self._left = images

    def image(self) -> WaitingImage:
        """One of its images, which has not begun."""
        return WaitingImage(self)

    def change(self, *, busy: int = 0, left: int = 0) -> None:
        """So many more images wait for us, or are left at all."""
        self._busy += busy
        self._left += left
        if self._left and not self._busy:
            self._room.enter(self)
        else:
            self._room.leave(self)

    def close(self) -> None:
        """The chunk has ended, one way or the other."""
        self._room.leave(self)


class WaitingImage:
    """One image of a chunk."""

    __slots__ = ("_chunk", "_slow")

    def __init__(self, chunk: WaitingChunk) -> None:
        self._chunk = chunk
        self._slow = False

    def __call__(self, slow: bool) -> None:
        """Say whether the image waits for a stranger."""
        if slow != self._slow:
            self._slow = slow
            self._chunk.change(busy=-1 if slow else 1)

    def done(self) -> None:
        """The image has its record, or its error."""
        self(False)
        self._chunk.change(busy=-1, left=-1)
