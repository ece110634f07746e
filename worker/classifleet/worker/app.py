"""The Celery application: `celery -A classifleet.worker.app worker -P threads`, or `classifleet worker`.

Importing it reads the settings; nothing is loaded before Celery's `worker_init`, which runs before the pool and the
consumer exist, so that no message is taken before the models are warm.
"""

from __future__ import annotations

from classifleet.worker.cores import wait_asleep

wait_asleep()  # before the runtime brings torch

# ruff: noqa: E402
import sys
from typing import Any

import structlog
from celery import Task, signals

from classifleet.config import ClassifleetError, Settings
from classifleet.config.brokers import ledger_queue
from classifleet.config.celery_app import make_app
from classifleet.config.payload import TASK_NAME
from classifleet.worker import places, stopping, transport
from classifleet.worker.exits import EXIT_DEFECT, EXIT_UNUSABLE
from classifleet.worker.logs import configure
from classifleet.worker.runtime import Runtime

settings = Settings.load()
app = make_app(settings)
runtime = Runtime(settings)
transport.install(app, settings, runtime.room.count)
places.install(app, settings, runtime.room)
stopping.install(app, runtime)


@app.task(name=TASK_NAME, bind=True, ignore_result=True)
def classify(self: Task, /, **message: Any) -> None:
    """Carry out one wake-up call. Acknowledged when it returns; the ledger decides what a redelivery does."""
    queue = ledger_queue(settings, self.request.delivery_info.get("routing_key") or "")
    runtime.chunks.run(message, queue)


@signals.setup_logging.connect(weak=False)
def _setup_logging(**_: Any) -> None:
    configure(settings)


@signals.worker_init.connect(weak=False)
def _start(**_: Any) -> None:
    configure(settings)  # Celery sets logging up only after this signal
    stopping.end_while_loading()
    log = structlog.get_logger(__name__)
    # Celery logs and ignores what a signal's receiver raises, and would consume without models: so this exits.
    try:
        runtime.start()
    except ClassifleetError as error:
        log.error("cannot start", error=str(error))
        sys.exit(EXIT_UNUSABLE)
    except Exception:
        log.exception("cannot start")
        sys.exit(EXIT_DEFECT)


@signals.worker_ready.connect(weak=False)
def _ready(**_: Any) -> None:
    runtime.consuming()


@signals.worker_shutdown.connect(weak=False)
def _stop(**_: Any) -> None:
    runtime.close()
