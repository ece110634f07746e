"""mosec: processes that each take a batch of requests; run with --port, as its examples are."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.served.classifier import BATCH, WORKERS, Classifier
from mosec import Server, Worker


class Classify(Worker):
    """Decodes and runs a batch: one stage, because a stage more would copy every picture between processes."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, int]]:
        """One answer for each request."""
        return [{"label": label} for label in self.classifier.classify([each["path"] for each in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=WORKERS, max_batch_size=BATCH, max_wait_time=10)
    server.run()
