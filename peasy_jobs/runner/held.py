"""The jobs that this runner has claimed, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peasy_jobs.runner import outcomes
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.runner.stopping import StopController
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.base import Worker, WorkerExit
from peasy_jobs.workers.protocol import Outcome, StopReason

if TYPE_CHECKING:
    from peasy_jobs.conf import Conf

START_MARK_AFTER = 0.01  # seconds: a job that has ended by then is never marked as started
CANCEL_CHECK_EVERY = 0.5  # seconds


@dataclass(slots=True)
class HeldJob:
    """A claimed job without an outcome."""

    claim: Claim
    started: bool  # its row is marked as started: a crash is counted if this runner dies


class HeldJobs:
    """All claimed jobs without an outcome, by primary key, and the outcomes that are not written.

    When the lease is revoked none of them belongs to this runner any more: it begins with a new
    object then.
    """

    def __init__(self, recorder: Recorder, clock: Clock, conf: Conf) -> None:
        self.recorder = recorder
        self.clock = clock
        self.crash_retries = conf.crash_retries
        self.stop_controller = StopController(conf.job_timeout)
        self.jobs: dict[int, HeldJob] = {}
        self.cancel_check_at = 0.0  # when to look for cancelled jobs (`time.monotonic()`)

    def __len__(self) -> int:
        return len(self.jobs)

    def is_idle(self) -> bool:
        """Return whether no job is held and every outcome is written."""
        return not self.jobs and not self.recorder.unwritten

    def known_claims(self) -> list[Claim]:
        """Return the claims of all held jobs and of all outcomes that are not written."""
        held = [job.claim for job in self.jobs.values()]
        return held + [update.claim for update in self.recorder.unwritten]

    # From the claim to the outcome

    def add(self, claims: Sequence[Claim], started: int) -> None:
        """Hold claimed jobs. The claim has marked the first `started` of them as started."""
        for number, claim in enumerate(claims):
            self.jobs[claim.pk] = HeldJob(claim, started=number < started)

    def record_outcome(self, outcome: Outcome) -> bool:
        """End a job that a worker has run. Return False if another runner has it by now."""
        held = self.jobs.get(outcome.pk)
        if held is None or held.claim.fencing_token != outcome.fencing_token:
            return False
        self.end(outcomes.finished(held.claim, outcome, self.clock))
        return True

    def record_exit(self, worker_exit: WorkerExit, *, stopping: bool) -> None:
        """End or give back the jobs of a worker that is gone.

        stopping: the runner has stopped the jobs that were still running.
        """
        for claim in worker_exit.not_started:
            self.give_back(claim)
        for claim in worker_exit.running:
            held = self.jobs.get(claim.pk)
            if held is None or held.claim is not claim:
                continue  # it was taken from this runner, and killed for that
            request = self.stop_controller.forget(claim)
            is_stopped = request is not None and request.reason is not StopReason.TIME_LIMIT
            if worker_exit.reason is None or stopping or is_stopped:
                self.give_back(claim)
            elif request:
                self.end(outcomes.timed_out(claim, worker_exit, request.message, self.clock))
            else:
                self.end(outcomes.crashed(claim, worker_exit, self.crash_retries, self.clock))

    def give_back(self, claim: Claim) -> None:
        """Put a job back into the queue. The attempt is not counted."""
        self.end(outcomes.given_back(claim))

    def end(self, update: JobUpdate) -> None:
        """Hand the outcome of a job to the recorder."""
        claim = update.claim
        held = self.jobs.get(claim.pk)
        if held is not None and held.claim is claim:  # not a later claim of the same job
            del self.jobs[claim.pk]
            self.stop_controller.forget(claim)
        self.recorder.record(update)

    # Jobs that were claimed ahead and have started

    def to_mark_started(self, workers: Iterable[Worker], now: float) -> list[Claim]:
        """Return the jobs that started before `now` although their rows do not say so."""
        return [claim for due, claim in self._unmarked(workers) if due <= now]

    def mark_started(self, claims: Iterable[Claim]) -> None:
        """Record that the rows of these jobs were marked as started."""
        for claim in claims:
            self.jobs[claim.pk].started = True

    def _unmarked(self, workers: Iterable[Worker]) -> list[tuple[float, Claim]]:
        """Return when to mark which job as started, of those that workers run."""
        running = [
            (worker.busy_since + START_MARK_AFTER, next(iter(worker.pending.values())))
            for worker in workers
            if worker.pending
        ]
        return [
            (due, claim)
            for due, claim in running
            if (held := self.jobs.get(claim.pk)) and held.claim is claim and not held.started
        ]

    def next_due(self, workers: Sequence[Worker], *, urgent: bool) -> float:
        """Return when there is something to do for held jobs that needs the database.

        urgent: a worker has nothing to do, so outcomes are written at once.
        """
        moments = [self.recorder.next_write_at(urgent=urgent)]
        moments += [due for due, _ in self._unmarked(workers)]
        if self.jobs:
            moments.append(self.cancel_check_at)
        return min(moments)
