"""Which format log lines have: readable on a terminal and JSON elsewhere, unless the setting says otherwise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

COLOR = re.compile(r"\x1b\[\d+m")
SAY = """
import structlog
from classifleet.config import Settings
from classifleet.worker.logs import configure

configure(Settings.load())
structlog.get_logger("classifleet.worker").info("ready", models=2)
"""


def said(log_format: str, *, terminal: bool) -> str:
    """What a process says at a terminal, or into a pipe."""
    ours, its = os.openpty() if terminal else os.pipe()
    try:
        environment = os.environ | {"CLASSIFLEET_LOG_FORMAT": log_format}
        subprocess.run([sys.executable, "-c", SAY], env=environment, stderr=its, check=True, timeout=60)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize(
    ("log_format", "terminal", "readable"),
    [("auto", True, True), ("auto", False, False), ("console", False, True), ("json", True, False)],
)
def test_the_format_of_a_line(log_format: str, terminal: bool, readable: bool) -> None:
    line = said(log_format, terminal=terminal)
    plain = COLOR.sub("", line)
    assert (plain != line) is (terminal and readable)
    if readable:
        assert re.fullmatch(r"\S+Z \[info +\] ready +\[classifleet\.worker\] models=2\s+", plain)
    else:
        assert json.loads(line)["models"] == 2
