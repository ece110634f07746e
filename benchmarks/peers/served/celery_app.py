"""Celery, one task for each image, as its guide says: load in the worker's process, return the result."""

from __future__ import annotations

import os

from benchmarks.peers.served.classifier import Classifier
from celery import Celery

app = Celery("served", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
_classifier: Classifier | None = None


@app.task(name="classify")
def classify(path: str) -> int:
    """The best class of a photo. The model is loaded at first use, so that each process has its own."""
    global _classifier
    if _classifier is None:
        _classifier = Classifier()
    return _classifier.classify([path])[0]
