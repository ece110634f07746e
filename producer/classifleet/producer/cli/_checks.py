"""The producer's checks for `classifleet doctor`: versions, broker, ledger, object store."""

from __future__ import annotations

import platform
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, get_args

from classifleet.config import (
    ClassifleetError,
    Keys,
    Lane,
    LedgerUnavailable,
    Settings,
    SettingsError,
    mask_url,
    queue_name,
)
from classifleet.config.checks import Check, Finding, State, check_requirements
from classifleet.config.storage import open_store
from classifleet.ledger import Ledger, QueueDepth, SyncRunner, advice, connect, problems, read_depth
from classifleet.producer.cli._queue import is_unserved
from classifleet.producer.cli._times import duration

STORE_REMEDY: Final = "check its name, CLASSIFLEET_S3_ENDPOINT_URL and the credentials"


def producer_checks() -> list[Check]:
    """Those that every machine can carry out."""
    return [check_versions, check_broker, check_ledger, check_workers, check_queues, check_store]


def check_versions(_: Settings) -> Iterator[Finding]:
    """Are Python and the libraries those that classifleet was made for?"""
    yield from check_requirements("versions", extra=None, also=f"Python {platform.python_version()}")


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
    from classifleet.config.celery_app import Publisher

    publisher = Publisher(settings)
    try:
        waiting = sum(publisher.depth(queue_name(pool, "bulk")) for pool in settings.queues)
    except ClassifleetError as error:
        yield Finding("broker", State.FAILED, str(error), "start it, or correct CLASSIFLEET_BROKER_URL")
        return
    except Exception as error:  # noqa: BLE001 - no such kind of broker, or one whose library is not installed
        what = f"{mask_url(settings.broker_url)} cannot be used: {error}"
        yield Finding("broker", State.FAILED, what, "correct CLASSIFLEET_BROKER_URL, or install what it needs")
        return
    finally:
        publisher.close()
    yield Finding("broker", State.OK, f"{mask_url(settings.broker_url)} answers; {waiting} bulk messages wait")


def check_ledger(settings: Settings) -> Iterator[Finding]:
    """Is the ledger's Redis there, and fit to hold one?"""
    import redis

    if not settings.broker_url and not settings.redis_url:
        return
    try:
        url = mask_url(settings.ledger_url())
    except SettingsError as error:
        yield Finding("ledger", State.FAILED, str(error), "name a Redis beside the broker")
        return
    client = connect(settings)
    try:
        found = problems(client, Keys(settings.namespace), ephemeral=settings.ephemeral)
        advised = advice(client)
    except redis.RedisError as error:
        remedy = "start it, or correct CLASSIFLEET_REDIS_URL (default: the broker's)"
        yield Finding("ledger", State.FAILED, f"{url} does not answer: {error}", remedy)
        return
    finally:
        client.close()
    for problem in found:
        yield Finding("ledger", State.FAILED, f"{url}: {problem.what}", problem.remedy)
    for problem in advised:
        yield Finding("ledger", State.WARNING, f"{url}: {problem.what}", problem.remedy)
    if not found:
        yield Finding("ledger", State.OK, f"{url} is fit")


def check_workers(settings: Settings) -> Iterator[Finding]:
    """Which workers and exporters live?"""
    if not settings.broker_url and not settings.redis_url:
        return
    try:
        with _ledger(settings) as (ledger, runner):
            known = runner.run(ledger.workers())
    except (LedgerUnavailable, SettingsError):
        return  # check_ledger says so
    workers = [one for one in known if one.pools]
    exporters = len(known) - len(workers)
    if not workers:
        what = f"no worker is running ({exporters} exporters)" if exporters else "no worker is running"
        yield Finding("workers", State.WARNING, what, "start `classifleet worker` for this broker")
        return
    pools = ", ".join(
        f"{count} in pool {pool}" for pool, count in sorted(Counter(p for w in workers for p in w.pools).items())
    )
    versions = ", ".join(sorted({one.version for one in known}))
    what = f"workers: {len(workers)} ({pools}); exporters: {exporters}; classifleet {versions}"
    yield Finding("workers", State.OK, what)


def check_queues(settings: Settings) -> Iterator[Finding]:
    """Does somebody take from both lanes? The ledger knows who is at work, and not who waits for work."""
    if not settings.broker_url and not settings.redis_url:
        return
    try:
        depths = _depths(settings)
    except (LedgerUnavailable, SettingsError):
        return  # check_ledger says so
    for name, depth in depths.items():
        if is_unserved(depth):
            what = f"{name}: {depth.queued_images} images wait for {duration(depth.oldest_seconds)}; nobody takes them"
            pool = name.removeprefix("classify.").rpartition(".")[0]
            remedy = f"start `classifleet worker` for this broker, with {pool} in CLASSIFLEET_QUEUES"
            yield Finding("queues", State.WARNING, what, remedy)
    served = [name for name, depth in depths.items() if depth.leased_images or depth.done_rate]
    idle = [name for name, depth in depths.items() if name not in served and not is_unserved(depth)]
    if served:
        yield Finding("queues", State.OK, f"workers serve {', '.join(served)}")
    if idle:
        what = f"idle: {', '.join(idle)}; whether a worker serves them shows when there is work"
        yield Finding("queues", State.OK, what)


def _depths(settings: Settings) -> dict[str, QueueDepth]:
    """Both lanes of the configured pools, and whatever queues the ledger knows."""
    with _ledger(settings) as (ledger, runner):
        known: list[str] = runner.run(ledger.queues())
        names = sorted({*known, *(queue_name(pool, lane) for pool in settings.queues for lane in get_args(Lane))})
        return {name: read_depth(runner.run_all(ledger.depth(name))) for name in names}


@contextmanager
def _ledger(settings: Settings) -> Iterator[tuple[Ledger, SyncRunner]]:
    runner = SyncRunner(connect(settings), settings.ledger_url())
    try:
        yield Ledger(Keys(settings.namespace)), runner
    finally:
        runner.close()


def check_store(settings: Settings) -> Iterator[Finding]:
    """Can the sinks be written, and the sources be listed?"""
    if not settings.sink_allow and not settings.source_allow:
        yield Finding("object store", State.OK, "no sink is allowed; records stay in Redis (CLASSIFLEET_SINK_ALLOW)")
    for sink in settings.sink_allow:
        yield _try_sink(sink, settings)
    for source in settings.source_allow:
        yield _try_source(source, settings)


def _try_sink(sink: str, settings: Settings) -> Finding:
    probe = f".classifleet-doctor-{uuid.uuid4().hex}"
    try:
        store = open_store(sink, settings)
        store.put(probe, b"classifleet doctor")
        store.delete(probe)
    except (ClassifleetError, FileNotFoundError) as error:
        return Finding("object store", State.FAILED, f"the sink {sink} cannot be written: {error}", STORE_REMEDY)
    return Finding("object store", State.OK, f"the sink {sink} can be written")


def _try_source(source: str, settings: Settings) -> Finding:
    try:
        next(iter(open_store(source, settings).names()), None)
    except (ClassifleetError, FileNotFoundError) as error:
        return Finding("object store", State.FAILED, f"the source {source} cannot be listed: {error}", STORE_REMEDY)
    return Finding("object store", State.OK, f"the source {source} can be listed")
