"""What this worker has done, in a few numbers for `classifleet top`, from its metrics."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from classifleet.ledger import WorkerFigures
from classifleet.worker.instruments import BATCH_SIZE, IMAGES, MAX_BATCH

OK: Final = "ok"


@dataclass(frozen=True, slots=True)
class _Counts:
    """Since the start; `places` is how many images the batches could have held."""

    at: float
    images: int
    batches: float
    batched: float
    places: float


class Figures:
    """Its rates are those between two calls of `take`, the first since it was made."""

    def __init__(self) -> None:
        self._before = _counts(_outcomes())

    def take(self) -> WorkerFigures:
        """What there is to say now."""
        outcomes = _outcomes()
        now, before = _counts(outcomes), self._before
        self._before = now
        seconds = now.at - before.at
        batches, batched, places = (
            now.batches - before.batches,
            now.batched - before.batched,
            now.places - before.places,
        )
        failed = {outcome: count for outcome, count in outcomes.items() if outcome != OK and count}
        return WorkerFigures(
            images=now.images,
            failed=failed,
            images_per_second=round((now.images - before.images) / seconds, 2) if seconds else 0.0,
            batch_images=round(batched / batches, 2) if batches else 0.0,
            batch_fill=round(min(1.0, batched / places), 3) if places > 0 else 0.0,
        )


def _outcomes() -> Counter[str]:
    """Records by outcome."""
    found: Counter[str] = Counter()
    for labels, value in _samples(IMAGES, "_total"):
        found[labels["outcome"]] += int(value)
    return found


def _counts(outcomes: Counter[str]) -> _Counts:
    most = {labels["model"]: value for labels, value in _samples(MAX_BATCH, "")}
    batches = {labels["model"]: value for labels, value in _samples(BATCH_SIZE, "_count")}
    return _Counts(
        time.monotonic(),
        outcomes.total(),
        sum(batches.values()),
        sum(value for _, value in _samples(BATCH_SIZE, "_sum")),
        sum(count * most.get(model, 0.0) for model, count in batches.items()),
    )


def _samples(metric: MetricWrapperBase, suffix: str) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if sample.name == family.name + suffix
    ]
