import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from classifleet.config.errors import ModelError, StorageError
from classifleet.config.settings import Settings
from classifleet.config.storage import FolderStore
from classifleet.worker.models import (
    ModelDescription,
    ModelNotFound,
    Repository,
    fetch_repository,
    open_repository,
    repository,
)
from tests.models_support import description_fields

PICTURE = b"not really a picture"
GOLDEN = {"image": "golden/x.png", "sha256": hashlib.sha256(PICTURE).hexdigest(), "top": "cat", "confidence": 1}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "exported.pt"
    path.write_bytes(b"not really TorchScript")
    return path


def describe(model_file: Path, **changes: Any) -> ModelDescription:
    sha256 = hashlib.sha256(model_file.read_bytes()).hexdigest()
    return ModelDescription.from_fields(description_fields(**{"sha256": sha256, **changes}), where="test")


def filled(folder: Path, model_file: Path, *keys: str) -> Repository:
    repository = Repository(folder)
    for key in keys:
        name, _, version = key.partition("@")
        assert repository.add(describe(model_file, name=name, version=version), model_file)
    return repository


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_add_list_resolve(tmp_path, model_file):
    repository = filled(tmp_path / "models", model_file, "pets@2", "pets@10", "pets@9", "cars@1", "pets.v2-x_y@3")
    assert repository.list() == ["cars@1", "pets@2", "pets@9", "pets@10", "pets.v2-x_y@3"]
    assert repository.resolve("pets") == "pets@10"
    assert repository.resolve("pets@9") == "pets@9"
    assert repository.describe("pets").version == "10"
    assert repository.model_file("cars").read_bytes() == model_file.read_bytes()


def test_an_empty_or_missing_folder_is_an_empty_repository(tmp_path):
    assert Repository(tmp_path / "nowhere").list() == []
    with pytest.raises(ModelNotFound, match=r"has no model pets; it has nothing; `classifleet models build`"):
        Repository(tmp_path).resolve("pets")


@pytest.mark.parametrize(
    "reference", ["pets@3", "pet", "PETS", "pets@", "pets@latest", "../pets", "pets@01", "", "a/b"]
)
def test_unknown_models(tmp_path, model_file, reference):
    repository = filled(tmp_path / "models", model_file, "pets@1")
    with pytest.raises(ModelNotFound):
        repository.resolve(reference)


def test_what_is_no_model_is_not_listed(tmp_path, model_file):
    repository = filled(tmp_path, model_file, "pets@1")
    for folder in ("pets/.adding-x", "pets/latest", "pets/0", ".git/1", "empty/1"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "empty/1":
            (tmp_path / folder / "model.json").write_text("{}")
    assert repository.list() == ["pets@1"]


def test_adding_the_same_again_does_nothing(tmp_path, model_file):
    repository = filled(tmp_path / "models", model_file, "pets@1")
    before = tree(tmp_path)
    assert not repository.add(describe(model_file), model_file)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("change", "what"), [("description", "model.json"), ("bytes", "model.pt")])
def test_a_version_never_changes(tmp_path, model_file, change, what):
    repository = filled(tmp_path / "models", model_file, "pets@1")
    before = {path: path.read_bytes() for path in repository.path.rglob("*") if path.is_file()}
    if change == "bytes":
        model_file.write_bytes(b"newer")
    changes = {"license": "Apache-2.0"} if change == "description" else {}
    with pytest.raises(ModelError, match=rf"already with another {what}.* add it as version 2"):
        repository.add(describe(model_file, **changes), model_file)
    assert {path: path.read_bytes() for path in repository.path.rglob("*") if path.is_file()} == before


def test_add_checks_the_file(tmp_path, model_file):
    description = describe(model_file, sha256="1" * 64)
    with pytest.raises(ModelError, match=r"sha256 is [0-9a-f]{64}, the description says 1111"):
        Repository(tmp_path / "models").add(description, model_file)
    with pytest.raises(ModelError, match="cannot be read"):
        Repository(tmp_path / "models").add(description, tmp_path / "nothing")
    assert not (tmp_path / "models").exists()


def test_golden_pictures_are_kept_and_checked(tmp_path, model_file):
    repository = Repository(tmp_path / "models")
    description = describe(model_file, golden=[GOLDEN])
    with pytest.raises(ModelError, match=r"golden picture golden/x\.png is missing"):
        repository.add(description, model_file)
    with pytest.raises(ModelError, match="is not the one described"):
        repository.add(description, model_file, files={"golden/x.png": b"other"})
    repository.add(description, model_file, files={"golden/x.png": PICTURE})
    assert (repository.folder("pets") / "golden" / "x.png").read_bytes() == PICTURE


def test_nothing_is_left_when_adding_fails(tmp_path, model_file, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", broken)
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        Repository(tmp_path / "models").add(describe(model_file), model_file)
    assert tree(tmp_path / "models") == ["pets"]


def test_damage_is_found_before_the_file_is_opened(tmp_path, model_file):
    repository = filled(tmp_path / "models", model_file, "pets@1")
    path = repository.model_file("pets")
    path.write_bytes(b"changed")
    with pytest.raises(ModelError, match="the file is damaged or was replaced"):
        repository.model_file("pets")
    with pytest.raises(ModelError, match="damaged"):
        repository.add(describe(model_file), model_file)
    path.unlink()
    with pytest.raises(ModelError, match=r"is missing; add pets@1 again"):
        repository.model_file("pets")


def test_a_model_in_the_wrong_folder(tmp_path, model_file):
    repository = filled(tmp_path, model_file, "pets@1")
    (tmp_path / "pets" / "1").rename(tmp_path / "pets" / "2")
    with pytest.raises(ModelError, match=r"describes pets@1; move it"):
        repository.describe("pets@2")


# remote repositories


@pytest.fixture
def remote(tmp_path: Path, model_file: Path) -> Repository:
    repository = filled(tmp_path / "remote", model_file, "pets@1", "cars@3")
    repository.add(describe(model_file, version="2", golden=[GOLDEN]), model_file, files={"golden/x.png": PICTURE})
    return repository


class CountingStore(FolderStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []

    def get(self, name: str) -> bytes:
        self.read.append(name)
        return super().get(name)


def test_fetch_copies_everything_once(tmp_path, remote):
    store = CountingStore(remote.path)
    local = fetch_repository(store, tmp_path / "cache")
    assert local.list() == remote.list()
    for key in remote.list():
        assert local.describe(key) == remote.describe(key)
        assert local.model_file(key).read_bytes() == remote.model_file(key).read_bytes()
    assert (local.folder("pets@2") / "golden" / "x.png").read_bytes() == PICTURE

    store.read.clear()
    assert fetch_repository(store, tmp_path / "cache").path == local.path
    assert {Path(name).name for name in store.read} == {"model.json"}


def test_fetch_follows_what_was_added_and_removed(tmp_path, remote, model_file):
    store = CountingStore(remote.path)
    fetch_repository(store, tmp_path / "cache")
    store.read.clear()
    (remote.path / "cars" / "3").rename(tmp_path / "elsewhere")
    model_file.write_bytes(b"newer")
    remote.add(describe(model_file, version="3"), model_file)
    local = fetch_repository(store, tmp_path / "cache")
    assert local.list() == ["pets@1", "pets@2", "pets@3"]
    assert [name for name in store.read if name.endswith(".pt")] == ["pets/3/model.pt"]


def test_snapshots_share_files_and_old_ones_go(tmp_path, remote, model_file, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache, seen = repository.default_cache(), []
    for version in ("3", "4", "5", "6"):
        model_file.write_bytes(version.encode())
        remote.add(describe(model_file, version=version), model_file)
        seen.append(fetch_repository(FolderStore(remote.path), cache))
    assert sorted(cache.iterdir()) == sorted(local.path for local in seen), "none of them is old"
    files = {(local.folder("pets@1") / "model.pt").stat().st_ino for local in seen}
    assert len(files) == 1
    for age, local in enumerate(reversed(seen)):
        os.utime(local.path, (0, time.time() - 7200 * age))
    repository.keep(seen[0])
    fetch_repository(FolderStore(remote.path), cache)
    assert {*cache.iterdir()} == {seen[0].path, seen[3].path}, "what is in use, and the current one"


def test_fetch_refuses_damage(tmp_path, remote):
    (remote.path / "pets" / "1" / "model.pt").write_bytes(b"changed")
    with pytest.raises(ModelError, match=r"sha256 is"):
        fetch_repository(FolderStore(remote.path), tmp_path / "cache")
    (remote.path / "pets" / "1" / "model.pt").unlink()
    with pytest.raises(ModelError, match=r"incomplete: .*upload pets@1 again"):
        fetch_repository(FolderStore(remote.path), tmp_path / "cache")


def test_fetch_names_the_bad_description(tmp_path, remote):
    path = remote.path / "pets" / "1" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["cat"]}))
    with pytest.raises(ModelError, match=r"^file://.*remote/pets/1/model\.json: .*labels has 1 entries"):
        fetch_repository(FolderStore(remote.path), tmp_path / "cache")


def test_fetch_passes_the_stores_errors_on(tmp_path, remote):
    class Refusing(FolderStore):
        def get(self, name: str) -> bytes:
            raise StorageError(f"{name}: AccessDenied")

    with pytest.raises(StorageError, match="AccessDenied"):
        fetch_repository(Refusing(remote.path), tmp_path / "cache")


def test_open_repository(tmp_path, remote, monkeypatch):
    assert open_repository(str(remote.path)).list() == remote.list()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("classifleet.config.storage.open_store", lambda url, settings: FolderStore(remote.path))
    local = open_repository("s3://bucket/models", Settings())
    assert local.list() == remote.list()
    assert local.path.parent == tmp_path / "xdg" / "classifleet" / "repositories"
