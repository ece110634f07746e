"""LitServe: decode_request, predict on a batch, encode_response.

It reads the annotations of `decode_request` at run time, so that they must not be strings.
"""

import sys
from typing import Any

import litserve
import torch
from benchmarks.peers.served.classifier import BATCH, WORKERS, Classifier


class Api(litserve.LitAPI):
    """Its batches are stacked and taken apart by LitServe itself."""

    def setup(self, device: str) -> None:
        """Once in each worker."""
        self.classifier = Classifier()

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        """A photo as the model takes it."""
        return self.classifier.read(request["path"])

    def predict(self, x: torch.Tensor) -> list[int]:
        """The best class of each."""
        return self.classifier.predict(x)

    def encode_response(self, output: int) -> dict[str, int]:
        """As JSON."""
        return {"label": output}


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
