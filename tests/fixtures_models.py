"""Fixtures: the built-in models, built once for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds imagenet@1 and nsfw@1."""
    pytest.importorskip("torch", reason="the extra [worker] is not installed")
    pytest.importorskip("onnx2torch", reason="the extra [zoo] is not installed")
    from classifleet.worker.models import Repository, build

    folder = tmp_path_factory.mktemp("zoo")
    for name in ("imagenet", "nsfw"):
        assert build(name, Repository(folder)).added
    return folder
