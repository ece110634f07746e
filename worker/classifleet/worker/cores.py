"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_CGROUP_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """The process' affinity, and its cgroup's quota rounded up (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here: the affinity is all there is to know
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
