"""A peer's server process, and what it is told by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.environments import ROOT
from tests.support.processes import ManagedProcess

_SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # of each process: there is one a core


def start(command: Sequence[str | Path], folder: Path, model_file: Path, more: Mapping[str, str]) -> ManagedProcess:
    """Run a command with the model's file in its environment; its output goes to `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CLASSIFLEET_")}
    environment = kept | _SINGLE | {"BENCH_MODEL": str(model_file), "PYTHONPATH": str(ROOT)} | dict(more)
    return ManagedProcess(command, folder / "server.log", env=environment, cwd=folder)
