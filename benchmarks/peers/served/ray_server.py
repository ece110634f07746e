"""Ray Serve: replicas behind its HTTP proxy, with dynamic request batching."""

from __future__ import annotations

import signal
import sys

from benchmarks.peers.served.classifier import BATCH, WORKERS, Classifier
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=4 * BATCH, ray_actor_options={"num_cpus": 1})
class Classify:
    """A replica."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def batch(self, paths: list[str]) -> list[int]:
        """The best class of each."""
        return self.classifier.classify(paths)

    async def __call__(self, request: Request) -> dict[str, int]:
        """One photo."""
        return {"label": await self.batch((await request.json())["path"])}


if __name__ == "__main__":
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classify.bind())  # type: ignore[attr-defined]
    try:
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
    finally:
        ray.shutdown()
