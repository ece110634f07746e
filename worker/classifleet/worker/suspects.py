"""What deaths say: which chunks are suspect, which image is to blame, and when nothing more is tried.

two deaths ─► suspect: image by image, each marked before it is touched ─► a death: it speaks against that image
                                                     two of the same image ─► `poison`; 30 of a chunk ─► given up
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from classifleet.config import ErrorCode, ImageError, LedgerUnavailable, Payload, Record
from classifleet.ledger import Lease
from classifleet.worker.leases import Held
from classifleet.worker.outages import Interrupted
from classifleet.worker.records import failed_records

SUSPECT_DEATHS: Final = 2
"""A chunk whose workers died so often is done image by image, and decoded in a sandbox unless that is turned off."""
CONVICTING_DEATHS: Final = 2
"""Of workers that were alone with an image, before it is `poison`: one may be killed from outside at such a moment."""
PATIENT_DEATHS: Final = 6
LOADS_SECONDS: Final = 60.0
"""From so many deaths on, an image of a chunk waits so long for models that are being loaded, so as to be alone."""
GIVE_UP_DEATHS: Final = 30
"""A chunk that so many workers have died of is answered: whatever kills them, it is not to kill the fleet for ever."""
log = structlog.get_logger(__name__)


def poison(lease: Lease) -> ImageError:
    """The error of an image that was convicted."""
    return ImageError(
        ErrorCode.POISON,
        f"{CONVICTING_DEATHS} workers died while they were alone with the image, of {lease.deaths} with its chunk.",
    )


def given_up(payload: Payload, lease: Lease, worker: str) -> list[Record]:
    """The records of a chunk that too many workers have died of, untouched: `poison` where that is known."""
    deaths = Counter(lease.lone_deaths)
    error = ImageError(ErrorCode.INTERNAL, f"{lease.deaths} workers have died of its chunk; it is not tried again")
    rest = failed_records(payload, error, attempt=lease.attempt, worker=worker)
    bad = failed_records(payload, poison(lease), attempt=lease.attempt, worker=worker)
    return [one if deaths[one["id"]] >= CONVICTING_DEATHS else other for one, other in zip(bad, rest, strict=True)]


class Marks:
    """Marks the image that is to blame if the process ends; none while something else may end it. Safe across threads.

    Args:
        tell: Tells the ledger the image of a lease, or none (empty). False: the lease is lost.
    """

    def __init__(self, tell: Callable[[Held, str], bool]) -> None:
        self._tell = tell
        self._changed = threading.Condition()
        self._marked: Held | None = None
        self._disturbances = 0

    def put(self, held: Held, image: str) -> bool:
        """Mark an image, or none (empty); false if the lease is lost. Raises what `tell` raises."""
        with self._changed:
            image = "" if self._disturbances else image
            kept = self._tell(held, image)
            self._marked = held if image and kept else None
            return kept

    def wait_alone(self) -> None:
        """Wait until nothing is loaded, for `LOADS_SECONDS` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._disturbances, LOADS_SECONDS)

    @contextmanager
    def not_alone(self) -> Iterator[None]:
        """While something is done that may end the process, no image is to blame if it ends."""
        with self._changed:
            self._disturbances += 1
        try:
            with self._changed:
                marked, self._marked = self._marked, None
                if marked is not None:
                    self._unmark(marked)
            yield
        finally:
            with self._changed:
                self._disturbances -= 1
                self._changed.notify_all()

    def _unmark(self, held: Held) -> None:
        try:
            self._tell(held, "")
        except (LedgerUnavailable, Interrupted) as error:
            log.warning("an image is taken for alone, and is not", job=held[0], chunk=held[1], error=str(error))
