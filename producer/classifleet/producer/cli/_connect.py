"""The fleet that a command talks to: the configured one, or an embedded one for the command's duration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from classifleet.config import Settings, SettingsError
from classifleet.producer._children import child
from classifleet.producer.cli._terminal import plain, say, stderr
from classifleet.producer.embedded import (
    EmbeddedError,
    EmbeddedFleet,
    Report,
    classifleet_command,
    embedded_fleet,
    last_error,
)
from classifleet.producer.fleet import Fleet

ZOO: Final = ("imagenet", "nsfw")  # what `classifleet models build` can make


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


@dataclass(frozen=True, slots=True)
class Connection:
    """A fleet to talk to; `embedded` if it is this command's own."""

    fleet: Fleet
    embedded: EmbeddedFleet | None = None

    def check(self) -> None:
        """Do nothing while an embedded fleet runs; nobody would start it again.

        Raises:
            EmbeddedError: A part of it has ended.
        """
        if self.embedded is not None:
            self.embedded.require_running()


@contextmanager
def fleet_or_embedded(
    broker_url: str | None, *, models: Sequence[str], worker: Mapping[str, str], folder: Path | None = None
) -> Iterator[Connection]:
    """The configured fleet, or an embedded one that ends with the command and says so.

    Args:
        broker_url: As given on the command line.
        models: What an embedded worker loads.
        worker: Further settings of an embedded worker.
        folder: Where an embedded fleet keeps its data.
    """
    if is_configured(broker_url):
        with Fleet(broker_url) as fleet:
            yield Connection(fleet)
        return
    say("no broker is configured: starting an embedded Redis and a worker for this command", "dim")
    with start_embedded(models=models, worker=worker, folder=folder) as embedded, connect(embedded) as fleet:
        yield Connection(fleet, embedded)


def connect(embedded: EmbeddedFleet, **settings: Any) -> Fleet:
    """A client of an embedded fleet, whatever the person's own broker and ledger are."""
    return Fleet(embedded.url, redis_url=embedded.url, **settings)


@contextmanager
def start_embedded(
    *, models: Sequence[str], worker: Mapping[str, str], folder: Path | None = None
) -> Iterator[EmbeddedFleet]:
    """An embedded fleet, with how far its models are on standard error.

    Raises:
        EmbeddedError: A part of it does not start.
    """
    for name in _missing(models):
        _build(name)
    settings = {**worker, **({"MODELS": ",".join(models)} if models else {})}
    with ExitStack() as stack:
        with _loading() as report:
            fleet = stack.enter_context(embedded_fleet(settings=settings, folder=folder, report=report))
        try:
            yield fleet
        except (KeyboardInterrupt, SystemExit):
            say("stopping…", "dim")
            raise


@contextmanager
def _loading() -> Iterator[Report]:
    """Shows the models' states: in place on a terminal, a line for each change elsewhere."""
    shown: dict[str, str] = {}
    with stderr.status(Text("starting…")) as status:

        def report(states: Mapping[str, str]) -> None:
            changed = {name: state for name, state in states.items() if shown.get(name) != state}
            shown.update(changed)
            if changed and stderr.is_terminal:
                status.update(Text(plain("models  " + "  ".join(f"{name}: {state}" for name, state in shown.items()))))
            elif changed:
                for name, state in changed.items():
                    say(f"model {name}: {state}")

        yield report


def _missing(models: Sequence[str]) -> list[str]:
    """Models of the zoo that are asked for (or, for an empty repository, would be nice to have) and not there."""
    location = Settings.load().model_repository
    if "://" in location:
        return []
    there = {file.parent.parent.name for file in Path(location).expanduser().glob("*/*/model.json")}
    wanted = {name.partition("@")[0] for name in models} if models or there else set(ZOO)
    return [name for name in ZOO if name in wanted - there]


def _build(name: str) -> None:
    """Build a model of the zoo in a process of its own (this one has no torch); some seconds, once."""
    say(f"building the model {name} into {Settings.load().model_repository} (once)", "dim")
    with tempfile.NamedTemporaryFile(prefix="classifleet-build-") as log:
        with child(classifleet_command("models", "build", name), output=log.fileno()) as process:
            status = process.wait()
        if status != 0:
            raise EmbeddedError(f"the model {name} could not be built: {last_error(Path(log.name))}")
