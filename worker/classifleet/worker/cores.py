"""How many cores this process may use, and that its threads leave them to each other."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

WAIT_POLICY: Final = ("OMP_WAIT_POLICY", "PASSIVE")
_CGROUP_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """The process' affinity, and its cgroup's quota rounded up (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here: the affinity is all there is to know
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def wait_asleep() -> None:
    """Have OpenMP's threads sleep at barriers, unless the environment says otherwise. Call it before torch is loaded.

    By default they spin for milliseconds, on cores that decoding and other processes want. EfficientNet-Lite0 in bf16
    through torch, beside threads that decode, in images per second of CPU time on 2 cores: asleep 62-68, spinning
    38-56; with other processes at work asleep 43-66, spinning 6-20, `ACTIVE` 14-54. The price is a tenth of the rate
    on an otherwise quiet machine (97 for 108 images/s). It reaches GNU's and LLVM's OpenMP, so KMP_BLOCKTIME needs no
    setting; OpenVINO brings threads of its own, which do not spin.
    """
    os.environ.setdefault(*WAIT_POLICY)
