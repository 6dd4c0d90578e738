"""Stop running jobs: ask first, and kill the worker after a grace period."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.base import Worker
from peasy_jobs.workers.protocol import StopReason, StopRequest, Ticket

logger = logging.getLogger("peasy_jobs")

GRACE_PERIOD = 1.0  # seconds that a job has to clean up before its worker is killed


@dataclass(slots=True)
class StoppingJob:
    """A running job that was asked to stop, and the `time.monotonic()` when its worker is killed.

    `kill_at` is infinite once the kill was attempted, which is done only once.
    """

    request: StopRequest
    kill_at: float

    def bring_forward(self, kill_at: float) -> None:
        """Have the worker killed at this time, unless that is due earlier."""
        self.kill_at = min(self.kill_at, kill_at)


class StopController:
    """Which running jobs were asked to stop, why, and when their workers have to be killed."""

    def __init__(self, default_limit: float | None) -> None:
        # Seconds, for jobs without a time limit of their own.
        self.default_limit = float("inf") if default_limit is None else default_limit
        # A thread may still be running an earlier claim of the same job, so the primary key is not
        # enough.
        self.stopping: dict[Ticket, StoppingJob] = {}

    def request_stop(self, worker: Worker, claim: Claim, request: StopRequest) -> None:
        """Ask the job that this worker is running to stop, unless it was asked before."""
        if Ticket.of(claim) in self.stopping:
            return
        logger.info("%s (job %d) is asked to stop: %s", claim.title, claim.pk, request.message)
        self.stopping[Ticket.of(claim)] = StoppingJob(request, monotonic() + GRACE_PERIOD)
        worker.request_stop(claim, request)

    def stop_all(self, workers: Iterable[Worker], message: str) -> None:
        """Ask every running job to stop because the runner shuts down.

        A job that was asked before, for whatever reason, gets no second request. Its worker is
        killed after this grace period at the latest, again if that was attempted before.
        """
        request = StopRequest(StopReason.SHUTDOWN, message)
        for worker, claim in _running(workers):
            self.request_stop(worker, claim, request)
            self.stopping[Ticket.of(claim)].bring_forward(monotonic() + GRACE_PERIOD)

    def end_grace(self) -> None:
        """Let `enforce` kill, from now on, the worker of every job that was asked to stop."""
        for job in self.stopping.values():
            job.bring_forward(monotonic())

    def forget(self, claim: Claim) -> StopRequest | None:
        """Forget a job that has ended. Return the request to stop it, if there was one."""
        if not self.stopping:  # as a rule, and this runs for every job
            return None
        job = self.stopping.pop(Ticket.of(claim), None)
        return None if job is None else job.request

    def enforce(self, workers: Iterable[Worker]) -> list[Claim]:
        """Ask jobs over their time limit to stop, and kill workers whose grace period is over.

        Return the jobs whose workers have to be killed and cannot be, because they are threads.
        """
        now, unkillable = monotonic(), []
        for worker, claim in _running(workers):
            if now < self._deadline(worker, claim):
                continue
            job = self.stopping.get(Ticket.of(claim))
            if job is None:
                self.request_stop(worker, claim, self._over_limit(claim))
                continue
            job.kill_at = float("inf")
            if not worker.kill():
                unkillable.append(claim)
        return unkillable

    def next_deadline(self, workers: Iterable[Worker]) -> float:
        """Return the `time.monotonic()` when `enforce` has something to do; it may be infinite."""
        deadlines = (self._deadline(worker, claim) for worker, claim in _running(workers))
        return min(deadlines, default=float("inf"))

    def _deadline(self, worker: Worker, claim: Claim) -> float:
        job = self.stopping.get(Ticket.of(claim))
        return job.kill_at if job else worker.job_started + self._limit(claim)

    def _limit(self, claim: Claim) -> float:
        return self.default_limit if claim.timeout is None else claim.timeout

    def _over_limit(self, claim: Claim) -> StopRequest:
        setting = "PEASY_JOB_TIMEOUT" if claim.timeout is None else "timeout of @peasy.job"
        message = (
            f"The job took longer than its time limit of {self._limit(claim):g} s ({setting})."
        )
        return StopRequest(StopReason.TIME_LIMIT, message)


def _running(workers: Iterable[Worker]) -> list[tuple[Worker, Claim]]:
    """Return each busy worker with the job it is running: the first of those it was given."""
    return [(worker, next(iter(worker.pending.values()))) for worker in workers if worker.pending]
