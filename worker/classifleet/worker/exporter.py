"""`classifleet exporter`: the reconciler and the queues' figures, without torch and without models.

One of them keeps a fleet's promises while it has no worker at all: what dead workers held is queued again, jobs that
were cancelled end, and an autoscaler can see what waits. Several of them share the duties.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from classifleet.config import ClassifleetError, MissingExtra, Settings
from classifleet.config.setting_sources import ENV_PREFIX

if TYPE_CHECKING:
    from classifleet.ledger import Ledger, SyncRunner

EXIT_UNUSABLE: Final = 2
RETRY_SECONDS: Final = 2.0
CLOSE_SECONDS: Final = 0.2


def exporter(
    broker_url: Annotated[
        str | None, typer.Option(help="The fleet's broker [CLASSIFLEET_BROKER_URL].", show_default=False)
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Port of /metrics, /queues.json, /livez and /readyz. Default: the first free from 9464 on."),
    ] = None,
) -> None:
    """Show what waits in the queues, and look after the fleet, also while it has no worker.

    It needs no torch and no model: `pip install 'classifleet[exporter]'`. It writes to the sinks of jobs only where
    CLASSIFLEET_SINK_ALLOW lets it.

    **Examples**

    ```
    classifleet exporter --broker-url redis://localhost:6379/0
    curl http://127.0.0.1:9464/queues.json
    ```
    """
    given = {"BROKER_URL": broker_url, "HTTP_PORT": None if http_port is None else str(http_port)}
    os.environ.update({ENV_PREFIX + name: value for name, value in given.items() if value is not None})
    settings = Settings.load()
    try:
        import prometheus_client  # noqa: F401 - said here, before half of it runs
        import stamina  # noqa: F401
        import structlog
    except ImportError as error:
        raise MissingExtra("exporter", "an exporter") from error
    from classifleet.worker.logs import configure

    configure(settings)
    closing = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        closing.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        _serve(settings, closing)
    except ClassifleetError as error:
        structlog.get_logger(__name__).error("cannot start", error=str(error))
        sys.exit(EXIT_UNUSABLE)
    # Not the usual way out, which waits for writes to a store: all duties can be gone on with by another process.
    sys.stderr.flush()
    os._exit(0)


def _serve(settings: Settings, closing: threading.Event) -> None:
    import secrets
    import socket

    from classifleet.config import Keys
    from classifleet.config.celery_app import Publisher
    from classifleet.ledger import Ledger, Replicas, SyncRunner, connect
    from classifleet.worker.health import Health, HealthServer
    from classifleet.worker.overview import Overview, queues_of
    from classifleet.worker.reconciler import Reconciler
    from classifleet.worker.roster import Roster
    from classifleet.worker.sink import Sinks

    ledger = Ledger(Keys(settings.namespace))
    runner = SyncRunner(connect(settings), settings.ledger_url(), Replicas.of(settings))
    owner = f"exporter:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    overview = Overview(ledger, runner, closing, queues_of(settings), settings.objective_seconds)
    reconciler = Reconciler(ledger, runner, Publisher(settings), Sinks(settings), settings, owner, is_worker=False)

    def live() -> Health:
        dead = [
            name for name, alive in (("overview", overview.alive()), ("reconciler", reconciler.alive())) if not alive
        ]
        return Health(not started.is_set() or not dead, {"dead_threads": dead if started.is_set() else []})

    def ready() -> Health:
        fresh = overview.fresh() is not None
        return Health(fresh, {"state": "ready" if fresh else "the ledger's Redis does not answer", "exporter": owner})

    started = threading.Event()
    probes = {"/livez": live, "/readyz": ready, "/queues.json": overview.queues}
    http = HealthServer(settings.http_host, settings.http_port, probes)
    http.start()
    _say("listening", url=http.url)
    if not _wait_for_ledger(settings, runner, ledger, closing):
        return
    overview.start()
    reconciler.start()
    roster = Roster(ledger, runner)
    roster.start(owner)
    started.set()
    _say("ready", exporter=owner)
    closing.wait()
    roster.close()
    reconciler.close(CLOSE_SECONDS)
    _say("ended")


def _wait_for_ledger(settings: Settings, runner: SyncRunner, ledger: Ledger, closing: threading.Event) -> bool:
    """Until Redis answers; false if the process ends before that.

    Raises:
        SettingsError: Redis is unfit.
    """
    from classifleet.config import LedgerUnavailable
    from classifleet.ledger import require_fit

    while not closing.is_set():
        try:
            require_fit(runner.client, ledger.keys, settings.ledger_url(), ephemeral=settings.ephemeral)
            return True
        except LedgerUnavailable as error:
            _say("waits for Redis", error=str(error))
        closing.wait(RETRY_SECONDS)
    return False


def _say(what: str, **values: str) -> None:
    import structlog

    structlog.get_logger(__name__).info(what, **values)
