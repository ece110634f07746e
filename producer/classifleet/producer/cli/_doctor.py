"""`classifleet doctor`: is everything there, and if not, what to do."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, version
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from classifleet.config import ClassifleetError, Keys, Settings, mask_url
from classifleet.config.checks import Check, Finding, State
from classifleet.config.storage import open_store
from classifleet.ledger import connect, problems
from classifleet.producer.cli._connect import BrokerUrl

EXIT_UNFIT: Final = 1
_MARKS: Final = {State.OK: "[green]ok[/]", State.WARNING: "[yellow]note[/]", State.FAILED: "[red]FAILED[/]"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False, broker_url: BrokerUrl = None
) -> None:
    """Check the broker, the ledger, the object store, models, device and versions; say what to do.

    Exit code 1 if a check failed.
    """
    settings = Settings.load(broker_url=broker_url)
    findings = [finding for check in _checks() for finding in run_check(check, settings)]
    if as_json:
        import json

        typer.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        table = Table(box=None, show_header=False)
        for finding in findings:
            table.add_row(_MARKS[finding.state], f"[bold]{finding.subject}[/]", finding.text())
        Console(soft_wrap=True, highlight=False).print(table)
    if any(finding.state is State.FAILED for finding in findings):
        raise typer.Exit(EXIT_UNFIT)


def run_check(check: Check, settings: Settings) -> list[Finding]:
    """Carry out a check; an error of ours is its finding."""
    try:
        return list(check(settings))
    except ClassifleetError as error:
        return [Finding(check.__name__.removeprefix("check_"), State.FAILED, str(error))]


def _checks() -> Iterator[Check]:
    yield from (check_versions, check_broker, check_ledger, check_store)
    for entry in entry_points(group="classifleet.checks"):
        try:
            checks: Callable[[], list[Check]] = entry.load()
        except ImportError:
            continue  # the extra is not installed, so this machine is no worker
        yield from checks()


def check_versions(_: Settings) -> Iterator[Finding]:
    """Versions of what matters."""
    names = ("classifleet", "celery", "kombu", "redis")
    yield Finding(
        "versions", State.OK, f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names)
    )


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Does the broker answer?"""
    if not settings.broker_url:
        yield Finding(
            "broker",
            State.WARNING,
            "none is configured; classify and bulk start an embedded fleet",
            "set CLASSIFLEET_BROKER_URL to use a fleet",
        )
        return
    from kombu import Connection

    from classifleet.config.celery_app import transport_options

    url = settings.broker_url
    options = transport_options(url, settings.connect_timeout_seconds)
    try:
        with Connection(
            url, connect_timeout=settings.connect_timeout_seconds, transport_options=options
        ) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=True)
            connection.default_channel.queue_declare(queue="classify.default.interactive", passive=True, durable=True)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        if _answered(error):
            yield Finding("broker", State.OK, f"{mask_url(url)} answers; the queues do not exist yet")
            return
        yield Finding(
            "broker",
            State.FAILED,
            f"{mask_url(url)} does not answer: {error}",
            "start it, or correct CLASSIFLEET_BROKER_URL",
        )
        return
    yield Finding("broker", State.OK, f"{mask_url(url)} answers")


def _answered(error: Exception) -> bool:
    """A queue that does not exist is an answer: AMQP's 404."""
    return getattr(error, "code", None) == 404 or getattr(error, "reply_code", None) == 404


def check_ledger(settings: Settings) -> Iterator[Finding]:
    """Is the ledger's Redis there, and fit to hold one?"""
    import redis

    if not settings.broker_url and not settings.redis_url:
        return
    url = settings.ledger_url()
    client = connect(settings)
    try:
        found = problems(client, Keys(settings.namespace), ephemeral=settings.ephemeral)
    except redis.RedisError as error:
        yield Finding(
            "ledger",
            State.FAILED,
            f"{mask_url(url)} does not answer: {error}",
            "start it, or correct CLASSIFLEET_REDIS_URL",
        )
        return
    finally:
        client.close()
    for problem in found:
        yield Finding("ledger", State.FAILED, f"{mask_url(url)}: {problem.what}", problem.remedy)
    if not found:
        yield Finding("ledger", State.OK, f"{mask_url(url)} is fit")


def check_store(settings: Settings) -> Iterator[Finding]:
    """Can the allowed sinks be listed?"""
    if not settings.sink_allow:
        yield Finding("object store", State.OK, "no sink is allowed; records stay in Redis (CLASSIFLEET_SINK_ALLOW)")
    for sink in settings.sink_allow:
        try:
            next(iter(open_store(sink, settings).names()), None)
        except (ClassifleetError, FileNotFoundError) as error:
            yield Finding(
                "object store",
                State.FAILED,
                f"{sink}: {error}",
                "check the bucket, CLASSIFLEET_S3_ENDPOINT_URL and the credentials",
            )
        else:
            yield Finding("object store", State.OK, f"{sink} can be listed")
