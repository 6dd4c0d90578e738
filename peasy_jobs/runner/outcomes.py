"""What a claimed job becomes after what its worker reported, or after its worker died. Writes nothing."""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic

from peasy_jobs.exceptions import Failure, TimeLimit
from peasy_jobs.statuses import ENQUEUED, FAILED, SCHEDULED
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.base import WorkerExit
from peasy_jobs.workers.errors import error_entry
from peasy_jobs.workers.execution import (
    NOT_FOUND_PATIENCE,
    decide_outcome,
    find_job_function,
)
from peasy_jobs.workers.protocol import Outcome

logger = logging.getLogger("peasy_jobs")


def given_back(claim: Claim) -> JobUpdate:
    """It did not run, or not to an end that counts: it runs again, and this attempt never was."""
    return JobUpdate(claim=claim, status=ENQUEUED, attempts=-1)


def invalid_row(claim: Claim, why: str, clock: Clock) -> JobUpdate:
    """Nothing can be done with its row."""
    return JobUpdate(
        claim=claim, status=FAILED, error=error_entry(Failure(why)), completed=clock.at(monotonic())
    )


def ended(claim: Claim, outcome: Outcome, clock: Clock) -> JobUpdate:
    """It ran to an end."""
    if outcome.status == ENQUEUED:
        return given_back(claim)
    ending = JobUpdate(
        claim=claim,
        status=outcome.status,
        result=outcome.result,
        error=outcome.error,
        started=clock.at(outcome.started),
    )
    if outcome.delay or outcome.status == SCHEDULED:
        ending.run_after = clock.at(outcome.ended + outcome.delay)
    if outcome.status != SCHEDULED:
        ending.completed = clock.at(outcome.ended)
        ending.patience = NOT_FOUND_PATIENCE if outcome.delay else 0
    elif not outcome.error:  # it asked to come back later, which is no failed attempt
        ending.attempts = -1
    return ending


def killed_late(claim: Claim, death: WorkerExit, reason: str, clock: Clock) -> JobUpdate:
    """Its worker had to be killed because it ran too long. What its code says of retries is looked up here."""
    job, error, now = None, TimeLimit(reason), monotonic()
    with suppress(BaseException):  # it may import the module, which runs its code
        job = find_job_function(claim.job_name)
    status, delay = decide_outcome(job, error, claim.attempts - claim.crashes)
    ending = JobUpdate(
        claim=claim,
        status=status,
        error=error_entry(error, death.pid),
        started=clock.at(death.since),
    )
    if status == SCHEDULED:
        ending.run_after = clock.at(now + delay)
    else:
        ending.completed = clock.at(now)
    return ending


def crashed(claim: Claim, death: WorkerExit, crash_retries: int, clock: Clock) -> JobUpdate:
    """Its worker died."""
    budget = crash_retries if claim.crash_retries is None else claim.crash_retries
    if claim.crashes < budget:
        logger.warning(
            "The worker of %s (job %d) died (%s). It runs again.",
            claim.title,
            claim.pk,
            death.reason,
        )
        return JobUpdate(claim=claim, status=ENQUEUED, crashes=1)
    error = error_entry(Failure(f"The worker running this job died ({death.reason})."), death.pid)
    started, completed = clock.at(death.since), clock.at(monotonic())
    return JobUpdate(
        claim=claim, status=FAILED, error=error, crashes=1, started=started, completed=completed
    )
