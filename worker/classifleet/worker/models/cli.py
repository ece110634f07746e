"""`classifleet models`: list, show, verify, tune, fetch, add, build.

torch is imported inside the commands that need it, so that help is instant. Errors are raised; the program's main
function turns a ClassifleetError into one line and exit status 2.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from classifleet.config.errors import InvalidRequest, ModelError
from classifleet.worker.models._cli_fetch import fetch
from classifleet.worker.models._cli_options import (
    JsonOption,
    ModelArgument,
    RepositoryOption,
    open_location,
    print_json,
    print_table,
)
from classifleet.worker.models._cli_tune import kept, tune
from classifleet.worker.models.repository import Repository, open_repository

if TYPE_CHECKING:
    from classifleet.worker.models.importers import Installed

LABELS_SHOWN: Final = 5
LIST_COLUMNS: Final = ("model", "kind", "labels", "input", "license", "error")

app = typer.Typer(
    name="models",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The models that workers load: look at them, check them, add your own.",
)

app.command("tune")(tune)
app.command("fetch")(fetch)


class Activation(StrEnum):
    """What is applied to the model's output."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class Kind(StrEnum):
    """Whether one label is right, or each stands alone."""

    SINGLE = "single"
    MULTI = "multi"


@app.command("list")
def list_models(repository: RepositoryOption = None, as_json: JsonOption = False) -> None:
    """List all versions of all models.

    **Example:** `classifleet models list --repository ./models`
    """
    where = open_location(repository)
    rows = [_summary(where, key) for key in where.list()]
    if as_json:
        print_json(rows)
    elif rows:
        print_table([name for name in LIST_COLUMNS if any(name in row for row in rows)], rows)
    else:
        typer.echo(f"{where.path} has no models; `classifleet models build` adds the built-in ones")


@app.command()
def show(model: ModelArgument, repository: RepositoryOption = None, as_json: JsonOption = False) -> None:
    """Show one model's description.

    **Examples:** `classifleet models show imagenet`, `classifleet models show nsfw@1 --json`
    """
    where = open_location(repository)
    described = where.describe(model)
    fields = described.model_dump(mode="json")
    fields["tuned"] = kept(where, described)
    if as_json:
        print_json(fields)
        return
    labels = fields.pop("labels")
    more = f", … ({len(labels)} in all)" if len(labels) > LABELS_SHOWN else ""
    fields["labels"] = ", ".join(labels[:LABELS_SHOWN]) + more
    print_table(("field", "value"), [{"field": name, "value": value} for name, value in fields.items()])


@app.command()
def verify(
    model: ModelArgument,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to classify as well; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:1`.")] = "auto",
    repository: RepositoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model's files, run it, and compare its answers to the golden pictures.

    **Examples:** `classifleet models verify imagenet`, `classifleet models verify imagenet --image cat.jpg`
    """
    from classifleet.worker.models.verification import verify as run_checks

    checks = list(run_checks(open_location(repository), model, device=device, images=image or ()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [{"check": c.what, "result": "ok" if c.ok else "FAILED", "seen": c.detail} for c in checks]
        print_table(("check", "result", "seen"), rows)
    if failed := [check for check in checks if not check.ok]:
        raise ModelError(
            f"{model}: {len(failed)} of {len(checks)} checks failed: {failed[0].what}: {failed[0].detail}"
        )


@app.command()
def build(
    names: Annotated[list[str] | None, typer.Argument(help="`imagenet`, `nsfw`. Default: both.")] = None,
    repository: RepositoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the built-in models, offline, from the wheels of the extra [zoo]. Repeating it is harmless.

    **Examples:** `classifleet models build`, `classifleet models build imagenet --repository ./models`
    """
    where = _local(repository)  # before torch, so that a wrong argument fails at once
    from classifleet.worker.models.zoo import ZOO
    from classifleet.worker.models.zoo import build as build_model

    for name in names or ZOO:
        _report(build_model(name, where), where, as_json)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The new model's name: a-z, 0-9, `.`, `_`, `-`.")],
    source: Annotated[str, typer.Argument(help="`model.pt` (TorchScript), `model.onnx` or `torchvision:resnet50`.")],
    labels: Annotated[Path | None, typer.Option(help="Labels in output order: .txt, one a line, or .json.")] = None,
    version: Annotated[str, typer.Option(help="A positive number; a version never changes.")] = "1",
    like: Annotated[str | None, typer.Option(help="Take input and preprocessing from this model.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field of model.json; the value is JSON. Repeatable."),
    ] = None,
    activation: Annotated[Activation | None, typer.Option(help="What to apply to the model's output.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="One label is right, or each stands alone.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="The licence of the weights.")] = None,
    golden: Annotated[list[Path] | None, typer.Option(help="A picture whose answer is kept; repeatable.")] = None,
    weights: Annotated[Path | None, typer.Option(help="torchvision: the file, under its original name.")] = None,
    download: Annotated[bool, typer.Option("--download", help="torchvision: fetch the weights.")] = False,
    repository: RepositoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a model of your own.

    **Examples:**

    `classifleet models add pets pets.pt --labels pets.txt --like imagenet --activation softmax --license MIT`

    `classifleet models add tags tags.onnx --labels tags.json --activation sigmoid --kind multi --license MIT
    --like imagenet --set preprocess.mean=[0,0,0] --set output.threshold=0.4 --golden beach.jpg`

    `classifleet models add resnet50 torchvision:resnet50 --weights resnet50-11ad3fa6.pth`
    """
    where = _local(repository)
    fields: dict[str, Any] = {"name": name, "version": version}
    if like:
        fields |= where.describe(like).model_dump(mode="json", include={"input", "preprocess"})
    pictures = {path.name: _read(path) for path in golden or ()}
    options: dict[str, Any] = {"output.activation": activation, "output.kind": kind, "license": license_}
    from classifleet.worker.models.importers import install, open_source, read_labels

    if labels:
        fields["labels"] = read_labels(labels)
        options["output.num_classes"] = len(fields["labels"])
    opened = open_source(source, weights=weights, download=download)
    if "source" not in opened.fields:
        fields["source"] = Path(source).name
    for path, value in [*options.items(), *map(_assignment, assign or ())]:
        if value is not None:
            _assign(fields, path, value)
    origin = f"{name}@{version} (fields come from --like MODEL and --set FIELD=VALUE)"
    _report(install(where, opened, fields, golden=pictures, origin=origin), where, as_json)


def _local(location: str | None) -> Repository:
    """The repository, which must be a folder: a version appears by a rename."""
    from classifleet.config.settings import Settings

    location = location or Settings.load().model_repository
    if location.startswith("s3://"):
        raise InvalidRequest(f"{location}: models are added to a folder; copy it there afterwards (aws s3 sync)")
    return open_repository(location)


def _summary(repository: Repository, key: str) -> dict[str, Any]:
    """One row of the list; a broken model is a row as well, or it would hide the others."""
    try:
        found = repository.describe(key)
    except ModelError as error:
        return {"model": key, "error": str(error)}
    return {
        "model": key,
        "kind": found.output.kind,
        "labels": len(found.labels),
        "input": "x".join(map(str, found.input.size)),
        "license": found.license,
        "sha256": found.sha256,
        "summary": found.summary,
    }


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"--set {text}: write it as FIELD=VALUE, such as preprocess.scale=1")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value  # plain text needs no quotes


def _assign(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise InvalidRequest(f"--set {path}: {parent} has no fields")
    fields[last] = value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from error


def _report(installed: Installed, repository: Repository, as_json: bool) -> None:
    """What happened to one model: a line, or a JSON object on one line."""
    found = installed.description
    golden = [entry.model_dump() for entry in found.golden]
    if as_json:
        typer.echo(
            json.dumps({"model": found.key, "added": installed.added, "sha256": found.sha256, "golden": golden})
        )
        return
    state = "added to" if installed.added else "is already in"
    typer.echo(f"{found.key} {state} {repository.path} ({len(found.labels)} labels, sha256 {found.sha256})")
    for entry in found.golden if installed.added else ():
        typer.echo(f"  {entry.image}: {entry.top} {entry.confidence:.3f}")
