"""`classifleet up`: an embedded fleet in the foreground."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from classifleet.producer.cli._connect import split, start_embedded, stderr


def up(
    models: Annotated[
        str, typer.Option("--models", "--model", help="Models to load, by comma. Default: all in the repository.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder in which Redis keeps its data. Default: a temporary one.")
    ] = None,
    file_root: Annotated[
        list[Path] | None, typer.Option(help="Folder below which file:// references may be read.")
    ] = None,
) -> None:
    """Run a Redis and a worker on this machine until Ctrl-C, and print the URL to use.

    Examples:
      classifleet up

      classifleet up --models imagenet,nsfw --data ./classifleet-data
    """
    worker = {"FILE_ROOTS": ",".join(str(root.resolve()) for root in file_root)} if file_root else {}
    signal.signal(signal.SIGTERM, _interrupt)
    with start_embedded(models=split(models), worker=worker, folder=data) as fleet:
        stderr.print(f"\n[bold]ready[/]   broker   {fleet.url}\n        metrics  {fleet.http_url}/metrics")
        stderr.print(f"        log      {fleet.log}\n")
        stderr.print(f"  export CLASSIFLEET_BROKER_URL={fleet.url}\n  classifleet classify photo.jpg\n")
        stderr.print("[dim]Ctrl-C stops it[/]")
        try:
            signal.pause()
        except KeyboardInterrupt:
            stderr.print("stopping…")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
