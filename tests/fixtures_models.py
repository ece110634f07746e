"""Fixtures: the built-in models, built once for the whole session; and a shelf of small ones for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.shelves import Open


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


@pytest.fixture
def shelf_folder(tmp_path: Path) -> Path:
    """A repository that holds a@1 and b@1."""
    from tests.support.shelves import two_models

    return two_models(tmp_path / "models")


@pytest.fixture
def open_shelf(shelf_folder: Path) -> Iterator[Open]:
    """Opens shelves of that repository, as a worker does."""
    from tests.support.shelves import opening

    with opening(shelf_folder) as open_shelf:
        yield open_shelf
