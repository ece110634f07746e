"""One model on the shelf: what is known of it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass

from classifleet.config import ModelError
from classifleet.worker.models import Repository
from classifleet.worker.versions import Residence, State


class NoRoom(ModelError):
    """Other models are in use, and there is no memory for one more; later there may be."""


@dataclass(slots=True)
class Entry:
    """A model with version, as far as it is known."""

    key: str
    state: State
    residence: Residence
    used_at: float
    lent: int = 0  # chunks at work
    size_bytes: int = 0  # since it was loaded, also after it was unloaded
    usable: bool = False  # new jobs may be pinned to it
    problem: str = ""
    files: tuple[int, ...] = ()  # of the attempt that failed
    load: Future[None] | None = None  # on its way


def new_entry(key: str, residence: Residence, *, usable: bool) -> Entry:
    """A model that is not loaded yet."""
    state: State = "waiting" if residence == "preloaded" else "lazy"
    return Entry(key, state, residence, time.monotonic(), usable=usable)


def files_of(repository: Repository, key: str) -> tuple[int, ...]:
    """What tells one state of a model's files from another."""
    try:
        stats = [file.stat() for file in sorted(repository.path.joinpath(*key.split("@")).iterdir())]
    except OSError:
        return ()
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))
