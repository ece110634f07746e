"""One run of `classifleet bulk`: submit, follow, collect.

source ─► submission (a thread) ─► fleet ─► the job's log ─► collector ─► destination
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from classifleet.config import ClassifleetError, InvalidRequest, Settings
from classifleet.producer._flows import Cursor, Progress
from classifleet.producer._request import RequestOptions, SubmitItem
from classifleet.producer.cli._connect import Connection, fleet_or_embedded
from classifleet.producer.cli._progress import JobBar, WorkerWatch, job_bar
from classifleet.producer.cli._records import Collector, Destination
from classifleet.producer.cli._sources import Source, Wanted
from classifleet.producer.cli._state import forget_state, state_folder
from classifleet.producer.cli._submission import Submission
from classifleet.producer.cli._terminal import say
from classifleet.producer.fleet import Fleet, Job
from classifleet.producer.result import Result

POLL_SECONDS: Final = 0.1
LEASE_SECONDS: Final = 10  # nobody but the next command waits for the lease of an embedded worker that was killed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        progress: The counts of what the destination holds now.
        complete: Every image has a record.
        lost: Images to be retried that the source no longer has.
    """

    progress: Progress
    complete: bool
    lost: int


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked for.

    Attributes:
        retries: How many images of an earlier job are done again; None if it is no retry.
    """

    job: str
    source: Source
    wanted: Wanted
    destination: Destination
    models: list[str]
    options: RequestOptions
    broker_url: str | None
    embedded: bool
    retries: int | None = None

    def carry_out(self) -> Outcome:
        """Do it, or go on with it.

        Raises:
            ClassifleetError: What went wrong. A job that had begun stays as it is, and can be gone on with.
        """
        began = self.embedded and state_folder(self.job).exists()
        try:
            with self._connect() as connection, self._submission(connection.fleet) as submission:
                began = True
                outcome = self._collect(connection, submission)
        except (KeyboardInterrupt, SystemExit):
            # After the fleet was stopped or let go: so nothing of it is said and then not true.
            say(f"stopped; {self._how_to_go_on()}" if began else "stopped before anything was submitted")
            raise
        except ClassifleetError as error:
            if began and not isinstance(error, InvalidRequest):  # with a wrong request there is no going on
                say(self._how_to_go_on())
            raise
        finally:
            if self.embedded and not began:
                forget_state(self.job)
        if self.embedded:
            forget_state(self.job)
        return outcome

    def _connect(self) -> AbstractContextManager[Connection]:
        """The fleet; an embedded one may read the source and write the destination, and keeps its state by job."""
        worker = {"FILE_ROOTS": json.dumps(self.source.folders())}
        if self.destination.sink:
            worker["SINK_ALLOW"] = json.dumps([self.destination.sink])
        if Settings.load().source("lease_seconds") == "default":
            worker["LEASE_SECONDS"] = str(LEASE_SECONDS)
        return fleet_or_embedded(self.broker_url, models=self.models, worker=worker, folder=state_folder(self.job))

    def _submission(self, fleet: Fleet) -> Submission:
        def submit(items: Iterator[SubmitItem]) -> Job:
            return fleet.submit_many(
                items, models=self.models, job_id=self.job, sink=self.destination.sink, **self.options
            )

        return Submission(fleet, self.job, lambda: self.source.items(self.wanted), submit)

    def _collect(self, connection: Connection, submission: Submission) -> Outcome:
        job = connection.fleet.job(self.job)
        with self.destination.collect(self.job, merge=self.retries is not None) as collector:
            with job_bar("classifying") as bar:
                progress = _follow(connection, job, submission, collector, bar)
            # A job that was cancelled takes no more images; only the thread that submits knows how many there are.
            count = submission.count
            ended_early = progress.state in ("cancelled", "abandoned")
            complete = not ended_early if count is None else progress.accepted == count
            lost = 0 if self.retries is None else self.retries - progress.accepted
            total = collector.finish(job, progress, {"models": self.models, "complete": complete})
        return Outcome(total, complete, lost)

    def _how_to_go_on(self) -> str:
        same = "the same command" + ("" if self.retries is not None else f" with --job {self.job}")
        if self.embedded:
            return f"{same} goes on where it was"
        return (
            f"the fleet goes on with what was submitted (classifleet jobs wait {self.job}); {same} submits the rest "
            "and collects the results"
        )


def _follow(connection: Connection, job: Job, submission: Submission, collector: Collector, bar: JobBar) -> Progress:
    """Show the job and hand its results on until it has ended."""
    cursor = Cursor()
    watch = WorkerWatch(connection.fleet, job)
    while True:
        connection.check()
        submission.raise_for_error()
        progress = job.progress()
        bar.show(progress)
        watch.look(progress)
        # Asked for after the progress: what had ended then is in this page, or in the next.
        page = _new_results(connection.fleet, job, cursor) if collector.reads else []
        collector.take(page)
        if progress.finished and not page and submission.ended:
            return progress
        if not page:
            time.sleep(POLL_SECONDS)


def _new_results(fleet: Fleet, job: Job, cursor: Cursor) -> list[Result]:
    """The next page of the results that are there; empty if there are none yet."""
    return fleet._engine.drive(fleet._flows.page(job.id, cursor, None))
