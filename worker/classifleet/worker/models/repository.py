"""Where models live: `<name>/<version>/model.pt` beside `model.json`, in a folder or below an `s3://` prefix.

A version never changes once it is there. It appears whole or not at all: everything is written to a hidden folder
and renamed. A remote repository becomes a local one first::

    s3://bucket/models ──model.json of all──► snapshot id ──► <cache>/<id>/<name>/<version>/   (verified, renamed)

TorchScript is code, so the sha256 in `model.json` is checked before anything opens `model.pt`. It protects against
damage and half copies; against an attacker who may write to the repository, nothing here does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from classifleet.config.errors import ModelError
from classifleet.worker.models.description import ModelDescription

if TYPE_CHECKING:
    from classifleet.config.settings import Settings
    from classifleet.config.storage import Store

MODEL_FILE: Final = "model.pt"
DESCRIPTION_FILE: Final = "model.json"
SNAPSHOT_LENGTH: Final = 16
SNAPSHOT_KEPT_SECONDS: Final = 3600.0  # other processes of this machine may still read it
_REFERENCE: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?P<version>[1-9][0-9]*))?")
_SNAPSHOT: Final = rf"[0-9a-f]{{{SNAPSHOT_LENGTH}}}"
_VERSION: Final = re.compile(r"[1-9][0-9]*")


class ModelNotFound(ModelError):
    """The repository has no model of that name and version."""


class Repository:
    """A local folder of models.

    Args:
        path: The folder. It need not exist: then the repository is empty, and `add` makes it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def list(self) -> list[str]:
        """The full names (`imagenet@1`) of all versions of all models, by name, then by version as a number."""
        found = [(file.parent.parent.name, file.parent.name) for file in self.path.glob(f"*/*/{DESCRIPTION_FILE}")]
        named = [(name, int(version)) for name, version in found if _VERSION.fullmatch(version) and name[0] != "."]
        return [f"{name}@{version}" for name, version in sorted(named)]

    def resolve(self, reference: str) -> str:
        """The full name for `imagenet` (its highest version) or `imagenet@1` (itself).

        Raises:
            ModelNotFound: Says which models there are.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise ModelNotFound(f"{reference!r} is not the name of a model; write name or name@version")
        known = self.list()
        fitting = [key for key in known if reference in (key, key.partition("@")[0])]
        if not fitting:
            there = ", ".join(known) or "nothing; `classifleet models build` adds the built-in ones"
            raise ModelNotFound(f"{self.path} has no model {reference}; it has {there}")
        return fitting[-1]

    def folder(self, reference: str) -> Path:
        """The folder of one version.

        Raises:
            ModelNotFound: There is no such model.
        """
        name, _, version = self.resolve(reference).partition("@")
        return self.path / name / version

    def describe(self, reference: str) -> ModelDescription:
        """Read and check one model's description.

        Raises:
            ModelNotFound: There is no such model.
            ModelError: `model.json` is invalid, or lies in the folder of another model.
        """
        folder = self.folder(reference)
        description = ModelDescription.read(folder / DESCRIPTION_FILE)
        if (description.name, description.version) != (folder.parent.name, folder.name):
            raise ModelError(f"{folder / DESCRIPTION_FILE}: describes {description.key}; move it, or correct its name")
        return description

    def model_file(self, reference: str) -> Path:
        """The path of `model.pt`, after its sha256 was found to be the described one.

        Raises:
            ModelNotFound: There is no such model.
            ModelError: The file is missing, or is not the one that `model.json` describes.
        """
        description = self.describe(reference)
        path = self.folder(reference) / MODEL_FILE
        if not path.is_file():
            raise ModelError(f"{path}: is missing; add {description.key} again")
        if (actual := file_sha256(path)) != description.sha256:
            raise ModelError(
                f"{path}: sha256 is {actual}, {DESCRIPTION_FILE} says {description.sha256}; "
                f"the file is damaged or was replaced, add {description.key} again"
            )
        return path

    def add(
        self,
        description: ModelDescription,
        model_file: Path,
        *,
        files: Mapping[str, bytes] | None = None,
        linked: bool = False,
    ) -> bool:
        """Add one version, whole or not at all. Adding the same again does nothing.

        Args:
            description: Its `sha256` must be the model file's.
            model_file: A TorchScript file; it is copied.
            files: Golden pictures by their `Golden.image` paths.
            linked: The model file never changes: it need not be copied.

        Returns:
            Whether it was added (False: the same was there already).

        Raises:
            ModelError: The sha256 differs, a golden picture is missing, the folder cannot be written, or the version
                is there with other content.
        """
        files = files or {}
        if (actual := file_sha256(model_file)) != description.sha256:
            raise ModelError(f"{model_file}: sha256 is {actual}, the description says {description.sha256}")
        _check_golden(description, files)
        target = self.path / description.name / description.version
        with _writing(target.parent) as folder:
            (_link_or_copy if linked else shutil.copyfile)(model_file, folder / MODEL_FILE)
            (folder / DESCRIPTION_FILE).write_text(description.to_json(), encoding="utf-8")
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            return self._publish(folder, target, description)

    def _publish(self, folder: Path, target: Path, description: ModelDescription) -> bool:
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            return True
        # a full folder is in the way: renaming tells that without a race, looking first does not
        there = self.describe(description.key)
        if there == description:
            self.model_file(description.key)  # raises if the file that is there is damaged
            return False
        changed = "model.pt" if there.sha256 != description.sha256 else DESCRIPTION_FILE
        raise ModelError(
            f"{description.key} is in {self.path} already with another {changed}, and versions never change; "
            f"add it as version {int(description.version) + 1}"
        )


def open_repository(location: str, settings: Settings | None = None) -> Repository:
    """Open a folder, or bring an `s3://` prefix to this machine and open that.

    Args:
        location: A path or `s3://bucket/prefix`.
        settings: For the object store's endpoint; read from the environment if not given.

    Raises:
        ModelError: A remote model is invalid or damaged.
        MissingExtra: An `s3://` prefix without boto3.
    """
    if not location.startswith("s3://"):
        return Repository(Path(location).expanduser())
    from classifleet.config.settings import Settings
    from classifleet.config.storage import open_store

    return fetch_repository(open_store(location, settings or Settings.load()), default_cache())


def default_cache() -> Path:
    """Where copies of remote repositories are kept (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "classifleet" / "repositories"


def fetch_repository(store: Store, cache: Path) -> Repository:
    """Copy a remote repository below `cache`, and verify it. What is there already is not fetched again.

    Args:
        store: Its objects are `<name>/<version>/model.json` and so on.
        cache: A local folder; each state of the repository gets a folder of its own in it.

    Raises:
        ModelError: A description is invalid, or a file is not the described one.
        StorageError: The store refuses.
    """
    names = [
        name for name in store.names() if re.fullmatch(rf"[^/.][^/]*/{_VERSION.pattern}/{DESCRIPTION_FILE}", name)
    ]
    texts = {name: store.get(name) for name in names}
    snapshot = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:SNAPSHOT_LENGTH]
    local = Repository(cache / snapshot)
    present = set(local.list())
    for name, text in texts.items():
        description = ModelDescription.from_json(text, where=f"{store.url}/{name}")
        if description.key not in present:
            earlier = _in_another_snapshot(cache, description)
            copy_model(store, name.removesuffix(DESCRIPTION_FILE), description, local, model_file=earlier)
    if texts:
        local.path.touch()
        _remove_old(cache, local.path, time.time() - SNAPSHOT_KEPT_SECONDS)
    return local


def _remove_old(cache: Path, current: Path, before: float) -> None:
    """Remove the snapshots that nobody opened since `before`, but for the last one before the current."""
    others = [folder for folder in cache.iterdir() if folder != current and re.fullmatch(_SNAPSHOT, folder.name)]
    by_age = sorted((_opened(folder), folder) for folder in others)
    for opened, folder in by_age[:-1]:
        if opened < before:
            shutil.rmtree(folder, ignore_errors=True)


def _opened(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def keep(repository: Repository) -> None:
    """Say that a copy of a remote repository is in use, so that no process removes it."""
    if repository.path.parent == default_cache() and repository.path.is_dir():
        repository.path.touch()


def copy_model(
    store: Store, prefix: str, description: ModelDescription, local: Repository, *, model_file: Path | None = None
) -> None:
    """Add one version that lies in a store to a folder, verified, whole or not at all.

    Args:
        store: Where it lies.
        prefix: Of its files there, with the last slash.
        description: Its `model.json`.
        local: Where it goes.
        model_file: A copy of its `model.pt` that is here already.

    Raises:
        ModelError: A file is missing, or is not the described one.
        StorageError: The store refuses.
    """
    try:
        files = {golden.image: store.get(prefix + golden.image) for golden in description.golden}
        if model_file is not None:
            local.add(description, model_file, files=files, linked=True)
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(store.get(prefix + MODEL_FILE))
            file.flush()
            local.add(description, Path(file.name), files=files)
    except FileNotFoundError as error:
        raise ModelError(f"{store.url}/{prefix}: incomplete: {error}; upload {description.key} again") from error


def _in_another_snapshot(cache: Path, description: ModelDescription) -> Path | None:
    copies = cache.glob(f"*/{description.name}/{description.version}/{MODEL_FILE}")
    return next((path for path in copies if file_sha256(path) == description.sha256), None)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        ModelError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def _check_golden(description: ModelDescription, files: Mapping[str, bytes]) -> None:
    for golden in description.golden:
        data = files.get(golden.image)
        if data is None or hashlib.sha256(data).hexdigest() != golden.sha256:
            state = "missing" if data is None else "not the one described"
            raise ModelError(f"{description.key}: the golden picture {golden.image} is {state}")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextmanager
def _writing(parent: Path) -> Iterator[Path]:
    """A hidden folder that is gone afterwards, unless it was renamed."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".adding-", dir=parent))
        folder.chmod(0o755)  # mkdtemp's 0700 would lock out workers of another user
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{parent}: cannot be written: {error.strerror or error}") from error
