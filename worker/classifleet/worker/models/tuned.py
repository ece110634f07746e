"""A model as the worker runs it: tuned at its first start on a kind of device, remembered from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from classifleet.config import Settings
from classifleet.worker.models import tuning_cache
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.golden_inputs import golden_inputs
from classifleet.worker.models.repository import Repository
from classifleet.worker.models.tuning import Bounds, Tuning, tune
from classifleet.worker.models.variants import BY_NAME, load_backend, open_variant

FOLDER: Final = ".tuning"  # in the model repository, where no model's name begins with a dot
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A loaded model, the largest batch that it is given, and how it was chosen (None: without tuning)."""

    backend: Backend
    max_batch: int
    tuning: Tuning | None


def load_tuned(repository: Repository, key: str, settings: Settings, device: str) -> TunedModel:
    """Load a model in the fastest way that gives its answers; call it on the thread that will run it.

    Args:
        repository: Where it lives.
        key: `imagenet@1`.
        settings: `precision`, `tune_seconds` and so on.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        ModelError: Its files are damaged, or it does not run as described.
    """
    description = repository.describe(key)
    limit = min(description.batch.max, settings.max_batch)
    path = repository.model_file(key)
    tuning = tuning_cache.read(cache_file(repository, description, settings, device))
    if tuning is None and settings.tune_seconds:
        tuning = tune_model(repository, key, settings, device)
    if tuning is None:
        log.info("model not tuned", model=key, hint=f"classifleet models tune {key}")
        return TunedModel(load_backend(repository, key, device=device), limit, None)
    chosen = tuning.chosen
    log.info("model tuned", model=key, device=device, **summary(tuning))
    backend = open_variant(BY_NAME[chosen.variant], description, path, device=device)
    return TunedModel(backend, min(limit, (chosen.speed or tuning.plain).batch), tuning)


def tune_model(
    repository: Repository, key: str, settings: Settings, device: str, *, photos: Sequence[Path] = ()
) -> Tuning:
    """Tune a model and keep the outcome.

    Args:
        repository: Where it lives.
        key: `imagenet@1`.
        settings: `precision`, `tune_seconds`, `max_forward_seconds`, `max_batch`, `tuning_cache`.
        device: `cpu`, `cuda` or `cuda:1`.
        photos: The operator's own photos to compare on, beside the model's golden ones.

    Raises:
        ModelError: The model does not run.
        ImageError: A photo is not one.
    """
    description = repository.describe(key)
    limit = min(description.batch.max, settings.max_batch)
    tuning = tune(
        description,
        partial(open_variant, description=description, path=repository.model_file(key), device=device),
        golden_inputs(description, repository.folder(key), photos),
        device=device,
        precision=settings.precision,
        bounds=Bounds(
            settings.tune_seconds or Settings.model_fields["tune_seconds"].default,
            settings.max_forward_seconds,
            [size for size in description.batch.buckets if size <= limit] or [limit],
        ),
    )
    tuning_cache.write(cache_file(repository, description, settings, device), tuning)
    return tuning


def cache_file(repository: Repository, description: ModelDescription, settings: Settings, device: str) -> Path:
    """Where the outcome for this model, device and these settings is kept."""
    folder = Path(settings.tuning_cache).expanduser() if settings.tuning_cache else repository.path / FOLDER
    asked = {
        "precision": settings.precision,
        "max_forward_seconds": settings.max_forward_seconds,
        "max_batch": min(description.batch.max, settings.max_batch),
    }
    return tuning_cache.cache_file(folder, description, device, asked)


def summary(tuning: Tuning) -> dict[str, Any]:
    """The outcome in a few values, for logs and `models show`."""
    chosen = tuning.chosen
    speed = chosen.speed or tuning.plain
    return {
        "variant": chosen.variant,
        "images_per_second": round(speed.rate, 1),
        "speedup": round(tuning.speedup, 2),
        "batch": speed.batch,
        "agreement": None if chosen.parity is None else round(chosen.parity.agreement, 4),
        "mean_worst": None if chosen.parity is None else round(chosen.parity.mean_worst, 5),
    }
