"""What the file itself answers: the plain module in fp32 decoded by Pillow, as every peer's user writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.environments import ROOT


def labels(model_file: Path, paths: Sequence[Path]) -> list[int]:
    """The best class of each photo, found in a process of its own."""
    environment = os.environ | {"BENCH_MODEL": str(model_file), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.served.classifier"],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found: list[int] = json.loads(done.stdout)
    return found
