"""What would pile up if nobody looked: jobs of silent producers, names of expired jobs, forgotten images."""

from __future__ import annotations

import time
from typing import Final

import structlog

from classifleet.ledger import FORGOTTEN_SECONDS
from classifleet.worker.reconciler.context import Context

log = structlog.get_logger(__name__)
JOBS_A_ROUND: Final = 100
PAGE: Final = 1000
PAGES_A_ROUND: Final = 10
SWEEP_SECONDS: Final = 3600.0
RETENTION: Final = 2  # times to live for which an expired job is still told from one that never was


class Upkeep:
    """Done every ten seconds by the process that has the duty; the sweep of the claim store every hour."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._offset = 0
        self._images_seen = 0
        self._swept = time.monotonic()

    def round(self) -> None:
        """Look once.

        Raises:
            Unavailable, StorageError: The rest is looked at later.
        """
        self._abandon()
        self._forget_jobs()
        self._take_back_images()
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self.sweep()

    def _abandon(self) -> None:
        context = self._context
        silent_ms = context.settings.open_job_ttl_seconds * 1000
        for job in context.runner.run(context.ledger.abandon(silent_ms, JOBS_A_ROUND)):
            log.warning("its producer has been silent for too long; what was submitted is finished", job=job)

    def _forget_jobs(self) -> None:
        runner, ledger = self._context.runner, self._context.ledger
        before_ms = self._context.now_ms() - RETENTION * self._context.settings.result_ttl_seconds * 1000
        for _ in range(PAGES_A_ROUND):
            jobs = runner.run(ledger.jobs_before(before_ms, self._offset, PAGE))
            here = runner.run_all([ledger.has_job(job) for job in jobs])
            gone = [job for job, is_here in zip(jobs, here, strict=True) if not is_here]
            runner.run_all([ledger.forget_job(job) for job in gone])
            self._offset += len(jobs) - len(gone)
            if len(jobs) < PAGE:
                self._offset = 0
                return

    def _take_back_images(self) -> None:
        """A page of what is parked in Redis: the images of chunks that wait are kept, forgotten ones are not."""
        runner, ledger = self._context.runner, self._context.ledger
        page = runner.run(ledger.parked_images(self._images_seen, PAGE))
        until = {"idle_seconds": FORGOTTEN_SECONDS, "ttl_ms": self._context.settings.blob_ttl_seconds * 1000}
        calls = [ledger.take_back_blobs(job, chunk, [sha], **until) for job, chunk, sha in page]
        if taken := sum(runner.run_all(calls)):
            log.warning("images that were parked for no chunk taken back", images=taken)
        self._images_seen = self._images_seen + len(page) - taken if len(page) == PAGE else 0

    def sweep(self) -> None:
        """Delete what nobody deleted from the claim store, unless another process has done so in this hour."""
        context = self._context
        claims = context.claims
        if not claims.enabled:
            return
        mine = context.ledger.hold("claims", context.owner, lease_ms=int(SWEEP_SECONDS * 1000))
        if context.runner.run(mine) and (swept := claims.sweep()):
            log.warning("forgotten images deleted from the claim store", images=swept)
