"""The leases that this process holds, renewed on one thread while their chunks are at work."""

from __future__ import annotations

import threading

import structlog

from classifleet.config import LedgerUnavailable
from classifleet.ledger import Ledger, SyncRunner

RENEWALS_PER_LEASE = 3
log = structlog.get_logger(__name__)
Held = tuple[str, str, int]


class LeaseKeeper:
    """Renews leases three times per lease. A lease that was lost is only reported: the commit decides who wins."""

    def __init__(self, ledger: Ledger, runner: SyncRunner, owner: str, lease_seconds: float) -> None:
        self._ledger = ledger
        self._runner = runner
        self._owner = owner
        self._lease_ms = int(lease_seconds * 1000)
        self._held: set[Held] = set()
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

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(self._lease_ms / 1000 / RENEWALS_PER_LEASE):
            with self._lock:
                held = sorted(self._held)
            if held:
                self._renew(held)

    def _renew(self, held: list[Held]) -> None:
        try:
            kept = self._runner.run(self._ledger.renew(self._owner, held, lease_ms=self._lease_ms))
        except LedgerUnavailable as error:
            log.warning("leases not renewed", chunks=len(held), error=str(error))
            return
        for lease, still in zip(held, kept, strict=True):
            with self._lock:
                finished = lease not in self._held
            if not still and not finished:
                log.warning("lease lost", job=lease[0], chunk=lease[1], attempt=lease[2])
                self.remove(lease)
