"""`classifleet models fetch`: models reach a folder whole, verified, and only those that are pinned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from classifleet.config import ModelError, Settings
from classifleet.config.storage import Store, open_store
from classifleet.worker.models import Repository
from classifleet.worker.models._cli_fetch import fetch_models
from classifleet.worker.models.cli import app
from tests.support.tiny import add_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with tiny@1, tiny@2 and other@1."""
    folder = add_tiny(tmp_path / "source")
    for name, version in (("tiny", "2"), ("other", "1")):
        copy = folder / name / version
        shutil.copytree(folder / "tiny" / "1", copy)
        change(copy, name=name, version=version)
    return folder


def change(folder: Path, **fields: Any) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def store(folder: Path) -> Store:
    return open_store(f"file://{folder}", Settings.load())


def sha256(folder: Path) -> str:
    return Repository(folder).describe("tiny@1").sha256


def test_what_is_named_is_fetched_once(source: Path, tmp_path: Path) -> None:
    local = Repository(tmp_path / "local")
    pins = {"tiny@2": sha256(source)}
    [first] = fetch_models(store(source), ["tiny"], pins, local)
    assert first == {"model": "tiny@2", "sha256": sha256(source), "fetched": True}
    assert local.list() == ["tiny@2"]
    assert local.model_file("tiny@2").is_file()
    rows = fetch_models(store(source), (), pins, local)
    assert [(row["model"], row["fetched"]) for row in rows] == [("other@1", True), ("tiny@2", False)]


def test_what_is_not_pinned_is_not_fetched_and_nothing_else_either(source: Path, tmp_path: Path) -> None:
    local = Repository(tmp_path / "local")
    with pytest.raises(ModelError, match=r"tiny@1 is pinned to 0000.*add it as a new version"):
        fetch_models(store(source), ["other", "tiny@1"], {"tiny@1": "0" * 64}, local)
    assert local.list() == []


def test_a_damaged_source_and_a_damaged_copy_are_refused(source: Path, tmp_path: Path) -> None:
    local = Repository(tmp_path / "local")
    fetch_models(store(source), ["tiny@1"], {}, local)
    (local.path / "tiny" / "1" / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="damaged or was replaced"):
        fetch_models(store(source), ["tiny@1"], {}, local)
    (source / "other" / "1" / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the description says"):
        fetch_models(store(source), ["other"], {}, local)
    assert local.list() == ["tiny@1"]


def test_a_version_that_changed_at_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    local = Repository(tmp_path / "local")
    fetch_models(store(source), ["tiny@1"], {}, local)
    change(source / "tiny" / "1", license="MIT")
    with pytest.raises(ModelError, match="versions never change"):
        fetch_models(store(source), ["tiny@1"], {}, local)


@pytest.mark.parametrize(
    ("models", "said"),
    [(["tiny@3"], "has no model tiny@3; it has other@1, tiny@1, tiny@2"), (["none"], "no model none")],
)
def test_a_model_that_is_not_there(source: Path, tmp_path: Path, models: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        fetch_models(store(source), models, {}, Repository(tmp_path / "local"))


def test_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no models"):
        fetch_models(store(tmp_path / "empty"), (), {}, Repository(tmp_path / "local"))


def test_the_command(source: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["fetch", f"file://{source}", *arguments])

    local = str(tmp_path / "local")
    pin = f"tiny@1={sha256(source)}"
    assert run("tiny@1", "--pin", pin, "-r", local).output == f"tiny@1 fetched (sha256 {sha256(source)})\n"
    [row] = json.loads(run("tiny@1", "--pin", pin, "-r", local, "--json").output)
    assert row["fetched"] is False
    assert "64 digits" in str(run("--pin", "tiny=1", "-r", local).exception)
    assert "into a folder" in str(run("-r", "s3://bucket").exception)


def test_from_s3(source: Path, tmp_path: Path, s3: Any) -> None:
    for file in source.rglob("*.*"):
        if file.is_file():
            s3.client.upload_file(str(file), s3.bucket, f"models/{file.relative_to(source)}")
    settings = Settings.load(**s3.settings_kwargs)
    local = Repository(tmp_path / "local")
    rows = fetch_models(open_store(f"{s3.url}/models", settings), ["tiny"], {}, local)
    assert [row["model"] for row in rows] == ["tiny@2"]
    assert local.model_file("tiny@2").read_bytes() == (source / "tiny" / "2" / "model.pt").read_bytes()
