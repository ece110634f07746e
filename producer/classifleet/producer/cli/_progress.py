"""Following a job on the terminal."""

from __future__ import annotations

import time
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from classifleet.config import ResultTimeout
from classifleet.producer._flows import Progress
from classifleet.producer.cli._connect import stderr
from classifleet.producer.fleet import Job

POLL_SECONDS: Final = 0.5


def bar() -> Bar:
    """A progress bar with rate and time left, on standard error."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=stderr,
    )


def show(progress_bar: Bar, task: TaskID, progress: Progress) -> None:
    """Bring a bar up to date."""
    progress_bar.update(
        task,
        completed=progress.done,
        total=progress.total if progress.total is not None else max(progress.accepted, 1),
        rate=f"{progress.rate:.1f} images/s",
    )


def follow(job: Job, timeout: float | None = None) -> Progress:
    """Show a job's progress until it has ended.

    Raises:
        ResultTimeout: It has not ended after `timeout` seconds.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    with bar() as progress_bar:
        task = progress_bar.add_task(job.id, total=None, rate="")
        while True:
            progress = job.progress()
            show(progress_bar, task, progress)
            if progress.finished:
                return progress
            left = POLL_SECONDS if ends is None else min(POLL_SECONDS, ends - time.monotonic())
            if left <= 0:
                raise ResultTimeout(f"job {job.id} has not ended after {timeout} s; it goes on")
            time.sleep(left)


def summary_table(progress: Progress) -> Table:
    """What became of the images, by outcome and error code."""
    table = Table("outcome", "images", box=None, header_style="bold")
    table.add_row("ok", str(progress.ok))
    if progress.partial:
        table.add_row("partial", str(progress.partial))
    for code, count in progress.by_code.items():
        table.add_row(f"error: {code}", str(count))
    waiting = progress.accepted - progress.done
    if waiting:
        table.add_row("waiting", str(waiting))
    table.add_section()
    table.add_row("rate", f"{progress.rate:.1f} images/s")
    return table
