"""BentoML: a batchable API in as many worker processes as there are cores."""

from __future__ import annotations

import bentoml
from benchmarks.peers.served.classifier import BATCH, WORKERS, Classifier

PATIENCE_MS = 60_000  # a request that it expects to take longer is refused


@bentoml.service(workers=WORKERS, traffic={"timeout": 600})
class Classify:
    """A worker."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=PATIENCE_MS)
    def classify(self, paths: list[str]) -> list[int]:
        """The best class of each."""
        return self.classifier.classify(paths)
