"""Versions of a model that cost nothing and can be told apart: each is sure of a class of its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

from classifleet.worker.models import Repository

LABELS: Final = ("one", "two", "three")
EDGE: Final = 32


def add_flavour(folder: Path, name: str, version: int, *, says: int = 0, kilobytes: int = 0) -> str:
    """Add a version whose answer to everything is one label, and that is so large; its name with version."""
    import torch

    from classifleet.worker.models.description import Input
    from classifleet.worker.models.importers import Source, install

    class Says(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.eye(len(LABELS))[says] * 8)
            self.ballast = torch.nn.Parameter(torch.full((256, kilobytes), float(version)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * 0 + self.bias + self.ballast.sum() * 0

    def write(_: Input, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and what models arrive in
            example = torch.zeros(2, 3, EDGE, EDGE)
            traced = torch.jit.trace(Says().eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(path))

    fields = {
        "name": name,
        "version": str(version),
        "input": {"size": [EDGE, EDGE]},
        "preprocess": {
            "resize": "stretch", "resize_size": EDGE, "crop_size": [EDGE, EDGE],
            "interpolation": "bilinear", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1],
        },
        "output": {"activation": "softmax", "num_classes": len(LABELS)},
        "labels": list(LABELS),
        "license": "Apache-2.0",
        "source": "tests/support/flavours.py",
    }  # fmt: skip
    install(Repository(folder), Source({"schema_version": 1, "format": "torchscript"}, write), fields)
    return f"{name}@{version}"
