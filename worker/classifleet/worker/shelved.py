"""One model on the shelf: what is known of it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass

from classifleet.config import ModelError
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
    size_bytes: int = 0
    usable: bool = False  # new jobs may be pinned to it
    problem: str = ""
    files: tuple[int, ...] = ()  # of the attempt that failed
    load: Future[None] | None = None  # on its way


def new_entry(key: str, residence: Residence, *, usable: bool) -> Entry:
    """A model that is not loaded yet."""
    state: State = "waiting" if residence == "preloaded" else "lazy"
    return Entry(key, state, residence, time.monotonic(), usable=usable)
