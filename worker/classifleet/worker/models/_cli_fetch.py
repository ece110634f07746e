"""`classifleet models fetch`: models from an object store into a folder, by digest; what an init container runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Final

import typer

from classifleet.config import InvalidRequest, ModelError, Settings
from classifleet.worker.models._cli_options import JsonOption, RepositoryOption, print_json
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.repository import DESCRIPTION_FILE, Repository, copy_model

if TYPE_CHECKING:
    from classifleet.config.storage import Store

_VERSION: Final = re.compile(rf"(?P<name>[^/.][^/]*)/(?P<version>[1-9][0-9]*)/{re.escape(DESCRIPTION_FILE)}")
_PIN: Final = re.compile(r"(?P<key>[^=@]+@[1-9][0-9]*)=(?P<sha256>[0-9a-f]{64})")


def fetch(
    source: Annotated[str, typer.Argument(help="`s3://bucket/prefix` or `file:///folder`, laid out as a repository.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="`imagenet` (its highest version), `imagenet@1`. Default: all.")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=SHA256", help="The only `model.pt` that `imagenet@1` may have. Repeatable."),
    ] = None,
    repository: RepositoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy models from an object store into a folder, verified. What is there already is not fetched again.

    Whoever can write to the store can change a model and its description together; a pin is what they cannot change.

    **Example:** `classifleet models fetch s3://models/v3 imagenet@1 --pin imagenet@1=9f86… --repository /models`
    """
    from classifleet.config.storage import open_store

    settings = Settings.load()
    target = repository or settings.model_repository
    if target.startswith("s3://"):
        raise InvalidRequest(f"{target}: models are fetched into a folder; name one with --repository")
    rows = fetch_models(open_store(source, settings), models or (), _pins(pin or ()), Repository(target))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        state = "fetched" if row["fetched"] else "is there already"
        typer.echo(f"{row['model']} {state} (sha256 {row['sha256']})")


def fetch_models(
    store: Store, models: Iterable[str], pins: Mapping[str, str], local: Repository
) -> list[dict[str, str | bool]]:
    """Bring models to a folder; several processes may do the same at one time.

    Args:
        store: A repository.
        models: `name` or `name@version`; none means the highest version of each.
        pins: sha256 of `model.pt` by `name@version`. Those of models that are not fetched do not matter.
        local: The folder.

    Returns:
        For each model its `model`, `sha256`, and whether it was `fetched`.

    Raises:
        ModelError: The store has no such model, or it is not the one that is pinned, described, or there already.
        StorageError: The store refuses.
    """
    keys = _wanted(store, models)
    described = {key: _describe(store, key, pins.get(key)) for key in keys}  # all, before anything is written
    rows: list[dict[str, str | bool]] = []
    for key, description in described.items():
        there = key in local.list() and local.describe(key) == description
        if there:
            local.model_file(key)  # raises if the file that is there is damaged
        else:
            copy_model(store, _prefix(key), description, local)
        rows.append({"model": key, "sha256": description.sha256, "fetched": not there})
    return rows


def _wanted(store: Store, models: Iterable[str]) -> list[str]:
    found = sorted(
        (match["name"], int(match["version"])) for name in store.names() if (match := _VERSION.fullmatch(name))
    )
    latest = {name: f"{name}@{version}" for name, version in found}
    known = {f"{name}@{version}" for name, version in found}
    wanted = [latest.get(model, model) for model in models or latest]
    if missing := [model for model in wanted if model not in known]:
        raise ModelError(f"{store.url} has no model {missing[0]}; it has {', '.join(sorted(known)) or 'nothing'}")
    if not wanted:
        raise ModelError(f"{store.url} has no models; upload a repository there (aws s3 sync)")
    return list(dict.fromkeys(wanted))


def _describe(store: Store, key: str, pinned: str | None) -> ModelDescription:
    where = _prefix(key) + DESCRIPTION_FILE
    description = ModelDescription.from_json(store.get(where), where=f"{store.url}/{where}")
    if description.key != key:
        raise ModelError(f"{store.url}/{where}: describes {description.key}; move it, or correct its name")
    if pinned is not None and description.sha256 != pinned:
        raise ModelError(
            f"{store.url}/{where}: sha256 is {description.sha256}, and {key} is pinned to {pinned}; if the new one is "
            "right, add it as a new version"
        )
    return description


def _prefix(key: str) -> str:
    return key.replace("@", "/") + "/"


def _pins(texts: Iterable[str]) -> dict[str, str]:
    pins = {}
    for text in texts:
        if (match := _PIN.fullmatch(text)) is None:
            raise InvalidRequest(f"--pin {text}: write it as imagenet@1=SHA256, with 64 digits 0-9a-f")
        pins[match["key"]] = match["sha256"]
    return pins
