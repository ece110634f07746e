"""CPU time and memory of a process, from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int | None = None) -> float:
    """Resident memory now; without a process, of this one."""
    statm = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text()
    return int(statm.split()[1]) * _PAGE / 2**20
