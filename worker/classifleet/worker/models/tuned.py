"""A model as the worker runs it: tuned at its first start on a kind of device, remembered from then on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from classifleet.config import ModelError, Settings
from classifleet.worker.cores import usable_cores
from classifleet.worker.models import _split, tuning_cache
from classifleet.worker.models._attempts import attempts
from classifleet.worker.models._packages import Packages
from classifleet.worker.models.backend import Backend
from classifleet.worker.models.description import ModelDescription
from classifleet.worker.models.failures import brief, failure
from classifleet.worker.models.golden_inputs import MIN_PHOTOS, GoldenInputs, golden_inputs, photos_at_hand
from classifleet.worker.models.measuring import Bounds
from classifleet.worker.models.repository import Repository
from classifleet.worker.models.tuning import Tuning, tune
from classifleet.worker.models.variants import BY_NAME, Ways, load_backend

MAX_TRIES: Final = 3
"""Starts at which a model is tuned anew because the machine was busy; what the last one found is kept."""
FOLDER: Final = ".tuning"  # in the model repository, where no model's name begins with a dot
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A loaded model.

    Attributes:
        backend: What runs it.
        max_batch: The largest batch that it is given.
        tuning: How it was chosen; None: without tuning.
        decode_threads: That go best with it; 0: as many as there are cores.
    """

    backend: Backend
    max_batch: int
    tuning: Tuning | None
    decode_threads: int = 0


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
    ways = _ways(repository, description, settings, device)
    tuning = _tuned(repository, description, settings, device)
    backend = _opened(ways, tuning, settings.tune_seconds)
    if tuning is not None and backend is None and settings.tune_seconds:
        tuning = tune_model(repository, key, settings, device)
        backend = _opened(ways, tuning, settings.tune_seconds)
    if tuning is None or backend is None:
        log.info("model not tuned", model=key, hint=f"classifleet models tune {key}")
        return TunedModel(load_backend(repository, key, device=device), limit, None)
    log.info("model tuned", model=key, device=device, **summary(tuning))
    batch = min(limit, tuning.batch)
    return TunedModel(backend, batch, tuning, tuning.split.decode_threads if tuning.split else 0)


def _opened(ways: Ways, tuning: Tuning | None, seconds: float) -> Backend | None:
    """The chosen variant; None if it cannot be loaded today, as without its package and a compiler.

    Args:
        ways: To open it.
        tuning: What has chosen it.
        seconds: To compile it anew, at most. A model that comes while others serve has none.
    """
    if tuning is None:
        return None
    threads = tuning.split.forward_threads if tuning.split else None
    try:
        return ways.open(BY_NAME[tuning.chosen.variant], threads=threads, seconds=seconds)
    except Exception as error:
        if failure(error) != "model":  # memory that another process takes is no reason to tune with what is left
            raise
        key, variant = ways.description.key, tuning.chosen.variant
        log.warning("variant cannot be loaded; as if not tuned", model=key, variant=variant, error=brief(error))
        return None


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
    start = time.monotonic()
    limit = min(description.batch.max, settings.max_batch)
    seconds = settings.tune_seconds or Settings.model_fields["tune_seconds"].default
    ways = _ways(repository, description, settings, device)
    inputs = golden_inputs(description, repository.folder(key), photos)
    sizes = [size for size in description.batch.buckets if size <= limit] or [limit]
    bounds = Bounds(seconds, settings.max_forward_seconds, sizes)
    file = cache_file(repository, description, settings, device)
    with attempts(file) as tried:
        tuning = tune(description, ways, inputs, precision=settings.precision, bounds=bounds, attempts=tried)
    if device == "cpu":
        tuning = _with_split(tuning, ways, inputs, sizes, seconds - (time.monotonic() - start))
    tuning = replace(tuning, own_photos=bool(photos))
    before = tuning_cache.read(file)
    if tuning.busy and before is not None and before.busy:
        tuning = replace(tuning, tries=before.tries + 1)
    tuning_cache.write(file, tuning)
    return tuning


def _tuned(repository: Repository, description: ModelDescription, settings: Settings, device: str) -> Tuning | None:
    """What is kept, else found now."""
    kept = tuning_cache.read(cache_file(repository, description, settings, device))
    if not settings.tune_seconds:
        return kept
    if kept is not None:
        blind = settings.precision != "fp32" and kept.photos < MIN_PHOTOS <= photos_at_hand(description)
        unsteady = kept.busy and kept.tries < MAX_TRIES
        if kept.own_photos or not (blind or unsteady):  # what the operator's photos ruled out would pass without them
            return kept
        log.info("tuned again", model=description.key, busy=kept.busy, tries=kept.tries, photos=kept.photos)
    return tune_model(repository, description.key, settings, device)


def _with_split(tuning: Tuning, ways: Ways, inputs: GoldenInputs, sizes: Sequence[int], seconds: float) -> Tuning:
    """How the cores are best shared by decoding and this model, and how large its batches are beside decoding."""
    chosen, speed = tuning.chosen, tuning.chosen.speed or tuning.plain
    batches = [size for size in sizes if speed.batch <= size <= speed.most]
    work = _split.Work(inputs.samples, ways.description, batches)
    try:
        splits = _split.measure_splits(
            work, partial(ways.open, BY_NAME[chosen.variant]), usable_cores(), seconds=seconds
        )
    except ModelError as error:
        log.warning("split of the cores not measured", model=ways.description.key, error=str(error))
        return tuning
    return replace(tuning, split=_split.best(splits), splits=splits)


def _ways(repository: Repository, description: ModelDescription, settings: Settings, device: str) -> Ways:
    packages = Packages(_folder(repository, settings))
    return Ways(description, repository.model_file(description.key), device, packages)


def _folder(repository: Repository, settings: Settings) -> Path:
    return Path(settings.tuning_cache).expanduser() if settings.tuning_cache else repository.path / FOLDER


def cache_file(repository: Repository, description: ModelDescription, settings: Settings, device: str) -> Path:
    """Where the outcome for this model, device and these settings is kept."""
    asked = {
        "precision": settings.precision,
        "max_forward_seconds": settings.max_forward_seconds,
        "max_batch": min(description.batch.max, settings.max_batch),
    }
    return tuning_cache.cache_file(_folder(repository, settings), description, device, asked)


def compared(tuning: Tuning | None) -> tuple[str, str]:
    """The speed-up by the file as it came, and the share of equal answers, for a metric; empty if not compared."""
    if tuning is None:
        return "", ""
    parity = tuning.chosen.parity
    return f"{tuning.speedup:.2f}", "" if parity is None else f"{parity.agreement:.4f}"


def summary(tuning: Tuning) -> dict[str, Any]:
    """The outcome in a few values, for logs and `models show`."""
    chosen = tuning.chosen
    speed = chosen.speed or tuning.plain
    return {
        "variant": chosen.variant,
        "images_per_second": round(speed.rate, 1),
        "speedup": round(tuning.speedup, 2),
        "batch": tuning.batch,
        "agreement": None if chosen.parity is None else round(chosen.parity.agreement, 4),
        "mean_worst": None if chosen.parity is None else round(chosen.parity.mean_worst, 5),
        "pictures": None if chosen.parity is None else chosen.parity.pictures,
        "decode_threads": tuning.split.decode_threads if tuning.split else None,
        "forward_threads": tuning.split.forward_threads if tuning.split else None,
        "busy": tuning.busy or None,
    }
