"""Decide what a claimed job becomes, after its worker's report or after its worker has exited.

The decisions of a runner, as values for the recorder. No function here uses the database.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic

from peasy_jobs.exceptions import Failure, TimeLimit
from peasy_jobs.statuses import ENQUEUED, FAILED, SCHEDULED
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.base import WorkerExit
from peasy_jobs.workers.errors import error_entry
from peasy_jobs.workers.execution import decide_outcome, find_job_function
from peasy_jobs.workers.protocol import Outcome

logger = logging.getLogger("peasy_jobs")

FUNCTION_MISSING_DELAY = 60.0  # seconds until a job whose function is missing is tried again
FUNCTION_MISSING_TRIES = 3  # how often; then it fails


def given_back(claim: Claim) -> JobUpdate:
    """Return a job that did not run, or was interrupted, to the queue.

    The attempt is not counted.
    """
    return JobUpdate(claim=claim, status=ENQUEUED, attempts=-1)


def invalid_row(claim: Claim, reason: str, clock: Clock) -> JobUpdate:
    """Fail a job whose row cannot be used."""
    error = error_entry(Failure(reason))
    return JobUpdate(claim=claim, status=FAILED, error=error, completed=clock.at(monotonic()))


def finished(claim: Claim, outcome: Outcome, clock: Clock) -> JobUpdate:
    """Return what a job becomes that its worker has run to an end.

    If its function is missing, `wait_for_function` has the last word, as soon as the job's earlier
    errors are known.
    """
    if outcome.status == ENQUEUED:
        return given_back(claim)
    runs_again = outcome.status == SCHEDULED
    asked_to_run_later = runs_again and outcome.error is None  # no failed attempt
    # Built once: `_replace` takes longer, and this runs for every job.
    return JobUpdate(
        claim=claim,
        status=outcome.status,
        result=outcome.result,
        error=outcome.error,
        started=clock.at(outcome.started),
        completed=None if runs_again else clock.at(outcome.ended),
        run_after=clock.at(outcome.ended + outcome.delay) if runs_again else None,
        attempts=-1 if asked_to_run_later else 0,
        function_missing=outcome.function_missing,
    )


def wait_for_function(
    update: JobUpdate, stored_errors: Sequence[dict[str, str]], retry_at: datetime
) -> JobUpdate:
    """Return what a job becomes whose function is missing; any other update as it is.

    It may be missing only until a deployment has reached this host. So the job is tried again a few
    times, without charging the attempts, and fails after that.

    stored_errors: of earlier attempts, as the row holds them.
    """
    if not update.function_missing or not update.error:
        return update
    kind = update.error["exception"]
    tries = sum(entry.get("exception") == kind for entry in stored_errors)
    if tries >= FUNCTION_MISSING_TRIES:
        return update._replace(function_missing=False)
    return update._replace(
        function_missing=False,
        status=SCHEDULED,
        completed=None,
        run_after=retry_at,
        attempts=-1,
    )


def timed_out(claim: Claim, worker_exit: WorkerExit, reason: str, clock: Clock) -> JobUpdate:
    """Return what a job becomes whose worker was killed because it exceeded its time limit.

    Looks up the retry policy of the job function, which may import its module.
    """
    job, error, now = None, TimeLimit(reason), monotonic()
    with suppress(BaseException):  # importing runs the module's code
        job = find_job_function(claim.job_name)
    status, delay = decide_outcome(job, error, claim.attempts - claim.crashes)
    update = JobUpdate(
        claim=claim,
        status=status,
        error=error_entry(error, worker_exit.pid),
        started=clock.at(worker_exit.busy_since),
    )
    if status == SCHEDULED:
        return update._replace(run_after=clock.at(now + delay))
    return update._replace(completed=clock.at(now))


def crashed(claim: Claim, worker_exit: WorkerExit, crash_retries: int, clock: Clock) -> JobUpdate:
    """Return what a job becomes whose worker died: it runs again within its budget or has failed.

    crash_retries: the budget of a job that has none of its own.
    """
    budget = crash_retries if claim.crash_retries is None else claim.crash_retries
    if claim.crashes < budget:
        logger.warning(
            "The worker of %s (job %d) died (%s). It runs again.",
            claim.title,
            claim.pk,
            worker_exit.reason,
        )
        return JobUpdate(claim=claim, status=ENQUEUED, crashes=1)
    error = Failure(f"The worker running this job died ({worker_exit.reason}).")
    return JobUpdate(
        claim=claim,
        status=FAILED,
        error=error_entry(error, worker_exit.pid),
        crashes=1,
        started=clock.at(worker_exit.busy_since),
        completed=clock.at(monotonic()),
    )
