"""`classifleet jobs`: what became of earlier submissions."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from classifleet.config import InvalidRequest
from classifleet.producer._flows import JobInfo
from classifleet.producer.cli._connect import BrokerUrl, running_fleet, stderr
from classifleet.producer.cli._progress import follow, summary_table
from classifleet.producer.formats import FORMATS

app = typer.Typer(help="List, follow, cancel and read jobs.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, a line each.")]


@app.command("list")
def list_jobs(
    count: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
) -> None:
    """List the newest jobs."""
    with running_fleet(broker_url) as fleet:
        infos = fleet.jobs(count)
    if as_json:
        for info in infos:
            typer.echo(json.dumps(_as_dict(info)))
        return
    table = Table("job", "state", "images", "failed", "models", "created", box=None, header_style="bold")
    for info in infos:
        p = info.progress
        images = f"{p.done}/{p.accepted}" + ("" if p.total is not None else "+")
        table.add_row(info.id, _state(info), images, str(p.failed), ", ".join(info.models), _time(info.created_at))
    Console().print(table)


@app.command()
def show(job: JobId, as_json: AsJson = False, broker_url: BrokerUrl = None) -> None:
    """Show one job: what was asked for, how far it is, and its errors by code."""
    with running_fleet(broker_url) as fleet:
        info = fleet.job(job).info()
    if as_json:
        typer.echo(json.dumps(_as_dict(info)))
        return
    console = Console()
    console.print(f"[bold]{info.id}[/]  {_state(info)}  created {_time(info.created_at)}")
    console.print(f"models {', '.join(info.models)}  queue {info.queue}  records in {info.sink or 'Redis'}")
    console.print(summary_table(info.progress))


@app.command()
def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(help="Seconds; default: as long as it takes.")] = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Wait for a job's end, with its progress. Ctrl-C leaves the job alone."""
    with running_fleet(broker_url) as fleet:
        progress = follow(fleet.job(job), timeout)
    Console().print(summary_table(progress))


@app.command()
def cancel(job: JobId, broker_url: BrokerUrl = None) -> None:
    """Cancel what is not at work yet; those images get a record that says `cancelled`."""
    with running_fleet(broker_url) as fleet:
        cancelled = fleet.job(job).cancel()
    stderr.print(f"{job} is cancelled" if cancelled else f"{job} had ended; nothing to cancel")


@app.command()
def results(
    job: JobId,
    format: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "native",  # noqa: A002
    follow_: Annotated[bool, typer.Option("--follow", help="Wait for those still to come.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only images without an answer.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Print a job's records, one JSON object a line, in the order of finishing."""
    if format not in FORMATS:
        raise InvalidRequest(f"the format {format!r} is none of {', '.join(FORMATS)}")
    with running_fleet(broker_url) as fleet:
        for result in fleet.job(job).results(follow=follow_):
            if failed and result.ok:
                continue
            json.dump(result.to_dict(format), sys.stdout, ensure_ascii=False)
            sys.stdout.write("\n")


@app.command()
def delete(job: JobId, broker_url: BrokerUrl = None) -> None:
    """Delete a finished job and its records from Redis; what a sink holds stays."""
    with running_fleet(broker_url) as fleet:
        if not fleet.job(job).delete():
            raise InvalidRequest(f"{job} still runs: cancel it first, or wait for it")
    stderr.print(f"{job} is deleted")


def _state(info: JobInfo) -> str:
    state = info.progress.state
    return f"{state}, ending" if state == "cancelled" and not info.progress.finished else state


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_dict(info: JobInfo) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(info)
