"""What is measured has one face: start it, give it photos, stop it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class System(Protocol):
    """A way to classify photos.

    Attributes:
        name: As in tables.
        details: Versions and settings, for the report.
    """

    name: str
    details: str

    def start(self, folder: Path) -> None:
        """Be ready to classify; `folder` is for its files, and is empty."""

    def classify(self, paths: Sequence[Path]) -> list[int]:
        """The best class of each photo, all of them given at once."""

    def open_loop(self, arrivals: Sequence[float], paths: Sequence[Path]) -> list[float]:
        """Seconds that each request took, counted from when it should have been sent."""

    def stop(self) -> None:
        """End all of its processes; harmless if it is not running."""
