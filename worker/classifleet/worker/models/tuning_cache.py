"""What tuning found, kept as a JSON file, so that the next start (and the next pod) takes seconds.

The name of the file holds everything that the outcome depends on: the model, the device, the versions of what runs it,
and what was asked for. A file that cannot be read counts as none.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import structlog

from classifleet.worker.cores import usable_cores
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.parity import Parity
from classifleet.worker.models.tuning import Row, Speed, Tuning

CACHE_VERSION: Final = 1
_PACKAGES: Final = ("classifleet", "torch", "openvino")
log = structlog.get_logger(__name__)


def cache_file(folder: Path, description: ModelDescription, device: str, asked: Mapping[str, object]) -> Path:
    """Where the outcome lies for this model, on this device, for what was asked (settings by name)."""
    depends_on = {
        "v": CACHE_VERSION,
        "model": description.sha256,
        "preprocess": description.preprocess.digest,
        "device": device_identity(device),
        "versions": {name: _version(name) for name in _PACKAGES},
        "asked": dict(asked),
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return folder / f"{description.name}-{description.version}-{digest}.json"


def read(path: Path) -> Tuning | None:
    """The kept outcome, or None."""
    try:
        fields = json.loads(path.read_bytes())
        return Tuning(tuple(_row(row) for row in fields["rows"]), Speed(**fields["plain"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("tuning result not readable; tuned again", file=str(path), error=str(error))
        return None


def write(path: Path, tuning: Tuning) -> None:
    """Keep an outcome; a folder that cannot be written to is only reported: the next start tunes again."""
    text = json.dumps(asdict(tuning), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        log.warning("tuning result not kept", file=str(path), error=str(error))


def device_identity(device: str) -> str:
    """What distinguishes this device from others that may share the folder."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return f"{_cpu_model()} x{usable_cores()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    # the name alone may be "Intel(R) Xeon(R) Processor": what counts is what it can compute
    wanted = ("model name", "flags", "Features", "CPU part")
    known = sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _row(fields: dict[str, Any]) -> Row:
    speed, parity = fields.pop("speed"), fields.pop("parity")
    return Row(**fields, speed=Speed(**speed) if speed else None, parity=Parity(**parity) if parity else None)
