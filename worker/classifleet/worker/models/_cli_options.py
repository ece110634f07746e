"""What the commands of `classifleet models` have in common: their options, and how they print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from classifleet.worker.models.repository import Repository, open_repository

RepositoryOption = Annotated[
    str | None,
    typer.Option(
        "--repository", "-r", help="Folder or s3:// prefix of models. Default: the setting MODEL_REPOSITORY."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs instead of a table for people.")]
ModelArgument = Annotated[str, typer.Argument(help="`imagenet` (its highest version) or `imagenet@1`.")]


def open_location(location: str | None) -> Repository:
    """The repository that the option names, else that of the settings."""
    from classifleet.config.settings import Settings

    settings = Settings.load()
    return open_repository(location or settings.model_repository, settings)


def print_json(content: Any) -> None:
    """For programs."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """For people."""
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*(escape(_text(row.get(column, ""))) for column in columns))
    Console().print(table)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
