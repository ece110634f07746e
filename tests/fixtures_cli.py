"""Fixtures: the command line."""

from __future__ import annotations

import pytest

from tests.cli_support import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("jobs", "list")` runs a command in this process."""
    return Cli(monkeypatch, capfd)
