"""Print what an image needs beside this project itself: requirements of the base install and of extras.

python docker/requirements.py worker,sqs
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """Requirements from a pyproject.toml, without repetitions.

    Raises:
        KeyError: There is no such extra.
    """
    described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found = [
        *described["dependencies"],
        *(each for extra in extras for each in described["optional-dependencies"][extra]),
    ]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.stdout.writelines(f"{each}\n" for each in requirements(Path("pyproject.toml"), sys.argv[1].split(",")))
