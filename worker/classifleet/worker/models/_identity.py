"""What a figure, or a compiled package, holds for: this device, these versions."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from classifleet.worker.cores import usable_cores


def device_identity(device: str) -> str:
    """What distinguishes this device, and how much of it may be used, from others that may share a folder."""
    kind = device_kind(device)
    return kind if device.startswith("cuda") else f"{kind} x{usable_cores()}"


def device_kind(device: str) -> str:
    """What compiled code depends on: the GPU and its capability, or what the CPU can compute."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return _cpu_model()


def version(package: str) -> str:
    """Of an installed package; empty if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    # the name alone may be "Intel(R) Xeon(R) Processor": what counts is what it can compute
    wanted = ("model name", "flags", "Features", "CPU part")
    known = sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
