"""A Celery worker on our application and transport whose task needs no models: it notes what it was given in Redis.

python -m tests.support.plain_worker     settings come from the environment

It knows `work:seconds` (how long a task takes), and writes `work:started` and `work:done` (lists of `job/chunk`).
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import redis
from celery.exceptions import SecurityWarning

from classifleet.config import Settings
from classifleet.config.celery_app import make_app
from classifleet.config.payload import TASK_NAME
from classifleet.worker import transport


def main() -> None:
    """Serve until a signal."""
    warnings.simplefilter("ignore", SecurityWarning)
    settings = Settings.load()
    app = make_app(settings)
    transport.install(app, settings)
    notes = redis.Redis.from_url(settings.ledger_url())

    @app.task(name=TASK_NAME, ignore_result=True)  # type: ignore[untyped-decorator]
    def classify(job: str, chunk: str, **_: Any) -> None:
        notes.rpush("work:started", f"{job}/{chunk}")
        time.sleep(float(notes.get("work:seconds") or 0))
        notes.rpush("work:done", f"{job}/{chunk}")

    worker = app.Worker(
        pool="threads",
        concurrency=settings.chunks_in_flight,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="INFO",
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
