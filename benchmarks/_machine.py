"""What kind of machine a figure comes from; nothing that names it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from classifleet.producer.embedded import redis_binary
from classifleet.worker.cores import usable_cores

CPU_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES: Final = ("torch", "openvino", "celery", "kombu", "redis", "pillow", "simplejpeg")


def describe() -> dict[str, str]:
    """By what it is: CPU, cores, flags, memory, GPU, versions."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    return {
        "CPU": info.get("model name", platform.machine()),
        "cores usable": str(usable_cores()),
        "instructions": ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of " + ", ".join(CPU_FLAGS),
        "memory": f"{memory_bytes() / 2**30:.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "Redis server": redis_version(),
    }


def version(package: str) -> str:
    """Of an installed package; `none` if it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def redis_version() -> str:
    """Of the server that the benchmarks start."""
    said = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else said.strip()


def memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def busy_share(seconds: float = 1.0) -> float:
    """How much of all cores is in use, over so many seconds: what others take if we are idle."""
    idle, total = _cpu_ticks()
    time.sleep(seconds)
    idle_now, total_now = _cpu_ticks()
    return 1 - (idle_now - idle) / max(1, total_now - total)


def _cpu_ticks() -> tuple[int, int]:
    """Idle and all ticks since the machine started; zeros where the kernel does not say."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0, 0
    return fields[3] + fields[4], sum(fields)


def _cpuinfo() -> dict[str, str]:
    """The first core's lines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
