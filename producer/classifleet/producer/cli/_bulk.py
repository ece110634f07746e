"""`classifleet bulk`: a whole folder, bucket or manifest, each image exactly once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from classifleet.config import ErrorCode, Settings
from classifleet.config.payload import check_job_id
from classifleet.producer._request import RequestOptions, make_request, new_id
from classifleet.producer.cli._destination import local_folder, open_destination
from classifleet.producer.cli._options import BrokerUrl, Scores, TopK, split
from classifleet.producer.cli._progress import say_models_missing, summary_table
from classifleet.producer.cli._retry import plan_retry
from classifleet.producer.cli._run import Outcome, Run
from classifleet.producer.cli._sources import Globs, open_source
from classifleet.producer.cli._terminal import EXIT_SOME_FAILED, fail, say, warn


def bulk(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, an s3:// prefix, or a .txt, .jsonl or .csv manifest.")
    ],
    out: Annotated[
        str, typer.Option("--out", help="A folder for the results, or s3://… or file:///… that the workers write to.")
    ],
    models: Annotated[str, typer.Option("--models", "--model", help="One or more models, by comma.")] = "imagenet",
    top_k: TopK = 5,
    scores: Annotated[Scores, typer.Option(help="`all` records every class, `top` the best.")] = Scores.TOP,
    include: Annotated[list[str] | None, typer.Option(help="Only ids or names that match a glob; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="None that match a glob; repeatable.")] = None,
    job_id: Annotated[
        str | None, typer.Option("--job", help="The job's id: a new one, or one to go on with.", show_default="new")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Classify again what failed, and bring the results up to date.")
    ] = False,
    fail_on_error: Annotated[bool, typer.Option("--fail-on-error", help="Exit 1 if an image failed.")] = False,
    broker_url: BrokerUrl = None,
) -> None:
    """Classify every image below SOURCE, each exactly once, with an account of what failed and why.

    Each image's id is its path below the folder, its key in the bucket, or the manifest's `id` (else its line).
    The job's id is printed first. Ctrl-C detaches from a running fleet, and stops an embedded one; the same command
    with `--job` goes on. Exit code 0 if every image has a record, unless all say that there is no such model.

    **Examples**

    ```
    classifleet bulk uploads/ --model imagenet --out results/
    classifleet bulk s3://uploads/2026/ --models nsfw --out s3://results/2026
    classifleet bulk uploads/ --include '*.jpg' --exclude 'tmp/*' --out results/
    classifleet bulk list.csv --out results/ --job nightly-1
    classifleet bulk uploads/ --out results/ --retry-failed
    ```
    """
    settings = Settings.load(broker_url=broker_url)
    names = split(models)
    destination = open_destination(out, settings)
    images = open_source(source, settings, embedded=not settings.broker_url, out=local_folder(out))
    wanted = Globs(tuple(include or ()), tuple(exclude or ()))
    run = Run(
        job=check_job_id(new_id() if job_id is None else job_id),
        source=images,
        wanted=wanted,
        destination=destination,
        models=names,
        options=RequestOptions(top_k=top_k, scores=scores.value),
        broker_url=broker_url,
        embedded=not settings.broker_url,
    )
    if retry_failed:
        planned = plan_retry(run, job_id)
        if planned is None:
            say("nothing failed: there is nothing to do")
            return
        run = planned
    make_request(settings, job=run.job, models=names, options=run.options, lane="bulk", sink=destination.sink)
    if ended := destination.summary(run.job) if job_id or retry_failed else None:
        say(f"job {run.job} has ended; its results are in {destination.where(run.job)}")
        no_model = ended["images"] and ended["by_code"].get(ErrorCode.MODEL_NOT_FOUND) == ended["images"]
        if not ended.get("complete") or no_model or (fail_on_error and ended["failed"] + ended["partial"]):
            raise typer.Exit(EXIT_SOME_FAILED)
        return
    images.check(run.wanted)
    destination.prepare()
    typer.echo(f"job {run.job}")
    outcome = run.carry_out()
    Console().print(summary_table(outcome.progress))
    say(f"results are in {destination.where(run.job)}")
    if outcome.lost:
        warn(f"{outcome.lost} images that had failed are no longer in {source}: their records stay as they were")
    _require_success(run, outcome, fail_on_error=fail_on_error)


def _require_success(run: Run, outcome: Outcome, *, fail_on_error: bool) -> None:
    """Exit with 1 if images have no record, or none could be classified for want of the model, or as asked for."""
    progress = outcome.progress
    if not outcome.complete:
        how = progress.state if progress.state in ("cancelled", "abandoned") else "ended"
        fail(f"job {run.job} was {how} before all images were submitted: some have no record")
        raise typer.Exit(EXIT_SOME_FAILED)
    if progress.done and progress.by_code.get(ErrorCode.MODEL_NOT_FOUND) == progress.done:
        say_models_missing(run.models)
        raise typer.Exit(EXIT_SOME_FAILED)
    if fail_on_error and progress.failed + progress.partial:
        raise typer.Exit(EXIT_SOME_FAILED)
