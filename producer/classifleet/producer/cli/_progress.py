"""Following a job on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from classifleet.config import ResultTimeout
from classifleet.producer._flows import Progress
from classifleet.producer.cli._connect import Connection
from classifleet.producer.cli._terminal import fail, plain, stderr, warn
from classifleet.producer.fleet import Fleet, Job

SLICE_SECONDS: Final = 0.5
NO_WORKER_SECONDS: Final = 10.0


class JobBar:
    """A job's progress bar with rate and time left, on standard error."""

    def __init__(self, bars: Bars, label: str) -> None:
        self._bars = bars
        self._task = bars.add_task(plain(label), total=None, rate="")

    def show(self, progress: Progress) -> None:
        """Bring it up to date."""
        self._bars.update(
            self._task,
            completed=progress.done,
            total=progress.total if progress.total is not None else max(progress.accepted, 1),
            rate=f"{progress.rate:.1f} images/s",
        )


@contextmanager
def job_bar(label: str) -> Iterator[JobBar]:
    """A bar that stays when the block ends."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=stderr) as bars:
        yield JobBar(bars, label)


class WorkerWatch:
    """Says, once, that nobody takes the job: the commonest reason why nothing happens."""

    def __init__(self, fleet: Fleet, job: Job) -> None:
        self._fleet = fleet
        self._job = job
        self._look_at = time.monotonic() + NO_WORKER_SECONDS

    def look(self, progress: Progress) -> None:
        """Look, when it is time to."""
        if time.monotonic() < self._look_at or progress.finished:
            return
        self._look_at = float("inf")
        if queue := self.untouched_queue(progress):
            warn(f"no worker has taken anything from {queue} so far: is one running? `classifleet worker` starts one")

    def untouched_queue(self, progress: Progress) -> str | None:
        """The job's queue, if nothing of the job is done and no worker is at anything there."""
        if progress.done:
            return None
        queue = self._job.info().queue
        depth = self._fleet.queues().get(queue)
        return queue if depth is not None and depth.queued_images and not depth.leased_images else None


def wait_for(connection: Connection, job: Job, timeout: float) -> None:
    """Wait for the end of a short job, without a bar.

    Raises:
        ResultTimeout: It has not ended after `timeout` seconds.
        EmbeddedError: The embedded fleet ended.
    """
    ends = time.monotonic() + timeout
    watch = WorkerWatch(connection.fleet, job)
    while True:
        connection.check()
        try:
            job.wait(max(0.0, min(SLICE_SECONDS, ends - time.monotonic())))
        except ResultTimeout:
            progress = job.progress()
            if time.monotonic() >= ends:
                raise ResultTimeout(f"gave up after {timeout:g} s: {_why_not(progress, watch)}") from None
            watch.look(progress)
        else:
            return


def _why_not(progress: Progress, watch: WorkerWatch) -> str:
    if queue := watch.untouched_queue(progress):
        return (
            f"no worker took anything from {queue}; start one with `classifleet worker` (same CLASSIFLEET_BROKER_URL)"
        )
    return f"{progress.done} of {progress.accepted} images are answered; --timeout waits longer"


def say_models_missing(models: Sequence[str]) -> None:
    """Say why no image was classified, when it is the same reason for all."""
    names = ", ".join(models)
    fail(f"no image was classified: the workers have no model {names}; CLASSIFLEET_MODELS of a worker names its own")


def follow(fleet: Fleet, job: Job, timeout: float | None = None) -> Progress:
    """Show a job's progress until it has ended.

    Raises:
        ResultTimeout: It has not ended after `timeout` seconds.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    watch = WorkerWatch(fleet, job)
    with job_bar(job.id) as bar:
        while True:
            progress = job.progress()
            bar.show(progress)
            if progress.finished:
                return progress
            watch.look(progress)
            left = SLICE_SECONDS if ends is None else min(SLICE_SECONDS, ends - time.monotonic())
            if left <= 0:
                raise ResultTimeout(f"job {job.id} has not ended after {timeout:g} s; it goes on")
            time.sleep(left)


def summary_table(progress: Progress) -> Table:
    """What became of the images, by outcome and error code."""
    table = Table("outcome", "images", box=None, header_style="bold")
    table.add_row("ok", str(progress.ok))
    if progress.partial:
        table.add_row("partial", str(progress.partial))
    for code, count in progress.by_code.items():
        table.add_row(Text(f"error: {code}"), str(count))
    if waiting := progress.accepted - progress.done:
        table.add_row("waiting", str(waiting))
    table.add_section()
    table.add_row("rate", f"{progress.rate:.1f} images/s")
    return table
