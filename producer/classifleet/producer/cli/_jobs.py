"""`classifleet jobs`: what became of earlier submissions."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifleet.config import InvalidRequest
from classifleet.producer._flows import JobInfo
from classifleet.producer.cli._connect import running_fleet
from classifleet.producer.cli._options import BrokerUrl, RecordFormat
from classifleet.producer.cli._output import print_records
from classifleet.producer.cli._progress import follow, summary_table
from classifleet.producer.cli._terminal import plain, print_json, say

app = typer.Typer(help="List, follow, cancel and read jobs.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, a line each.")]


@app.command("list")
def list_jobs(
    count: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
) -> None:
    """List the newest jobs.

    **Examples**

    ```
    classifleet jobs list
    classifleet jobs list --count 100 --json
    ```
    """
    with running_fleet(broker_url) as fleet:
        infos = fleet.jobs(count)
    if as_json:
        for info in infos:
            print_json(asdict(info))
    elif not infos:
        say("there are no jobs")
    else:
        Console().print(_table(infos))


@app.command()
def show(job: JobId, as_json: AsJson = False, broker_url: BrokerUrl = None) -> None:
    """Show one job: what was asked for, how far it is, and its errors by code.

    **Example**

    ```
    classifleet jobs show nightly-1
    ```
    """
    with running_fleet(broker_url) as fleet:
        info = fleet.job(job).info()
    if as_json:
        print_json(asdict(info))
        return
    console = Console(highlight=False)
    lines = {
        "job": info.id,
        "state": _state(info),
        "created": _time(info.created_at),
        "models": ", ".join(info.models),
        "queue": info.queue,
        "records": f"{info.sink}/{info.id}/" if info.sink else "in Redis: classifleet jobs results",
        **({"requeued": f"from the dead letters of {info.requeued_from}"} if info.requeued_from else {}),
    }
    for name, value in lines.items():
        console.print(Text.assemble((f"{name:8} ", "bold"), plain(value)), soft_wrap=True)
    console.print(summary_table(info.progress))


@app.command()
def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(help="Seconds; default: as long as it takes.")] = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Wait for a job's end, with its progress. Ctrl-C leaves the job alone.

    **Example**

    ```
    classifleet jobs wait nightly-1 --timeout 600
    ```
    """
    with running_fleet(broker_url) as fleet:
        progress = follow(fleet, fleet.job(job), timeout)
    Console().print(summary_table(progress))


@app.command()
def cancel(job: JobId, broker_url: BrokerUrl = None) -> None:
    """Cancel what is not at work yet; those images get a record that says `cancelled`.

    **Example**

    ```
    classifleet jobs cancel nightly-1
    ```
    """
    with running_fleet(broker_url) as fleet:
        cancelled = fleet.job(job).cancel()
    say(f"{job} is cancelled" if cancelled else f"{job} had ended; nothing to cancel")


@app.command()
def results(
    job: JobId,
    format: Annotated[  # noqa: A002 - the option's name
        RecordFormat, typer.Option("--format", help="How to print them.")
    ] = RecordFormat.NATIVE,
    follow_: Annotated[bool, typer.Option("--follow", help="Wait for those still to come.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only images without a full answer.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Print a job's records, one JSON value a line, in the order of finishing.

    **Examples**

    ```
    classifleet jobs results nightly-1 > records.ndjson
    classifleet jobs results nightly-1 --failed
    classifleet jobs results nightly-1 --follow --format mlkit
    ```
    """
    with running_fleet(broker_url) as fleet:
        records = fleet.job(job).results(follow=follow_)
        print_records((record for record in records if not (failed and record.ok)), format)


@app.command()
def delete(job: JobId, broker_url: BrokerUrl = None) -> None:
    """Delete a finished job and its records from Redis; what a sink holds stays.

    **Example**

    ```
    classifleet jobs delete nightly-1
    ```
    """
    with running_fleet(broker_url) as fleet:
        if not fleet.job(job).delete():
            raise InvalidRequest(f"{job} still runs: cancel it first, or wait for it")
    say(f"{job} is deleted")


def _table(infos: list[JobInfo]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("job", overflow="fold")
    for name in ("state", "images", "failed", "models"):
        table.add_column(name, overflow="fold", justify="right" if name in ("images", "failed") else "left")
    table.add_column("created (UTC)", no_wrap=True)
    for info in infos:
        p = info.progress
        images = f"{p.done}/{p.accepted}" + ("" if p.total is not None else "+")
        models = Text(", ".join(info.models))
        table.add_row(Text(info.id), _state(info), images, str(p.failed), models, _time(info.created_at))
    return table


def _state(info: JobInfo) -> str:
    state = info.progress.state
    return f"{state}, ending" if state in ("cancelled", "abandoned") and not info.progress.finished else state


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
