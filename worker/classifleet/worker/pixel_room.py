"""Large pictures take turns: what many threads decode at one time has a limit in pixels.

A picture of 50 megapixels needs up to a gigabyte while it is decoded, whatever the size of its file. Ordinary photos
are not counted: a JPEG of any size is scaled to less than `SMALL_PIXELS` while it is decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SMALL_PIXELS: Final = 4_000_000
PATIENCE_SECONDS: Final = 20.0
"""A large picture waits no longer: small ones must not hold it back for ever, nor one whose decoder hangs."""
Take = Callable[[int], None]
"""Waits until there is room for so many pixels. Only the first call of a turn counts."""


class PixelRoom:
    """Room for pixels, shared by threads.

    Args:
        patience_seconds: After it a picture goes ahead, room or not.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._taken = 0
        self._freed = threading.Condition()

    @contextmanager
    def turn(self, most: int) -> Iterator[Take]:
        """A picture's turn: what it takes is free again at the end.

        Args:
            most: Pixels in all turns at one time.
        """
        mine = 0

        def take(pixels: int) -> None:
            nonlocal mine
            if mine or pixels <= SMALL_PIXELS:
                return
            with self._freed:
                self._freed.wait_for(lambda: not self._taken or self._taken + pixels <= most, self._patience_seconds)
                mine = pixels
                self._taken += pixels

        try:
            yield take
        finally:
            if mine:
                with self._freed:
                    self._taken -= mine
                    self._freed.notify_all()
