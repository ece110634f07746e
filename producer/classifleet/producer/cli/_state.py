"""Where embedded fleets keep unfinished bulk jobs, so that `--job` can go on with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def state_folder(job: str) -> Path:
    """The folder of one job (`XDG_STATE_HOME`, else `~/.local/state`)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "classifleet" / "bulk" / job


def forget_state(job: str) -> None:
    """Delete the folder of a job that has ended, or never began."""
    shutil.rmtree(state_folder(job), ignore_errors=True)
