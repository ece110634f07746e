"""`classifleet doctor`: is everything there, and if not, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifleet.config import ClassifleetError, Settings
from classifleet.config.checks import Check, Finding, State
from classifleet.producer.cli._checks import producer_checks
from classifleet.producer.cli._options import BrokerUrl
from classifleet.producer.cli._terminal import EXIT_SOME_FAILED, plain, print_json

_MARKS: Final = {
    State.OK: Text("ok", "green"),
    State.WARNING: Text("note", "yellow"),
    State.FAILED: Text("FAILED", "red"),
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False, broker_url: BrokerUrl = None
) -> None:
    """Check the broker, the ledger, the object store, models, device and versions; say what to do.

    Exit code 1 if a check failed.

    **Examples**

    ```
    classifleet doctor
    CLASSIFLEET_BROKER_URL=redis://10.0.0.5:6379/0 classifleet doctor --json
    ```
    """
    settings = Settings.load(broker_url=broker_url)
    findings = [finding for check in _checks() for finding in run_check(check, settings)]
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        Console(highlight=False).print(_table(findings))
    if any(finding.state is State.FAILED for finding in findings):
        raise typer.Exit(EXIT_SOME_FAILED)


def run_check(check: Check, settings: Settings) -> list[Finding]:
    """Carry out a check; an error of ours is its finding."""
    try:
        return list(check(settings))
    except ClassifleetError as error:
        return [Finding(check.__name__.removeprefix("check_"), State.FAILED, str(error))]


def _checks() -> Iterator[Check]:
    yield from producer_checks()
    for entry in entry_points(group="classifleet.checks"):
        checks: Callable[[], list[Check]] = entry.load()
        yield from checks()


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        table.add_row(_MARKS[finding.state], finding.subject, Text.assemble(plain(finding.what), (remedy, "bold")))
    return table
