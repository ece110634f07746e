"""Celery as its documentation says, with `acks_late`: one task per image, the record written by the task.

python -m tests.chaos.plain_app BROKER_URL     a worker

The visibility timeout is seconds, where its default is an hour: what a killed worker held comes back within a test.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any, Final

import redis
from celery import Celery
from celery.exceptions import SecurityWarning

TASK: Final = "plain.classify"
RECORDS: Final = "plain:records"  # a list of image ids, so that doubles can be seen
COUNTERS: Final = "plain:counters"
VISIBILITY_SECONDS: Final = 5
CONCURRENCY: Final = 8


def make_app(url: str) -> Celery:
    """The application."""
    app = Celery("plain", broker=url, set_as_current=False)
    app.conf.update(
        broker_url=url,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    )
    return app


def add_task(app: Celery, url: str) -> None:
    """Decode the photo, compute a little, write the record."""
    import numpy as np
    from PIL import Image

    client: Any = redis.Redis.from_url(url)

    def classify(image: str, path: str, seconds: float = 0.0) -> None:
        time.sleep(seconds)  # a slow server
        with Image.open(path) as photo:
            pixels = np.asarray(photo.convert("RGB").resize((96, 96)), np.float32)
        label = int(pixels.mean((0, 1)).argmax())
        client.rpush(RECORDS, image)
        client.hincrby(COUNTERS, f"label-{label}", 1)

    app.task(classify, name=TASK)


def main(url: str) -> None:
    """Work until SIGTERM."""
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_app(url)
    add_task(app, url)
    worker = app.Worker(pool="threads", concurrency=CONCURRENCY, without_gossip=True, without_mingle=True)
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main(sys.argv[1])
