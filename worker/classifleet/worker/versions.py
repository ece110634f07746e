"""Which versions of which models a worker has, and which one answers: policy alone, without threads or clocks.

repository ─► wanted ─► loaded ─► offers ─► one version for each job, pinned at its first `begin`
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from classifleet.config.setting_sources import Shares
from classifleet.ledger import Offer

Residence = Literal["passing", "lazy", "preloaded"]
State = Literal["waiting", "loading", "warming", "ready", "lazy", "failed"]
STATES: Final[tuple[State, ...]] = ("waiting", "loading", "warming", "ready", "lazy", "failed")
ALL: Final = "*"  # in `lazy_models`: every model
_RANK: Final[Mapping[Residence, int]] = {"passing": 0, "lazy": 1, "preloaded": 2}
_HASH_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker is to have.

    Attributes:
        models: By name with version, why it is here: `preloaded`, or `lazy` (loaded at its first use). All others
            that may be asked for are `passing`.
        missing: What the settings name and the repository lacks.
    """

    models: Mapping[str, Residence]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory: `used_at` in seconds on any clock, `busy` while a chunk at work needs it."""

    key: str
    residence: Residence
    size_bytes: int
    used_at: float
    busy: bool


def plan(
    available: Collection[str],
    named: Collection[str] = (),
    lazy: Collection[str] = (),
    canary: Mapping[str, Shares] = MappingProxyType({}),
    shadow: Mapping[str, Shares] = MappingProxyType({}),
) -> Plan:
    """What to have of a repository.

    Args:
        available: All that it holds, with versions.
        named: Models to have, `imagenet` (its highest version) or `imagenet@1`; none means all.
        lazy: Those of them that are loaded at their first use, by name or name with version, or `*`. No shadow is:
            nobody waits for it, so that it would never be loaded.
        canary: Versions that answer a part of the jobs.
        shadow: Versions that are compared, and are not the highest for that.
    """
    highest = latest(without_shadows(available, shadow))
    shadows = set(keys_of(shadow)).difference(f"{name}@{version}" for name, version in highest.items())
    wanted = [*(named or highest), *keys_of(canary), *keys_of(shadow)]
    full = [name if "@" in name else f"{name}@{highest.get(name, '')}" for name in wanted]
    found = dict.fromkeys(key for key in full if key in available)
    missing = tuple(name for name, key in zip(wanted, full, strict=True) if key not in available)
    late = {key for key in found if _listed(key, lazy)} - shadows
    return Plan({key: "lazy" if key in late else "preloaded" for key in found}, missing)


def keys_of(shares: Mapping[str, Shares]) -> list[str]:
    """The models with versions that a canary or a shadow names."""
    return [f"{name}@{version}" for name, versions in shares.items() for version in versions]


def without_shadows(keys: Iterable[str], shadow: Mapping[str, Shares]) -> list[str]:
    """All but the versions that are only compared, unless there is no other of their model."""
    keys, compared = list(keys), keys_of(shadow)
    others = {key.partition("@")[0] for key in keys if key not in compared}
    return [key for key in keys if key not in compared or key.partition("@")[0] not in others]


def latest(keys: Iterable[str]) -> dict[str, str]:
    """Name to highest version."""
    by_version = sorted((key.partition("@") for key in keys), key=lambda parts: (parts[0], int(parts[2])))
    return {name: version for name, _, version in by_version}


def allowed(key: str, named: Collection[str]) -> bool:
    """Whether a version that the plan has not may be loaded for a job that asks for it, or was pinned to it."""
    return not named or _listed(key, named)


def offers(
    usable: Collection[str],
    planned: Collection[str],
    canary: Mapping[str, Shares] = MappingProxyType({}),
    shadow: Mapping[str, Shares] = MappingProxyType({}),
) -> dict[str, Offer]:
    """What a job that begins now, and names no version, is answered by: the highest version that is usable.

    What is planned goes first, so that a version that was taken out of the repository is not offered any more as soon
    as another one is ready. Of a canary's versions those that are not here leave their part to the others.
    """
    real = without_shadows(usable, shadow)
    found: dict[str, Offer] = dict(latest(real) | latest(key for key in real if key in planned))
    for name, shares in canary.items():
        here = [(version, weight) for version, weight in shares.items() if f"{name}@{version}" in usable and weight]
        if here:
            found[name] = here if len(here) > 1 else here[0][0]
    return found


def offered(offers: Mapping[str, Offer]) -> set[str]:
    """All that new jobs may be answered by."""
    return {
        f"{name}@{version}"
        for name, offer in offers.items()
        for version in ([offer] if isinstance(offer, str) else [version for version, _ in offer])
    }


def chosen(job: str, name: str, offer: Offer) -> str:
    """The version that a job gets: the same in every process. `begin.lua` does the same."""
    if isinstance(offer, str):
        return offer
    digits = hashlib.sha1(f"{job}/{name}".encode(), usedforsecurity=False).hexdigest()[:_HASH_DIGITS]
    left = int(digits, 16) / 16**_HASH_DIGITS * sum(weight for _, weight in offer)
    for version, weight in offer:
        left -= weight
        if left < 0:
            return version
    return offer[-1][0]


def superfluous(loaded: Iterable[Loaded], now: float, linger_seconds: float) -> list[str]:
    """What is unloaded: nobody planned it, and for a while nobody has used it."""
    return [
        model.key
        for model in loaded
        if model.residence == "passing" and not model.busy and now - model.used_at >= linger_seconds
    ]


def evictions(loaded: Collection[Loaded], need: int, limit: int) -> list[str] | None:
    """What to unload so that a model of `need` bytes fits within a limit (0: none); None if that cannot be, now.

    The least recently used goes first: of what nobody planned, then of the lazy, then of the preloaded. What a chunk
    at work needs never goes.
    """
    over = _over(loaded, limit, need)
    gone = _unneeded(loaded, over)
    return [model.key for model in gone] if sum(model.size_bytes for model in gone) >= over else None


def surplus(loaded: Collection[Loaded], limit: int) -> list[str]:
    """What to unload since models take more than was known before they were loaded: as far as that goes, now.

    The one that was used last stays: a model that takes too much by itself is better than none.
    """
    last = max((model.used_at for model in loaded), default=0.0)
    others = [model for model in loaded if model.used_at < last]
    return [model.key for model in _unneeded(others, _over(loaded, limit))]


def _over(loaded: Iterable[Loaded], limit: int, need: int = 0) -> int:
    return sum(model.size_bytes for model in loaded) + need - limit if limit else 0


def _unneeded(loaded: Iterable[Loaded], over: int) -> list[Loaded]:
    """What goes so that so many bytes come free, or as many as can."""
    gone: list[Loaded] = []
    for model in sorted(loaded, key=lambda model: (_RANK[model.residence], model.used_at)):
        if over > 0 and not model.busy:
            gone.append(model)
            over -= model.size_bytes
    return gone


def _listed(key: str, names: Collection[str]) -> bool:
    return key in names or key.partition("@")[0] in names or ALL in names
