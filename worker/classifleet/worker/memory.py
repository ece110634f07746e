"""Ends a worker in order before the kernel would kill it for its memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

INTERVAL_SECONDS: Final = 2.0
SHARE_OF_LIMIT: Final = 0.9
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNLIMITED: Final = 1 << 60  # cgroup v1 writes a number near the highest there is
log = structlog.get_logger(__name__)


def cgroup_limit(files: tuple[str, ...] = _LIMITS) -> int | None:
    """The memory that this process' container may take, in bytes; None if there is no limit."""
    for file in files:
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text)
    return None


def limit_bytes(setting: int, cgroup: int | None) -> int | None:
    """Where the worker drains; None for nowhere."""
    if setting:
        return setting
    return None if cgroup is None else int(cgroup * SHARE_OF_LIMIT)


def resident_bytes() -> int | None:
    """The memory that this process takes; None where the kernel does not say (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Calls back once, when the process takes more than its limit."""

    def __init__(self, limit: int, exceeded: Callable[[], None]) -> None:
        self._limit = limit
        self._exceeded = exceeded
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="classifleet-memory", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL_SECONDS):
            now = resident_bytes()
            if now is not None and now > self._limit:
                log.error("too much memory", rss_bytes=now, max_rss_bytes=self._limit)
                self._exceeded()
                return
