"""Submitting on a thread, while the command follows what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, Self

from classifleet.config import IdConflict, UnknownJob
from classifleet.producer._request import SubmitItem
from classifleet.producer.fleet import Fleet, Job

POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 2.0


class _Stopped(Exception):
    """The command ends: nothing more is submitted."""


class Submission:
    """Feeds items to a job while its block runs. An interrupted command leaves an open job that can be resumed.

    Args:
        fleet: Where to.
        job_id: The job, new or begun earlier. One that has all its images is left alone.
        items: Makes the iterator of the images; not called if there is nothing to submit.
        submit: Passes an iterable on to `fleet.submit_many`.
    """

    def __init__(
        self,
        fleet: Fleet,
        job_id: str,
        items: Callable[[], Iterator[SubmitItem]],
        submit: Callable[[Iterator[SubmitItem]], Job],
    ) -> None:
        self.count: int | None = None  # images passed on; None if the job had all of them before
        self._job = fleet.job(job_id)
        self._items = items
        self._submit = submit
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="classifleet-submit", daemon=True)

    def __enter__(self) -> Self:
        """Begin; returns when the ledger knows the job.

        Raises:
            ClassifleetError: What went wrong before that.
        """
        self._thread.start()
        try:
            while not self._is_known():
                self.raise_for_error()
                self._thread.join(POLL_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Submit nothing more than what is on its way."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be submitted."""
        return not self._thread.is_alive()

    def raise_for_error(self) -> None:
        """Raise in the caller's thread what happened on the submitting one."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            if not self._is_sealed():
                self.count = 0
                self._submit(self._counted())
        except _Stopped:
            pass  # as asked
        except IdConflict as error:
            self._error = IdConflict(
                f"job {self._job.id} was begun with another source, models or options, or the source has changed "
                "since; start a new job without --job"
            )
            self._error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            self._error = error

    def _counted(self) -> Iterator[SubmitItem]:
        for item in self._items():
            if self._stopping.is_set():
                raise _Stopped
            self.count = (self.count or 0) + 1
            yield item

    def _is_known(self) -> bool:
        try:
            self._job.progress()
        except UnknownJob:
            return False
        return True

    def _is_sealed(self) -> bool:
        return self._is_known() and self._job.progress().total is not None
