"""From scores to the answer that stands in a record. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from classifleet.config import ImageError, ModelAnswer, Options, Prediction

CONFIDENCE_DIGITS = 6


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
    predictions = [_prediction(labels, scores, i) for i in order]
    best = int(scores.argmax())
    result = ModelAnswer(
        status="ok",
        digest=digest,
        kind=kind,
        predictions=_at_least(predictions, options.threshold),
        truncated=False,
        top=labels[best],
        confidence=_confidence(scores, best),
    )
    result["truncated"] = len(result["predictions"]) < len(labels)
    if kind == "multi":
        least = threshold if options.threshold is None else options.threshold
        result["predicted_classes"] = [labels[i] for i in _best_first(scores, len(labels)) if scores[i] >= least]
    return result


def failed_answer(error: ImageError) -> ModelAnswer:
    """The answer of a model that failed."""
    return ModelAnswer(status="error", error=error.as_info())


def _best_first(scores: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the `count` highest scores, highest first; equal scores by index."""
    if count < len(scores):
        candidates = np.sort(np.argpartition(-scores, count - 1)[:count])
    else:
        candidates = np.arange(len(scores))
    order: list[int] = candidates[np.argsort(-scores[candidates], kind="stable")].tolist()
    return order


def _prediction(labels: Sequence[str], scores: NDArray[np.float32], index: int) -> Prediction:
    return {"class": labels[index], "class_id": index, "confidence": _confidence(scores, index)}


def _confidence(scores: NDArray[np.float32], index: int) -> float:
    return round(float(scores[index]), CONFIDENCE_DIGITS)


def _at_least(predictions: list[Prediction], threshold: float | None) -> list[Prediction]:
    return predictions if threshold is None else [p for p in predictions if p["confidence"] >= threshold]
