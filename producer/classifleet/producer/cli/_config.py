"""`classifleet config show`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from classifleet.config import Settings, mask_url

app = typer.Typer(help="Settings.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `show` a sub-command."""


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show every setting with its value and where that came from; passwords are masked."""
    settings = Settings.load()
    rows = {name: (_shown(getattr(settings, name)), settings.source(name)) for name in Settings.model_fields}
    if as_json:
        typer.echo(json.dumps({name: {"value": value, "source": source} for name, (value, source) in rows.items()}))
        return
    table = Table("setting", "value", "source", box=None, header_style="bold")
    for name, (value, source) in rows.items():
        table.add_row(f"CLASSIFLEET_{name.upper()}", "" if value is None else str(value), source)
    Console(soft_wrap=True).print(table)


def _shown(value: Any) -> Any:
    return mask_url(value) if isinstance(value, str) and "://" in value else value
