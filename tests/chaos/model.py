"""A small convolutional network as TorchScript: real forward passes, a second to load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

MODEL: Final = "chaos"
CLASSES: Final = 10
_SIZE: Final = 96


def add_model(folder: Path) -> Path:
    """Put `chaos@1` into a repository; its weights are random, and the same each time."""
    import torch

    from classifleet.worker.models import Repository
    from classifleet.worker.models.description import Input
    from classifleet.worker.models.importers import Source, install

    torch.manual_seed(4)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, 2), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, CLASSES),
    ).eval()  # fmt: skip

    def write(_: Input, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and what models arrive in
            traced = torch.jit.trace(network, torch.zeros(2, 3, _SIZE, _SIZE), check_trace=False)
            torch.jit.save(traced, str(path))

    fields = {
        "name": MODEL,
        "version": "1",
        "input": {"size": [_SIZE, _SIZE]},
        "preprocess": {
            "resize": "shortest_edge_crop", "resize_size": 110, "crop_size": [_SIZE, _SIZE],
            "interpolation": "bilinear", "scale": 1 / 255, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        },
        "output": {"activation": "softmax", "num_classes": CLASSES},
        "labels": [f"class-{n}" for n in range(CLASSES)],
        "license": "Apache-2.0",
        "source": "tests/chaos/model.py",
    }  # fmt: skip
    install(Repository(folder), Source({"schema_version": 1, "format": "torchscript"}, write), fields)
    return folder
