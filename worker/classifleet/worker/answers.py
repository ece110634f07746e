"""From scores to the answer that stands in a record. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from classifleet.config import ErrorCode, ImageError, ModelAnswer, Options, Prediction
from classifleet.worker.models.description import ModelDescription

CONFIDENCE_DIGITS: Final = 6
SORTED_AT_ONCE: Final = 64  # scores; of more, the best ones are picked before they are sorted


def answer(
    scores: NDArray[np.float32],
    labels: Sequence[str],
    *,
    digest: str,
    kind: Literal["single", "multi"],
    threshold: float,
    options: Options,
) -> ModelAnswer:
    """One model's answer to one image.

    Args:
        scores: Activated scores [num_classes].
        labels: The classes' names, in the order of the scores.
        digest: sha256 of the model file.
        kind: `multi` also lists every label at or above the threshold as predicted.
        threshold: The model's own; the request's wins.
        options: The request's.
    """
    order = _best_first(scores, len(labels) if options.scores == "all" else min(options.top_k, len(labels)))
    predictions: list[Prediction] = [
        {"class": labels[i], "class_id": i, "confidence": round(score, CONFIDENCE_DIGITS)}
        for i, score in zip(order, scores[order].tolist(), strict=True)
    ]
    best = order[0]
    result = ModelAnswer(
        status="ok",
        digest=digest,
        kind=kind,
        predictions=_at_least(predictions, options.threshold),
        truncated=False,
        top=labels[best],
        confidence=predictions[0]["confidence"],
    )
    result["truncated"] = len(result["predictions"]) < len(labels)
    if kind == "multi":
        least = threshold if options.threshold is None else options.threshold
        result["predicted_classes"] = [labels[i] for i in _best_first(scores, len(labels)) if scores[i] >= least]
    return result


def model_answer(model: ModelDescription, scores: NDArray[np.float32], options: Options) -> ModelAnswer:
    """The same, as the model's description says."""
    return answer(
        scores,
        model.labels,
        digest=model.sha256,
        kind=model.output.kind,
        threshold=model.output.threshold,
        options=options,
    )


def failed_answer(error: ImageError) -> ModelAnswer:
    """The answer of a model that failed."""
    return ModelAnswer(status="error", error=error.as_info())


def common_error(answers: Iterable[ModelAnswer]) -> ImageError:
    """What to say of an image that no model answered: the first model's error."""
    info = next(a["error"] for a in answers)
    return ImageError(ErrorCode(info["code"]), info["message"])


def _best_first(scores: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the `count` highest scores, highest first; equal scores by index."""
    if len(scores) <= SORTED_AT_ONCE:  # not by numpy: it lets go of the interpreter's lock, and waits to have it back
        return sorted(range(len(scores)), key=scores.tolist().__getitem__, reverse=True)[:count]
    falling = -scores
    if count >= len(scores):
        order = falling.argsort(kind="stable")
    else:  # all that are as good as the last one that is wanted, so that equal scores stay in order
        last = np.partition(falling, count - 1)[count - 1]
        candidates = (falling <= last).nonzero()[0]
        order = candidates[falling[candidates].argsort(kind="stable")]
    best: list[int] = order[:count].tolist()
    return best


def _at_least(predictions: list[Prediction], threshold: float | None) -> list[Prediction]:
    return predictions if threshold is None else [p for p in predictions if p["confidence"] >= threshold]
