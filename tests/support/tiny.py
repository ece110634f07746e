"""A model that costs next to nothing, for tests and measurements of everything around models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

MODEL: Final = "tiny"
LABELS: Final = ("red", "green", "blue")


def add_tiny(folder: Path, name: str = MODEL) -> Path:
    """Put version 1 of it into a repository: its classes are the means of red, green and blue."""
    import torch

    from classifleet.worker.models import Repository
    from classifleet.worker.models.description import Input
    from classifleet.worker.models.importers import Source, install

    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    def write(_: Input, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and what models arrive in
            example = torch.zeros(2, 3, 224, 224)
            traced = torch.jit.trace(Means().eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(path))

    fields = {
        "name": name,
        "version": "1",
        "input": {"size": [224, 224]},
        "preprocess": {
            "resize": "shortest_edge_crop", "resize_size": 256, "crop_size": [224, 224],
            "interpolation": "bilinear", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1],
        },
        "output": {"activation": "softmax", "num_classes": len(LABELS)},
        "labels": list(LABELS),
        "license": "Apache-2.0",
        "source": "tests/support/tiny.py",
    }  # fmt: skip
    install(Repository(folder), Source({"schema_version": 1, "format": "torchscript"}, write), fields)
    return folder
