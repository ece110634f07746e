"""`classifleet bulk --retry-failed`: what of an earlier job is done again, and under which name.

The name follows from the earlier job's (`x` is retried as `x-retry-1`, that as `x-retry-2`), so that the same command
goes on with a retry that was interrupted.
"""

from __future__ import annotations

import re
from dataclasses import replace

from classifleet.config import InvalidRequest
from classifleet.config.payload import check_job_id
from classifleet.producer.cli._run import Run

_RETRY = re.compile(r"(?P<base>.+)-retry-(?P<number>[0-9]+)")


def plan_retry(run: Run, job_id: str | None) -> Run | None:
    """The run that does again what failed; None if nothing did.

    Args:
        run: As if it were no retry.
        job_id: The job whose failures are meant; a folder knows it, a sink holds many.

    Raises:
        InvalidRequest: There are no results of that job, or it was for other models.
    """
    job = job_id or run.destination.last_job()
    summary = run.destination.summary(job) if job else None
    if job is None or summary is None:
        where = run.destination.where(job or "JOB")
        hint = "" if job_id else "; name the job with --job" if run.destination.sink else ""
        raise InvalidRequest(f"--retry-failed: {where} holds no results of an earlier run{hint}")
    if summary.get("models") != run.models:
        raise InvalidRequest(f"--retry-failed: job {job} was for --models {','.join(summary.get('models', ()))}")
    failed = frozenset(run.destination.failed(job))
    if not failed:
        return None
    wanted = run.wanted
    return replace(
        run,
        job=check_job_id(next_name(job)),
        wanted=lambda name: name in failed and wanted(name),
        retries=len(failed),
    )


def next_name(job: str) -> str:
    """The name of a job's retry."""
    match = _RETRY.fullmatch(job)
    return f"{match['base']}-retry-{int(match['number']) + 1}" if match else f"{job}-retry-1"
