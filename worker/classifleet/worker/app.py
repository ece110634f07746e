"""The Celery application: `celery -A classifleet.worker.app worker -P threads`, or `classifleet worker`.

Importing it reads the settings; nothing is loaded before Celery's `worker_init`, which runs before the pool and the
consumer exist, so that no message is taken before the models are warm.
"""

from __future__ import annotations

import sys
from typing import Any

import structlog
from celery import Task, signals
from kombu import Queue

from classifleet.config import ClassifleetError, Settings, queue_name
from classifleet.config.celery_app import make_app
from classifleet.config.payload import TASK_NAME
from classifleet.worker import stopping
from classifleet.worker.logs import configure
from classifleet.worker.runtime import Runtime

EXIT_DEFECT = 1
EXIT_UNUSABLE = 2

settings = Settings.load()
app = make_app(settings)
stopping.install(app)
app.conf.task_queues = [
    # The default exchange routes by queue name, with any broker.
    Queue(queue_name(pool, lane), exchange="", routing_key=queue_name(pool, lane))
    for lane in ("interactive", "bulk")
    for pool in settings.queues
]
runtime = Runtime(settings)


@app.task(name=TASK_NAME, bind=True, ignore_result=True)
def classify(self: Task, /, **message: Any) -> None:
    """Carry out one wake-up call. Acknowledged when it returns; the ledger decides what a redelivery does."""
    runtime.chunks.run(message, self.request.delivery_info.get("routing_key") or "")


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
