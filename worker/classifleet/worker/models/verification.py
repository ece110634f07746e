"""Does a model still do what its description says? The same pictures through the same code that serves.

model.json ──► sha256 of model.pt ──► load ──► batches of 1 and 3 agree ──► golden pictures ──► any other picture
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from classifleet.config.errors import ImageError, ModelError
from classifleet.worker.decode import decode
from classifleet.worker.models.description import Golden, ModelDescription
from classifleet.worker.preprocess import preprocess

if TYPE_CHECKING:
    from pathlib import Path

    from classifleet.worker.models.backend import Backend
    from classifleet.worker.models.repository import Repository

BATCH_TOLERANCE: Final = 1e-3
"""How far a picture's scores may move with the pictures that share its batch."""
_BATCH: Final = 3
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The label with the highest score, and that score."""

    top: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was verified: what, whether it holds, and what was seen."""

    what: str
    ok: bool
    detail: str


def answer(backend: Backend, description: ModelDescription, data: bytes) -> Answer:
    """Classify one encoded picture.

    Raises:
        ImageError: It is not a picture.
        ModelError: The model gives no usable answer.
    """
    spec = description.preprocess
    pixels = preprocess(decode(data, targets=(spec,)).picture(spec), spec)
    scores = backend.run(pixels[np.newaxis])[0]
    best = int(scores.argmax())
    return Answer(description.labels[best], float(scores[best]))


def check_batching(backend: Backend, description: ModelDescription) -> None:
    """Batches of 1 and 3 must give the same rows.

    Raises:
        ModelError: They do not, or the output is not as described: an exported model whose batch size is fixed.
    """
    generator = np.random.default_rng(_SEED)
    pixels = generator.integers(0, 256, (_BATCH, *description.input.size, 3), np.uint8)
    try:
        together = backend.run(pixels)
        alone = np.concatenate([backend.run(pixels[i : i + 1]) for i in range(_BATCH)])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"{description.key}: cannot run a batch of 1 and of {_BATCH}: {reason}") from error
    if not np.allclose(together, alone, rtol=0, atol=BATCH_TOLERANCE):
        worst = float(np.abs(together - alone).max())
        raise ModelError(f"{description.key}: scores move by {worst:.4f} with the batch a picture is in")


def verify(
    repository: Repository, reference: str, *, device: str = "auto", images: Sequence[Path] = ()
) -> Iterator[Check]:
    """Check one model, step by step; after a failure that makes the rest meaningless it stops.

    Args:
        repository: Where it lives.
        reference: `imagenet` or `imagenet@1`.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        images: Further pictures to classify; they fail only if they cannot be classified.

    Raises:
        ModelNotFound: There is no such model.
    """
    key = repository.resolve(reference)
    try:
        description = repository.describe(key)
        yield Check(
            "description", True, f"{len(description.labels)} labels, preprocess {description.preprocess.digest}"
        )
        repository.model_file(key)
        yield Check("sha256", True, description.sha256)
        from classifleet.worker.models.variants import load_backend

        backend = load_backend(repository, key, device=device)
        check_batching(backend, description)
    except ModelError as error:
        yield Check("model", False, str(error))
        return
    yield Check("model", True, f"runs on {backend.name}, {description.output.num_classes} classes, any batch")
    folder = repository.folder(key)
    for golden in description.golden:
        yield _check_picture(backend, description, folder / golden.image, golden)
    for image in images:
        yield _check_picture(backend, description, image, None)
    backend.close()


def _check_picture(backend: Backend, description: ModelDescription, path: Path, golden: Golden | None) -> Check:
    try:
        seen = answer(backend, description, path.read_bytes())
    except (OSError, ImageError, ModelError) as error:
        return Check(path.name, False, str(error))
    if golden is None:
        return Check(path.name, True, f"{seen.top} {seen.confidence:.3f}")
    same = seen.top == golden.top and abs(seen.confidence - golden.confidence) <= golden.tolerance
    expected = "" if same else f"; expected {golden.top} {golden.confidence:.3f} ± {golden.tolerance:g}"
    return Check(path.name, same, f"{seen.top} {seen.confidence:.3f}{expected}")
