"""celery-batches: the worker collects messages and calls the task with a list of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.peers.served.classifier import BATCH, Classifier
from celery import Celery
from celery_batches import Batches, SimpleRequest

app = Celery("served", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.worker_prefetch_multiplier = 0  # its manual: zero, or more than a batch
_classifier: Classifier | None = None


@app.task(name="classify", base=Batches, flush_every=BATCH, flush_interval=0.1)
def classify(requests: Sequence[SimpleRequest]) -> None:
    """Stores the best class of each photo."""
    global _classifier
    if _classifier is None:
        _classifier = Classifier()
    answers = _classifier.classify([request.args[0] for request in requests])
    for request, answer in zip(requests, answers, strict=True):
        app.backend.mark_as_done(request.id, answer, request=request)
