"""How many cores this process may use, and that its threads leave them to each other."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

WAIT_POLICY: Final = ("OMP_WAIT_POLICY", "PASSIVE")
_CGROUP: Final = Path("/sys/fs/cgroup")
_QUOTAS: Final = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files that hold, together, a quota and its period, in microseconds: of cgroup v2 and v1."""


def usable_cores() -> int:
    """The process' affinity, and its cgroup's quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def _quota() -> float:
    """Of the cgroup, in cores; infinite without one."""
    for files in _QUOTAS:
        try:
            quota, period = map(int, " ".join((_CGROUP / file).read_text() for file in files).split())
        except (OSError, ValueError):  # another version of cgroups, or no limit: `max`
            continue
        if quota > 0:  # v1 writes -1
            return quota / period
    return math.inf


def wait_asleep() -> None:
    """Have OpenMP's threads sleep at barriers, unless the environment says otherwise. Call it before torch is loaded.

    By default they spin for milliseconds, on cores that decoding and other processes want. EfficientNet-Lite0 in bf16
    through torch, beside threads that decode, in images per second of CPU time on 2 cores: asleep 62-68, spinning
    38-56; with other processes at work asleep 43-66, spinning 6-20, `ACTIVE` 14-54. The price is a tenth of the rate
    on an otherwise quiet machine (97 for 108 images/s). It reaches GNU's and LLVM's OpenMP, so KMP_BLOCKTIME needs no
    setting; OpenVINO brings threads of its own, which do not spin.
    """
    os.environ.setdefault(*WAIT_POLICY)
