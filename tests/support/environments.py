"""Python environments for packaging tests, made offline: the wheel, and nothing else but what it requires.

A distribution is lent to the environment by links to where it is installed for the tests, so that nothing is
downloaded and nothing beyond the requirements can be imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

_LONGEST_SECONDS = 120


def run(*command: str | Path, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with few environment variables but these."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [str(part) for part in command],
        env={**kept, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=_LONGEST_SECONDS,
        check=False,
    )


def make_environment(folder: Path, wheel: Path, requirements: Iterable[str]) -> Path:
    """A virtual environment with the wheel installed and its requirements lent; returns its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for each in closure(requirements):
        lend(each, site)
    done = run(
        *(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--isolated"),
        *("install", "--quiet", "--no-deps", "--no-index", wheel),
    )
    assert done.returncode == 0, done.stderr
    return python


def closure(requirements: Iterable[str]) -> list[Distribution]:
    """All installed distributions that these requirements lead to, extras followed only where they are asked for."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            found[requirement.name] = distribution(requirement.name)
            for text in found[requirement.name].requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return list(found.values())


def lend(lent: Distribution, site: Path) -> None:
    """Link a distribution's packages, modules and metadata into another site-packages."""
    home = Path(sysconfig.get_path("purelib"))
    for name in {Path(str(file)).parts[0] for file in lent.files or ()} - {"..", "__pycache__"}:
        if not (site / name).exists():
            (site / name).symlink_to(home / name)
