"""`classifleet up`: an embedded fleet in the foreground."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from classifleet.config import InvalidRequest
from classifleet.producer.cli._connect import start_embedded
from classifleet.producer.cli._options import split
from classifleet.producer.cli._terminal import say
from classifleet.producer.embedded import EmbeddedFleet

WATCH_SECONDS: Final = 0.5


def up(
    models: Annotated[
        str, typer.Option("--models", "--model", help="Models to load, by comma. Default: all in the repository.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder in which Redis keeps its data. Default: a temporary one.")
    ] = None,
    file_root: Annotated[
        list[Path] | None, typer.Option(help="Folder below which file:// references may be read; repeatable.")
    ] = None,
) -> None:
    """Run a Redis and a worker on this machine until Ctrl-C, and print the URL to use.

    **Examples**

    ```
    classifleet up
    classifleet up --models imagenet,nsfw --data ./fleet-data
    classifleet up --file-root /srv/photos
    ```
    """
    worker = {"FILE_ROOTS": json.dumps(_folders(file_root or ()))}
    folder = data.resolve() if data else None
    with start_embedded(models=split(models), worker=worker, folder=folder) as fleet:
        _say_where(fleet)
        while True:  # until a signal, which main() turns into an exception
            fleet.require_running()
            time.sleep(WATCH_SECONDS)


def _folders(roots: Sequence[Path]) -> list[str]:
    if wrong := next((root for root in roots if not root.is_dir()), None):
        raise InvalidRequest(f"--file-root {wrong}: there is no such folder")
    return [str(root.resolve()) for root in roots]


def _say_where(fleet: EmbeddedFleet) -> None:
    say("\nready", "bold")
    for what, where in (("broker", fleet.url), ("metrics", f"{fleet.http_url}/metrics"), ("log", str(fleet.log))):
        say(f"  {what:8} {where}")
    say(f"\n  export CLASSIFLEET_BROKER_URL={fleet.url}\n  classifleet classify photo.jpg\n")
    say("Ctrl-C stops it", "dim")
