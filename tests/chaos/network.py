"""A network namespace on the other end of a virtual cable that can be unplugged."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

_numbers: Final = itertools.count()
_RUN_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Cable:
    """From `here` (an address of this machine) to `there` (the namespace's only one)."""

    namespace: str
    device: str
    here: str
    there: str

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def unplug(self) -> None:
        """No packet passes, and nobody is told."""
        ip("link", "set", self.device, "down")

    def plug(self) -> None:
        """Packets pass again."""
        ip("link", "set", self.device, "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """Lay it; the test is skipped where that is not permitted, and fails in CI where it should be."""
    number = next(_numbers)
    name = f"chaos{os.getpid() % 100_000}-{number}"
    laid = Cable(name, f"ch{os.getpid() % 100_000}-{number}", "10.213.77.1", "10.213.77.2")
    try:
        try:
            _lay(laid)
        except (OSError, subprocess.CalledProcessError) as error:
            permitted = os.environ.get("CI") and os.geteuid() == 0 and shutil.which("ip")
            (pytest.fail if permitted else pytest.skip)(f"no network namespace can be made: {error}")
        yield laid
    finally:
        if shutil.which("ip"):
            subprocess.run(["ip", "netns", "delete", laid.namespace], check=False, timeout=_RUN_SECONDS)


def _lay(laid: Cable) -> None:
    ip("netns", "add", laid.namespace)
    ip("link", "add", laid.device, "type", "veth", "peer", "name", "eth0", "netns", laid.namespace)
    ip("address", "add", f"{laid.here}/30", "dev", laid.device)
    ip("link", "set", laid.device, "up")
    for command in (
        ("address", "add", f"{laid.there}/30", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        subprocess.run([*laid.inside, "ip", *command], check=True, timeout=_RUN_SECONDS, capture_output=True)


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, timeout=_RUN_SECONDS, capture_output=True)
