"""Jobs that are to stop: asked first, killed when they take too long over it. Signals that stop the runner itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.base import Worker
from peasy_jobs.workers.execution import SHUTDOWN, TIMEOUT

logger = logging.getLogger("peasy_jobs")

GRACE = 1.0  # seconds that a job has to clean up before its worker is killed


@dataclass(slots=True)
class StopRequest:
    """A running job that was asked to stop."""

    why: str
    reason: str
    kill_at: float  # time.monotonic()


class StopController:
    """Which running jobs were asked to stop, and why."""

    def __init__(self, limit: float | None) -> None:
        self.limit = (
            float("inf") if limit is None else limit
        )  # seconds, of jobs that have none of their own
        self.asked: dict[tuple[int, int], StopRequest] = {}  # by primary key and claims

    def ask(self, worker: Worker, claim: Claim, why: str, reason: str) -> None:
        """Ask the job that this worker runs to stop, once."""
        if claim[:2] not in self.asked:
            logger.info("%s (job %d) is asked to stop: %s", claim.title, claim.pk, reason)
            self.asked[claim[:2]] = StopRequest(why, reason, monotonic() + GRACE)
            worker.ask(claim, why, reason)

    def ask_all(self, workers: Iterable[Worker], reason: str) -> None:
        """The runner stops: ask whatever still runs, and kill it after the grace, whatever it was asked before."""
        for worker, claim in _running(workers):
            self.ask(worker, claim, SHUTDOWN, reason)
            self.asked[claim[:2]].kill_at = min(self.asked[claim[:2]].kill_at, monotonic() + GRACE)

    def hurry(self) -> None:
        """The grace is over."""
        for asked in self.asked.values():
            asked.kill_at = min(asked.kill_at, monotonic())

    def forget(self, claim: Claim) -> StopRequest | None:
        """A job has ended. Returns how it was asked to, if it was."""
        return self.asked.pop(claim[:2], None)

    def enforce(self, workers: Iterable[Worker]) -> list[Claim]:
        """Ask what is over its time limit, kill what did not stop. Returns what should be killed and cannot be."""
        now, immortal = monotonic(), []
        for worker, claim in _running(workers):
            if now >= self._due(worker, claim):
                if asked := self.asked.get(claim[:2]):
                    asked.kill_at = float("inf")
                    if not worker.kill():
                        immortal.append(claim)
                else:
                    whose = (
                        "timeout of @peasy.job"
                        if claim.timeout is not None
                        else "PEASY_JOB_TIMEOUT"
                    )
                    reason = f"The job took longer than its time limit of {self._limit(claim):g} s ({whose})."
                    self.ask(worker, claim, TIMEOUT, reason)
        return immortal

    def next_moment(self, workers: Iterable[Worker]) -> float:
        """When `enforce` has something to do (`time.monotonic()`)."""
        return min(
            (self._due(worker, claim) for worker, claim in _running(workers)), default=float("inf")
        )

    def _due(self, worker: Worker, claim: Claim) -> float:
        asked = self.asked.get(claim[:2])
        return asked.kill_at if asked else worker.began + self._limit(claim)

    def _limit(self, claim: Claim) -> float:
        return self.limit if claim.timeout is None else claim.timeout


def _running(workers: Iterable[Worker]) -> list[tuple[Worker, Claim]]:
    return [(worker, next(iter(worker.pending.values()))) for worker in workers if worker.pending]
