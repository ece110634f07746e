"""The fleet that a command talks to: the configured one, or an embedded one for the command's duration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from classifleet.config import Settings, SettingsError
from classifleet.producer.embedded import EmbeddedFleet, embedded_fleet
from classifleet.producer.fleet import Fleet

BrokerUrl = Annotated[
    str | None, typer.Option("--broker-url", help="The fleet's broker [CLASSIFLEET_BROKER_URL].", show_default=False)
]
ModelNames = Annotated[
    str, typer.Option("--models", "--model", help="One or more models, by comma: `imagenet,nsfw@1`.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Classes to return, best first.")]

stderr = Console(stderr=True, highlight=False)


def split(names: str) -> list[str]:
    """A list given by comma."""
    return [name.strip() for name in names.split(",") if name.strip()]


def is_configured(broker_url: str | None) -> bool:
    """Whether a broker is known; else a command starts an embedded fleet."""
    return bool(Settings.load(broker_url=broker_url).broker_url)


@contextmanager
def running_fleet(broker_url: str | None) -> Iterator[Fleet]:
    """The configured fleet.

    Raises:
        SettingsError: None is configured.
    """
    if not is_configured(broker_url):
        raise SettingsError("no fleet is configured: set CLASSIFLEET_BROKER_URL, or pass --broker-url")
    with Fleet(broker_url) as fleet:
        yield fleet


@contextmanager
def fleet_or_embedded(
    broker_url: str | None,
    *,
    models: list[str],
    worker: Mapping[str, str],
    folder: Path | None = None,
    **settings: Any,
) -> Iterator[Fleet]:
    """The configured fleet, or an embedded one that ends with the command and says so.

    Args:
        broker_url: As given on the command line.
        models: What an embedded worker loads.
        worker: Further settings of an embedded worker.
        folder: Where an embedded fleet keeps its data.
        **settings: Settings of the client.
    """
    if is_configured(broker_url):
        with Fleet(broker_url, **settings) as fleet:
            yield fleet
        return
    with (
        start_embedded(models=models, worker=worker, folder=folder) as embedded,
        Fleet(embedded.url, redis_url=embedded.url, **settings) as fleet,
    ):
        yield fleet


@contextmanager
def start_embedded(
    *, models: list[str], worker: Mapping[str, str], folder: Path | None = None
) -> Iterator[EmbeddedFleet]:
    """An embedded fleet, with what it is doing on standard error."""
    stderr.print("[dim]no broker is configured: starting an embedded Redis and a worker for this command[/]")
    build_zoo_models(models)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=stderr, transient=True) as progress:
        task = progress.add_task("starting…")

        def report(states: Mapping[str, str]) -> None:
            text = ", ".join(f"{name}: {state}" for name, state in states.items())
            progress.update(task, description=f"loading models  {text}")

        settings = {**worker, **({"MODELS": ",".join(models)} if models else {})}
        manager = embedded_fleet(settings=settings, folder=folder, report=report)
        embedded = manager.__enter__()
    try:
        yield embedded
    finally:
        manager.__exit__(None, None, None)


def build_zoo_models(models: list[str]) -> None:
    """Build the zoo's models that are asked for and not in the repository yet (a few seconds, once)."""
    import subprocess
    import sys

    repository = Path(Settings.load().model_repository)
    for name in ("imagenet", "nsfw"):
        wanted = name in models
        if wanted and "://" not in str(repository) and not any(repository.glob(f"{name}/*/model.json")):
            stderr.print(f"[dim]building the model {name} into {repository} (once)[/]")
            subprocess.run([sys.executable, "-m", "classifleet.producer.cli", "models", "build", name], check=False)
