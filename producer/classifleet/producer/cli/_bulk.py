"""`classifleet bulk`: a whole folder, bucket or manifest, each image exactly once."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from classifleet.config import InvalidRequest, UnknownJob
from classifleet.config.storage import open_store
from classifleet.producer._flows import Progress
from classifleet.producer._request import SubmitItem, new_id
from classifleet.producer.cli._connect import BrokerUrl, TopK, fleet_or_embedded, is_configured, split, stderr
from classifleet.producer.cli._progress import POLL_SECONDS, bar, show, summary_table
from classifleet.producer.cli._sources import Source
from classifleet.producer.fleet import Fleet, Job
from classifleet.producer.result import Result

EXIT_SOME_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
RESULTS: Final = "results.ndjson"
FAILURES: Final = "failures.ndjson"
SUMMARY: Final = "summary.json"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the records go: a sink that the workers write to, or a folder that this command writes to."""

    text: str

    @property
    def sink(self) -> str | None:
        """The sink, if workers write."""
        return self.text.rstrip("/") if self.text.startswith(("s3://", "file://")) else None

    @property
    def folder(self) -> Path:
        """The folder, if this command writes."""
        return Path(self.text)


def bulk(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, an s3:// prefix, or a .txt, .jsonl or .csv manifest.")
    ],
    out: Annotated[
        str, typer.Option("--out", help="A folder for the results, or s3://… or file:///… that the workers write to.")
    ],
    models: Annotated[str, typer.Option("--models", "--model", help="One or more models, by comma.")] = "imagenet",
    top_k: TopK = 5,
    scores: Annotated[str, typer.Option(help="`all` records every class, `top` the best.")] = "top",
    include: Annotated[list[str] | None, typer.Option(help="Only ids or names that match this glob.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not those that match this glob.")] = None,
    job_id: Annotated[str | None, typer.Option("--job", help="Resume (or attach to) this job.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Classify again what failed, and bring the results up to date.")
    ] = False,
    fail_on_error: Annotated[bool, typer.Option("--fail-on-error", help="Exit 1 if an image failed.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Classify every image below SOURCE, each exactly once, with an account of what failed and why.

    Exit code 0 if and only if every image has a record.

    Examples:
      classifleet bulk uploads/ --model imagenet --out results/

      classifleet bulk s3://uploads/2026/ --models nsfw --out s3://moderation/nightly

      classifleet bulk uploads/ --out results/ --job 019a2b…      (goes on where it stopped)
    """
    if scores not in ("top", "all"):
        raise InvalidRequest(f"--scores is top or all, not {scores!r}")
    destination = Destination(out)
    embedded = not is_configured(broker_url)
    where = Source(source, embedded, tuple(include or ()), tuple(exclude or ()))
    where.check()
    previous = _previous_failures(destination) if retry_failed and destination.sink is None else None
    job = new_id() if job_id is None or retry_failed else job_id
    run = _Run(where, destination, split(models), top_k, scores)  # type: ignore[arg-type]
    stderr.print(f"job {job}")
    with _fleet(run, broker_url, job, embedded=embedded) as fleet:
        if retry_failed and previous is None:
            previous = _failed_of(fleet, job_id)
        only = None if previous is None else set(previous)
        try:
            progress = run.carry_out(fleet, job, only)
        except KeyboardInterrupt:
            _say_how_to_go_on(job, embedded=embedded)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    _forget_state(job)
    Console().print(summary_table(progress))
    stderr.print(f"results are in {destination.text}" + (f"/{job}/" if destination.sink else ""))
    if fail_on_error and progress.failed + progress.partial:
        raise typer.Exit(EXIT_SOME_FAILED)


@dataclass(frozen=True, slots=True)
class _Run:
    """What is asked for."""

    source: Source
    destination: Destination
    models: list[str]
    top_k: int
    scores: Literal["top", "all"]

    def carry_out(self, fleet: Fleet, job_id: str, only: set[str] | None) -> Progress:
        """Submit on a thread, and follow."""
        submission = Submission(fleet, job_id, self, only)
        submission.start()
        job = fleet.job(job_id)
        submission.wait_for_first()
        progress = (
            self._follow_sink(job, submission) if self.destination.sink else self._write_folder(job, submission, only)
        )
        submission.raise_for_error()
        return progress

    def _follow_sink(self, job: Job, submission: Submission) -> Progress:
        progress = _watch(job, submission)
        sink = self.destination.sink or ""
        store = open_store(sink, job._fleet.settings)
        failures = [_line(result) for result in job.results(follow=False) if not result.ok]
        store.put(f"{job.id}/{FAILURES}", b"".join(failures))
        store.put(f"{job.id}/{SUMMARY}", _summary(job.id, progress))
        return progress

    def _write_folder(self, job: Job, submission: Submission, only: set[str] | None) -> Progress:
        folder = self.destination.folder
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{RESULTS}.{job.id}"
        with partial.open("wb") as file, bar() as progress_bar:
            task = progress_bar.add_task("classifying", total=None, rate="")
            last = 0.0
            for result in job.results():
                file.write(_line(result))
                if time.monotonic() - last > POLL_SECONDS:
                    show(progress_bar, task, job.progress())
                    submission.raise_for_error()
                    last = time.monotonic()
            progress = job.progress()
            show(progress_bar, task, progress)
        if only is not None:
            _merge(folder / RESULTS, partial, only)
        partial.replace(folder / RESULTS)
        _write_failures(folder)
        (folder / SUMMARY).write_bytes(_summary(job.id, progress))
        return progress


class Submission:
    """`submit_many` on a daemon thread: an interrupted command leaves an open job that can be resumed."""

    def __init__(self, fleet: Fleet, job_id: str, run: _Run, only: set[str] | None) -> None:
        self._fleet = fleet
        self._job_id = job_id
        self._run = run
        self._only = only
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._submit, name="classifleet-submit", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_for_first(self) -> None:
        """Return when the ledger knows the job, or raise what went wrong."""
        while True:
            self.raise_for_error()
            try:
                self._fleet.job(self._job_id).progress()
            except UnknownJob:
                self._thread.join(POLL_SECONDS / 10)
            else:
                return

    def raise_for_error(self) -> None:
        """Raise in the caller's thread what happened on the submitting one."""
        if self._error is not None:
            raise self._error

    def _submit(self) -> None:
        run = self._run
        try:
            if self._sealed():
                return
            self._fleet.submit_many(
                self._items(),
                models=run.models,
                job_id=self._job_id,
                sink=run.destination.sink,
                top_k=run.top_k,
                scores=run.scores,
            )
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            self._error = error

    def _sealed(self) -> bool:
        try:
            return self._fleet.job(self._job_id).progress().total is not None
        except UnknownJob:
            return False

    def _items(self) -> Iterator[SubmitItem]:
        items = self._run.source.items(self._fleet.settings)
        if self._only is None:
            return items
        only = self._only
        return (item for item in items if isinstance(item, tuple) and item[0] in only)


@contextmanager
def _fleet(run: _Run, broker_url: str | None, job: str, *, embedded: bool) -> Iterator[Fleet]:
    """The fleet; an embedded one may read the source and write the destination, and keeps its state by job."""
    worker = {}
    if embedded:
        worker["FILE_ROOTS"] = json.dumps(run.source.folders())
        if run.destination.sink:
            worker["SINK_ALLOW"] = json.dumps([run.destination.sink])
    folder = _state_folder(job) if embedded else None
    with fleet_or_embedded(broker_url, models=run.models, worker=worker, folder=folder) as fleet:
        yield fleet


def _watch(job: Job, submission: Submission) -> Progress:
    with bar() as progress_bar:
        task = progress_bar.add_task("classifying", total=None, rate="")
        while True:
            submission.raise_for_error()
            progress = job.progress()
            show(progress_bar, task, progress)
            if progress.finished:
                return progress
            time.sleep(POLL_SECONDS)


def _previous_failures(destination: Destination) -> list[str]:
    file = destination.folder / RESULTS
    if not file.is_file():
        raise InvalidRequest(f"--retry-failed: there is no {file} of an earlier run")
    return [result.id for result in _read(file) if not result.ok]


def _failed_of(fleet: Fleet, job_id: str | None) -> list[str]:
    if job_id is None:
        raise InvalidRequest("--retry-failed with a sink needs --job, the job whose failures are meant")
    return [result.id for result in fleet.job(job_id).results(follow=False) if not result.ok]


def _merge(old: Path, new: Path, replaced: set[str]) -> None:
    """Put the results that stay before the new ones, in `new`."""
    merged = new.with_name(new.name + ".merged")
    with merged.open("wb") as file:
        file.writelines(_line(result) for result in _read(old) if result.id not in replaced)
        with new.open("rb") as added:
            shutil.copyfileobj(added, file)
    merged.replace(new)


def _write_failures(folder: Path) -> None:
    with (folder / FAILURES).open("wb") as file:
        file.writelines(_line(result) for result in _read(folder / RESULTS) if not result.ok)


def _read(file: Path) -> Iterator[Result]:
    with file.open("rb") as lines:
        yield from map(Result.from_record, lines)


def _line(result: Result) -> bytes:
    return json.dumps(result.to_dict(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _summary(job: str, progress: Progress) -> bytes:
    fields: dict[str, Any] = {
        "job": job,
        "state": progress.state,
        "images": progress.accepted,
        "ok": progress.ok,
        "partial": progress.partial,
        "failed": progress.failed,
        "by_code": progress.by_code,
        "images_per_second": round(progress.rate, 1),
    }
    return json.dumps(fields, indent=1).encode() + b"\n"


def _state_folder(job: str) -> Path:
    """Where an embedded fleet keeps an unfinished job, so that `--job` can go on with it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "classifleet" / "bulk" / job


def _forget_state(job: str) -> None:
    shutil.rmtree(_state_folder(job), ignore_errors=True)


def _say_how_to_go_on(job: str, *, embedded: bool) -> None:
    if embedded:
        stderr.print(f"stopped; the same command with --job {job} goes on where it was")
    else:
        stderr.print(
            f"detached; what was submitted goes on (classifleet jobs wait {job}); the same command with --job {job} "
            "submits the rest and collects the results"
        )
