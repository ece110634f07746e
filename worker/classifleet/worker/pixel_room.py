"""Large pictures take turns: what many threads decode at one time has a limit in pixels.

A picture of 50 megapixels needs up to a gigabyte while it is decoded, whatever the size of its file. Ordinary photos
are not counted: a JPEG of 16 megapixels takes no more than another picture of `SMALL_PIXELS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SMALL_PIXELS: Final = 4_000_000
PATIENCE_SECONDS: Final = 20.0
"""A large picture waits no longer: small ones must not hold it back for ever, nor one whose decoder hangs."""
HUNG_SECONDS: Final = 120.0
"""A picture that takes longer does not count any more: its decoder hangs, and would keep its room for ever."""
Take = Callable[[int], None]
"""Waits until there is room for so many pixels. Only the first call of a turn counts."""


class PixelRoom:
    """Room for pixels, shared by threads.

    Attributes:
        patience_seconds: After it a picture goes ahead, room or not.

    Args:
        patience_seconds: See above.
        hung_seconds: After it a picture's room is free.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS, hung_seconds: float = HUNG_SECONDS) -> None:
        self.patience_seconds = patience_seconds
        self._hung_seconds = hung_seconds
        self._taken: dict[object, tuple[float, int]] = {}  # since when, and pixels
        self._freed = threading.Condition()

    @property
    def taken(self) -> int:
        """Pixels of the pictures that are decoded now, but for those that hang."""
        begun = time.monotonic() - self._hung_seconds
        return sum(pixels for since, pixels in self._taken.values() if since > begun)

    @contextmanager
    def turn(self, most: int) -> Iterator[Take]:
        """A picture's turn: what it takes is free again at the end.

        Args:
            most: Pixels in all turns at one time.
        """
        mine = object()

        def take(pixels: int) -> None:
            if mine in self._taken or pixels <= SMALL_PIXELS:
                return
            with self._freed:
                self._freed.wait_for(lambda: not self.taken or self.taken + pixels <= most, self.patience_seconds)
                self._taken[mine] = time.monotonic(), pixels

        try:
            yield take
        finally:
            if mine in self._taken:
                with self._freed:
                    del self._taken[mine]
                    self._freed.notify_all()
