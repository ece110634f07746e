"""What every user of every peer writes: load the TorchScript file, open the photo with Pillow, take the best class.

The transforms are those that torch's and the peers' documentation show, with this model's values. Run as a program it
answers a JSON list of paths with a list of classes.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence

import torch
from PIL import Image
from torchvision import transforms

BATCH = 8  # plain fp32 on one core takes 26 ms an image in batches of 1 to 8, 42 in batches of 16, 64 of 32
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))


class Classifier:
    """The model on one core: there are as many processes as cores."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and what models arrive in
            self.module = torch.jit.load(os.environ["BENCH_MODEL"]).eval()  # type: ignore[no-untyped-call]
        self.transform = transforms.Compose(
            [
                transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def read(self, path: str) -> torch.Tensor:
        """A photo as the model takes it."""
        with Image.open(path) as image:
            pixels: torch.Tensor = self.transform(image.convert("RGB"))
        return pixels

    def predict(self, batch: torch.Tensor) -> list[int]:
        """The best class of each."""
        with torch.inference_mode():
            best: list[int] = self.module(batch).argmax(1).tolist()
        return best

    def classify(self, paths: Sequence[str]) -> list[int]:
        """The best class of each photo, in one forward pass."""
        return self.predict(torch.stack([self.read(path) for path in paths]))


if __name__ == "__main__":
    classifier = Classifier()
    asked = json.load(sys.stdin)
    found: list[int] = []
    for first in range(0, len(asked), BATCH):
        found += classifier.classify(asked[first : first + BATCH])
    json.dump(found, sys.stdout)
