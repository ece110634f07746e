"""`classifleet config show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from classifleet.config import Settings, mask_url
from classifleet.producer.cli._terminal import plain, print_json

app = typer.Typer(help="See the settings in force.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `show` a sub-command."""


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show every setting with its value and where that came from; passwords are masked.

    **Examples**

    ```
    classifleet config show
    CLASSIFLEET_CONFIG_FILE=fleet.toml classifleet config show --json
    ```
    """
    settings = Settings.load()
    rows = {name: (_masked(getattr(settings, name)), settings.source(name)) for name in Settings.model_fields}
    if as_json:
        print_json({name: {"value": value, "source": source} for name, (value, source) in rows.items()})
        return
    lines = [(f"CLASSIFLEET_{name.upper()}", source, _as_variable(value)) for name, (value, source) in rows.items()]
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    for name, source, value in lines:  # the value last: nothing is cut off, however long it is
        typer.echo(plain(f"{name:{first}}  {source:{second}}  {value}").rstrip())


def _masked(value: Any) -> Any:
    if isinstance(value, list):
        return [_masked(element) for element in value]
    return mask_url(value) if isinstance(value, str) and "://" in value else value


def _as_variable(value: Any) -> str:
    """A value as it is written in a variable."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list():
            return ",".join(map(str, value))
        case dict():
            return ",".join(f"{key}={item}" for key, item in value.items())
        case _:
            return str(value)
