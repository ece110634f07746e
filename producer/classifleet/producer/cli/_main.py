"""Puts the commands together, and turns errors and signals into one clear line and an exit code.

0    done
1    done, and something failed (each command's help says what)
2    not done: the arguments, the settings, or something that the command needs; the line says what
130  Ctrl-C
143  SIGTERM
"""

from __future__ import annotations

import signal
import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from classifleet.config import ClassifleetError, MissingExtra
from classifleet.config.checks import DISTRIBUTION
from classifleet.producer.cli._bulk import bulk
from classifleet.producer.cli._classify import classify
from classifleet.producer.cli._config import app as config
from classifleet.producer.cli._dead_letters import app as dead_letters
from classifleet.producer.cli._demo import demo
from classifleet.producer.cli._doctor import doctor
from classifleet.producer.cli._jobs import app as jobs
from classifleet.producer.cli._queue import app as queue
from classifleet.producer.cli._terminal import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED, fail
from classifleet.producer.cli._top import top
from classifleet.producer.cli._up import up

app = typer.Typer(
    name="classifleet",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("up")(up)
app.command("classify")(classify)
app.command("bulk")(bulk)
app.add_typer(jobs, name="jobs")
app.add_typer(queue, name="queue")
app.command("top")(top)
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(config, name="config")
app.command("doctor")(doctor)
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"classifleet {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Classify images on a fleet of workers."""


def _add_command_of_other_root(entry: EntryPoint) -> None:
    try:
        command = entry.load()
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "classifleet":
            raise  # a defect, and not a missing extra
        _add_stand_in(entry.name)
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=entry.name)
    else:
        app.command(entry.name)(command)


def _add_stand_in(name: str) -> None:
    """A command whose root lacks what it imports; it takes any arguments and says what to install."""
    missing = MissingExtra("worker", f"classifleet {name}")

    @app.command(
        name,
        help=f"Not installed: {missing}",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def stand_in(_: typer.Context) -> None:
        raise missing


for _entry in entry_points(group="classifleet.commands"):
    _add_command_of_other_root(_entry)


def main() -> None:
    """Run the command line; see the module's docstring for exit codes."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="classifleet")
    except (ClassifleetError, OSError) as error:
        fail(error)
        sys.exit(EXIT_ERROR)
    except ModuleNotFoundError as error:  # of an optional dependency: the others were imported long ago
        if (error.name or "").partition(".")[0] == "classifleet":
            raise
        fail(MissingExtra("worker", f"this command, which imports {error.name},"))
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:  # typer turns it into an exit itself, unless it comes very early or very late
        sys.exit(EXIT_INTERRUPTED)


def _terminate(*_: Any) -> None:
    """As an exception, so that embedded fleets are stopped and files are closed on the way out."""
    raise SystemExit(EXIT_TERMINATED)
