"""What tuning found, kept as a JSON file, so that the next start (and the next pod) takes seconds.

The name of the file holds everything that the outcome depends on: the model, the device, the versions of what runs it,
and what was asked for. A file that cannot be read counts as none.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog

from classifleet.worker.models._identity import device_identity, version
from classifleet.worker.models.description import DIGEST_LENGTH, ModelDescription
from classifleet.worker.models.measuring import Speed
from classifleet.worker.models.parity import Parity
from classifleet.worker.models.tuning import Row, Split, Tuning

CACHE_VERSION: Final = 3
_PACKAGES: Final = ("classifleet", "torch", "openvino")
log = structlog.get_logger(__name__)


def cache_file(folder: Path, description: ModelDescription, device: str, asked: Mapping[str, object]) -> Path:
    """Where the outcome lies for this model, on this device, for what was asked (settings by name)."""
    depends_on = {
        "v": CACHE_VERSION,
        "model": description.model_dump(mode="json", include={"sha256", "input", "preprocess", "output", "batch"}),
        "device": device_identity(device),
        "versions": {name: version(name) for name in _PACKAGES},
        "asked": dict(asked),
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]
    return folder / f"{description.name}-{description.version}-{digest}.json"


def read(path: Path) -> Tuning | None:
    """The kept outcome, or None."""
    try:
        fields = json.loads(path.read_bytes())
        return _tuning(fields)
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


def _tuning(fields: dict[str, Any]) -> Tuning:
    tuning = Tuning(
        rows=tuple(_row(row) for row in fields["rows"]),
        plain=Speed(**fields["plain"]),
        busy=str(fields["busy"]),
        tries=int(fields["tries"]),
        split=Split(**fields["split"]) if fields["split"] else None,
        splits=tuple(Split(**split) for split in fields["splits"]),
        photos=int(fields["photos"]),
        own_photos=bool(fields["own_photos"]),
    )
    if [row.status for row in tuning.rows].count("chosen") != 1:
        raise ValueError("not exactly one variant is chosen")
    return tuning


def _row(fields: dict[str, Any]) -> Row:
    speed, parity = fields.pop("speed"), fields.pop("parity")
    return Row(**fields, speed=Speed(**speed) if speed else None, parity=Parity(**parity) if parity else None)
