"""Puts the commands together and turns errors into one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from rich.console import Console

from classifleet.config import ClassifleetError, MissingExtra
from classifleet.producer.cli._bulk import bulk
from classifleet.producer.cli._classify import classify
from classifleet.producer.cli._config import app as config
from classifleet.producer.cli._demo import demo
from classifleet.producer.cli._doctor import doctor
from classifleet.producer.cli._jobs import app as jobs
from classifleet.producer.cli._up import up

EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="classifleet",
    help="Classify images on a fleet of workers.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("up")(up)
app.command("classify")(classify)
app.command("bulk")(bulk)
app.add_typer(jobs, name="jobs")
app.add_typer(config, name="config")
app.command("doctor")(doctor)
app.command("demo")(demo)


def _add_commands_of_other_roots() -> None:
    for entry in entry_points(group="classifleet.commands"):
        try:
            command = entry.load()
        except ImportError as error:
            app.command(entry.name, help=f"Not installed: {error}")(_not_installed(entry, error))
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)


def _not_installed(entry: EntryPoint, error: ImportError) -> Callable[[], Any]:
    def command() -> None:
        raise MissingExtra("worker", f"classifleet {entry.name}") from error

    return command


_add_commands_of_other_roots()


def main() -> None:
    """Run the command line; an error is one line on standard error and exit code 2."""
    try:
        app()
    except ClassifleetError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
