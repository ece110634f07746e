"""`classifleet dead-letters`: images that failed for a reason of ours, to look at, try again, or drop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classifleet.config import InvalidRequest, QueueFull
from classifleet.producer import _dead_letters as flows
from classifleet.producer._dead_letters import Requeued
from classifleet.producer._letters import DeadLetter
from classifleet.producer.cli._connect import running_fleet
from classifleet.producer.cli._options import BrokerUrl
from classifleet.producer.cli._terminal import EXIT_SOME_FAILED, fail, plain, print_json, say
from classifleet.producer.cli._times import parse_age, when
from classifleet.producer.fleet import Fleet

app = typer.Typer(help="See, try again and drop images that failed for a reason of ours.", no_args_is_help=True)
REASONS_SHOWN = 5
Job = Annotated[str | None, typer.Option("--job", help="Only of this job.", show_default=False)]
Code = Annotated[str | None, typer.Option("--code", help="Only with this error code.", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help="Only for this model.", show_default=False)]
Since = Annotated[
    timedelta | None,
    typer.Option("--since", parser=parse_age, metavar="AGE", help="Not older: 30s, 15m, 2h, 7d.", show_default=False),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="So many, newest first.", show_default=False)]
Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[LETTER]…", help="Letters by name; default: those that match.")
]
All = Annotated[bool, typer.Option("--all", help="Every letter, where nothing narrows the choice.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, a line each.")]


@app.command("list")
def list_letters(
    job: Job = None,
    code: Code = None,
    model: Model = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="So many, newest first.")] = 100,
    as_json: AsJson = False,
    broker_url: BrokerUrl = None,
) -> None:
    """List the newest dead letters.

    **Examples**

    ```
    classifleet dead-letters list
    classifleet dead-letters list --code model_failed --model nsfw --since 2h
    classifleet dead-letters list --job nightly-1 --json
    ```
    """
    with running_fleet(broker_url) as fleet:
        letters = fleet.dead_letters(job=job, code=code, model=model, since=since, limit=limit)
    if as_json:
        for letter in letters:
            print_json(letter.to_dict())
    elif not letters:
        say("there are no dead letters" + (" that match" if job or code or model or since else ""))
    else:
        Console(highlight=False).print(_table(letters))


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="A letter's name.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Show one dead letter: the image, what was asked for, and what became of each attempt.

    **Example**

    ```
    classifleet dead-letters show nightly-1.00000007.3
    ```
    """
    with running_fleet(broker_url) as fleet:
        [found] = fleet._engine.drive(flows.named(fleet._flows.ledger, [letter]))
    if as_json:
        print_json(found.to_dict())
        return
    console = Console(highlight=False)
    for name, value in _lines(found).items():
        console.print(Text.assemble((f"{name:9} ", "bold"), plain(value)), soft_wrap=True)


@app.command()
def requeue(
    letters: Letters = None,
    job: Job = None,
    code: Code = None,
    model: Model = None,
    since: Since = None,
    limit: Limit = None,
    everything: All = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Try images again, those of one job as one new job, and print the new jobs' ids.

    The letters stay, with a note of the new job. An image that has such a note is not sent again, and a command that
    was interrupted is the same job when it is repeated. If the queue has no room it says so and waits. Exit code 1 if
    an image could not be sent, since the bytes that were kept of it have expired.

    **Examples**

    ```
    classifleet dead-letters requeue --job nightly-1
    classifleet dead-letters requeue --code model_failed --since 1d
    classifleet dead-letters requeue nightly-1.00000007.3
    ```
    """
    with running_fleet(broker_url) as fleet:
        chosen = _choose(fleet, letters, everything, job=job, code=code, model=model, since=since, limit=limit)
        outcome = _requeue(fleet, chosen)
    if as_json:
        print_json({"jobs": outcome.jobs, "before": outcome.before, "skipped": outcome.skipped})
    else:
        for name, images in outcome.jobs.items():
            typer.echo(f"job {name}")
            say(f"{_images(images)} requeued as {name}; classifleet jobs wait {name}")
        for name, images in outcome.before.items():
            say(f"{_images(images)} had been requeued before, as {name}")
        for key, why in list(outcome.skipped.items())[:REASONS_SHOWN]:
            fail(f"{key} is not requeued: {why}")
        if (left := len(outcome.skipped) - REASONS_SHOWN) > 0:
            fail(f"{left} more are not requeued (--json lists all)")
        if not chosen:
            say("there are no dead letters that match")
    if outcome.skipped:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def discard(
    letters: Letters = None,
    job: Job = None,
    code: Code = None,
    model: Model = None,
    since: Since = None,
    limit: Limit = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Drop dead letters and the images that were kept for them; their records stay.

    **Examples**

    ```
    classifleet dead-letters discard --job nightly-1
    classifleet dead-letters discard --all --yes
    ```
    """
    with running_fleet(broker_url) as fleet:
        chosen = _choose(fleet, letters, everything, job=job, code=code, model=model, since=since, limit=limit)
        if not chosen:
            say("there are no dead letters that match")
            return
        if not yes and not typer.confirm(f"Discard {_letters(len(chosen))}?", err=True):
            raise typer.Exit(EXIT_SOME_FAILED)
        dropped = fleet.discard(chosen)
    say(f"{_letters(dropped)} discarded")


def _choose(fleet: Fleet, names: Sequence[str] | None, everything: bool, **narrow: Any) -> list[DeadLetter]:
    given = [name for name, value in narrow.items() if value is not None]
    if names:
        if given or everything:
            raise InvalidRequest("name letters, or say which are meant with options, but not both")
        return fleet._engine.drive(flows.named(fleet._flows.ledger, list(dict.fromkeys(names))))
    if not given and not everything:
        raise InvalidRequest("which letters? Name them, narrow the choice (--job, --code, …), or say --all")
    return fleet.dead_letters(**narrow)


def _requeue(fleet: Fleet, chosen: Sequence[DeadLetter]) -> Requeued:
    try:
        return fleet.requeue(chosen)
    except QueueFull as error:
        say(f"{error}")
        say("waiting for room; Ctrl-C ends that, and the same command goes on later")
    outcome = fleet.requeue(chosen, wait_seconds=None)
    earlier = {letter.requeued_as for letter in chosen}
    first = Counter({name: images for name, images in outcome.before.items() if name not in earlier})  # had their room
    return Requeued(outcome.jobs + first, outcome.before - first, outcome.skipped)


def _table(letters: Sequence[DeadLetter]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("letter", overflow="fold")
    for name in ("image", "error", "models"):
        table.add_column(name, overflow="fold")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("requeued", overflow="fold")
    for letter in letters:
        cells = (letter.key, letter.id, letter.code, ", ".join(letter.models), when(letter.finished_at))
        table.add_row(*(Text(plain(cell)) for cell in cells), "yes" if letter.requeued_as else "")
    return table


def _lines(letter: DeadLetter) -> dict[str, str]:
    lines = {
        "letter": letter.key,
        "error": f"{letter.code}: {letter.message}",
        "image": letter.id,
        "ref": letter.ref,
        "meta": ", ".join(f"{name}={value}" for name, value in letter.meta.items()),
        "job": f"{letter.job}, chunk {letter.chunk}, {letter.lane}",
        "models": ", ".join(letter.models),
        "options": ", ".join(f"{name}={value}" for name, value in letter.options.items()),
        "deadline": "" if letter.deadline_seconds is None else f"{letter.deadline_seconds:g} s",
        "sink": letter.sink or "",
        "requeued": f"as {letter.requeued_as}" if letter.requeued_as else "",
    }
    for one in letter.history:
        lines[f"attempt {one.attempt}"] = f"{when(one.at)}  {one.ended}  {one.worker}"
    if letter.readable:
        lines[f"attempt {letter.attempt}"] = f"{when(letter.finished_at)}  {letter.code}  {letter.worker}"
    return {name: value for name, value in lines.items() if value}


def _images(number: int) -> str:
    return f"{number} image" + ("s" if number != 1 else "")


def _letters(number: int) -> str:
    return f"{number} dead letter" + ("s" if number != 1 else "")
