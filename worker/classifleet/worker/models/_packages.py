"""Compiled models in a folder, each named after what it was compiled for and the SHA-256 of its bytes.

    <model>-<version>-<what for>-<sha256>.pt2

A package is native code, so one whose bytes are not those of its name is never loaded, only removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from classifleet.worker.models._identity import device_kind, version
from classifleet.worker.models.description import ModelDescription

FORMAT: Final = 1
"""Of how packages are compiled; raise it when that changes."""
_CHUNK_BYTES: Final = 1 << 20
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Packages:
    """The packages of a folder; None keeps none."""

    folder: Path | None = None

    def has(self, name: str) -> bool:
        """Whether there is a package of this name, whole or not."""
        return any(self._named(name))

    def fetch(self, name: str, target: Path) -> bool:
        """Copy the package to a file of our own, which nobody can change after it was checked; False if none is whole.

        Raises:
            OSError: The target cannot be written.
        """
        for file in self._named(name):
            try:
                digest = _copied(file, target)
            except FileNotFoundError:  # another process has removed it
                continue
            if file.name == f"{name}-{digest}.pt2":
                return True
            target.unlink()
            log.warning("compiled package damaged; not loaded", file=str(file), sha256=digest)
            _remove(file)
        return False

    def keep(self, name: str, package: Path) -> None:
        """Add a package; a folder that cannot be written to is only reported: the next start compiles again."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
                pass
            digest = _copied(package, Path(file.name))
            Path(file.name).replace(self.folder / f"{name}-{digest}.pt2")
        except OSError as error:
            log.warning("compiled package not kept", folder=str(self.folder), error=str(error))

    def _named(self, name: str) -> Iterator[Path]:
        return iter(()) if self.folder is None else iter(sorted(self.folder.glob(f"{name}-*.pt2")))


def package_name(description: ModelDescription, device: str, precision: str) -> str:
    """Says what a package was compiled for: the file, what is done to pixels, the device, and torch."""
    fields = {
        "format": FORMAT,
        "model": description.sha256,
        "input": description.input.model_dump(mode="json"),
        "preprocess": description.preprocess.model_dump(mode="json"),
        "batch": description.batch.max,
        "precision": precision,
        "device": [device.partition(":")[0], device_kind(device)],
        "torch": version("torch"),
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return f"{description.name}-{description.version}-{digest}"


def _copied(source: Path, target: Path) -> str:
    """Copy a file; its SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as opened, target.open("wb") as written:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            written.write(chunk)
    shutil.copymode(source, target)
    return digest.hexdigest()


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("damaged package not removed", file=str(file), error=str(error))
