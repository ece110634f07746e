"""Exit codes of `classifleet worker` (docs/operations.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

EXIT_OK: Final = 0  # ended by SIGTERM or Ctrl-C
EXIT_DEFECT: Final = 1
EXIT_UNUSABLE: Final = 2  # settings, Redis, or a model that cannot be loaded
EXIT_MEMORY: Final = 3  # more memory than max_rss_bytes; drained
EXIT_DEVICE: Final = 4  # the device answers nothing any more, or has no memory for one image; all was handed back

POLITELY: Final[list[Callable[[], None]]] = []
"""Called where a process that is told to end does so at once, without unwinding. None may block or raise."""
