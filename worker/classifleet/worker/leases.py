"""The leases that this process holds: renewed on one thread while their chunks are at work, and handed back."""

from __future__ import annotations

import threading

import structlog

from classifleet.config import LedgerUnavailable
from classifleet.ledger import Ledger, SyncRunner

RENEWALS_PER_LEASE = 3
log = structlog.get_logger(__name__)
Held = tuple[str, str, int]


class LeaseKeeper:
    """Renews leases three times per lease. A lease that was lost is only reported: the commit decides who wins.

    What cannot be handed back since Redis is away is tried again at each renewal, so that no death is counted for it.
    """

    def __init__(self, ledger: Ledger, runner: SyncRunner, owner: str, lease_seconds: float) -> None:
        self._ledger = ledger
        self._runner = runner
        self._owner = owner
        self._lease_ms = int(lease_seconds * 1000)
        self._held: set[Held] = set()
        self._unwanted: set[Held] = set()
        self._died = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="classifleet-leases", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, lease: Held) -> None:
        """Renew this lease from now on."""
        with self._lock:
            self._held.add(lease)

    def remove(self, lease: Held) -> None:
        """Stop renewing."""
        with self._lock:
            self._held.discard(lease)

    def give_back(self, lease: Held) -> None:
        """Hand the chunk back to its queue, unfinished; later, if Redis is away."""
        with self._lock:
            self._held.discard(lease)
            self._unwanted.add(lease)
        self._hand_back()

    def give_all_back(self) -> None:
        """Hand back whatever is held."""
        with self._lock:
            self._unwanted |= self._held
            self._held.clear()
        self._hand_back()

    def count_deaths(self) -> None:
        """From now on what is handed back has died here, as if with the process: its device is lost, or hangs."""
        self._died = True

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(self._lease_ms / 1000 / RENEWALS_PER_LEASE):
            try:
                self._hand_back()
                self._renew()
            except Exception:  # the thread must live: without renewals every chunk would be done twice
                log.exception("leases not renewed")

    def _hand_back(self) -> None:
        with self._lock:
            unwanted = sorted(self._unwanted)
        if not unwanted:
            return
        try:
            self._runner.run(self._ledger.hand_back(self._owner, unwanted, died=self._died))
        except LedgerUnavailable as error:
            log.debug("chunks not handed back", chunks=len(unwanted), error=str(error))
            return
        with self._lock:
            self._unwanted.difference_update(unwanted)

    def _renew(self) -> None:
        with self._lock:
            held = sorted(self._held)
        if not held:
            return
        try:
            kept = self._runner.run(self._ledger.renew(self._owner, held, lease_ms=self._lease_ms))
        except LedgerUnavailable as error:
            log.debug("leases not renewed", chunks=len(held), error=str(error))
            return
        for lease, still in zip(held, kept, strict=True):
            with self._lock:
                finished = lease not in self._held
            if not still and not finished:
                log.warning("lease lost", job=lease[0], chunk=lease[1], attempt=lease[2])
                self.remove(lease)
