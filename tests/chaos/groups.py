"""Groups of processes with a memory limit of the kernel's, of either version of cgroups."""

from __future__ import annotations

import contextlib
from pathlib import Path


def limited_group(root: Path, name: str, most_bytes: int) -> Path:
    """Make a group below `/sys/fs/cgroup`; its `cgroup.procs` takes processes.

    Raises:
        OSError: It cannot be made here, or knows no limit of memory.
    """
    if (root / "cgroup.controllers").exists():
        with contextlib.suppress(OSError):  # refused where processes live, and not needed where it is so already
            (root / "cgroup.subtree_control").write_text("+memory")
        group, limits = root / name, {"memory.max": most_bytes, "memory.swap.max": 0}  # swap: where it is accounted
    else:
        group, limits = root / "memory" / name, {"memory.limit_in_bytes": most_bytes}
    group.mkdir()
    try:
        for file, value in limits.items():
            if value or (group / file).exists():
                (group / file).write_text(str(value))
    except OSError:
        group.rmdir()
        raise
    return group
