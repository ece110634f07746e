"""A worker whose fetch, decode and model cost nothing: what is left is the queue, the ledger and the records.

Started by `cost.py` like `classifleet worker`. Its model has ten classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifleet.config import ImageInfo
from classifleet.producer.cli import main
from classifleet.worker import loading, pipeline
from classifleet.worker.ingest import Fetcher
from classifleet.worker.models import ModelDescription
from classifleet.worker.models.tuned import TunedModel

CLASSES: Final = 10
EDGE: Final = 32
MAX_BATCH: Final = 32
PIXELS: Final = np.zeros((EDGE, EDGE, 3), np.uint8)
SCORES: Final = np.linspace(0.01, 0.19, CLASSES, dtype=np.float32)


def add_model(folder: Path) -> None:
    """Make `folder` a repository with the model `null`, whose file nobody loads."""
    home = folder / "null" / "1"
    home.mkdir(parents=True)
    content = b"no module"
    (home / "model.pt").write_bytes(content)
    fields = {
        "name": "null",
        "version": "1",
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": {"size": [EDGE, EDGE], "layout": "NCHW", "color": "RGB", "dtype": "float32"},
        "preprocess": {
            **{"resize": "stretch", "resize_size": [EDGE, EDGE], "interpolation": "bilinear"},
            **{"scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]},
        },
        "output": {"activation": "none", "num_classes": CLASSES},
        "labels": [f"class-{n}" for n in range(CLASSES)],
        "license": "none",
        "source": "benchmarks/_null_worker.py",
    }
    (home / "model.json").write_text(ModelDescription.from_fields(fields, where="null").to_json())


class _NullBackend:
    name = "null"

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.broadcast_to(SCORES, (len(batch), CLASSES))

    def warm(self, batch_sizes: Iterable[int]) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        """Nothing to free."""


async def _fetch(*_: Any, **__: Any) -> bytes:
    return b""


def _prepare(
    _data: bytes, specs: dict[str, Any], _limits: Any, **_: Any
) -> tuple[ImageInfo, dict[str, NDArray[np.uint8]]]:
    info = ImageInfo(width=EDGE, height=EDGE, format="JPEG", bytes=0, sha256="0" * 64)
    return info, dict.fromkeys(specs, PIXELS)


def _load_tuned(*_: Any, **__: Any) -> TunedModel:
    return TunedModel(_NullBackend(), MAX_BATCH, None)


if __name__ == "__main__":
    for where, name, stand_in in (
        (Fetcher, "fetch", _fetch),
        (pipeline, "prepare", _prepare),
        (loading, "load_tuned", _load_tuned),
    ):
        setattr(where, name, stand_in)
    main()
