"""An environment for each peer, made when it is first wanted; torch, Pillow and torchvision are this one's.

A peer's own packages come first in its path and shadow ours, so that pins that clash do not meet; what it does not
bring is found in the environment that runs the benchmark, so that 5 GB of torch are not installed seven times.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "benchmarks" / ".venvs"
_PTH: Final = "zz-classifleet-benchmarks.pth"


class NotInstallable(Exception):
    """A peer's packages could not be installed; the text says why."""


def requirements(name: str) -> Path:
    """The pinned packages of a peer."""
    return Path(__file__).with_name(f"requirements-{name}.txt")


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there or its pins have changed.

    Raises:
        NotInstallable: pip failed.
    """
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = requirements(name).read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"making {folder.relative_to(ROOT)} …", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip: list[str | Path] = [
        interpreter,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        requirements(name),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstallable(f"{name}: {(lines or ['pip failed'])[-1]}")
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / _PTH).write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # added last: it comes after all that is installed
    stamp.write_text(wanted)
    return interpreter


def pinned(name: str) -> str:
    """The packages of a peer and their versions, as they are pinned."""
    return ", ".join(requirements(name).read_text().replace("==", " ").split("\n")).rstrip(", ")
