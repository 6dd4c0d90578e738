"""What happened to claimed jobs and is not written yet. Kept until it is written or the job is no longer ours."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError

from peasy_jobs.exceptions import Failure
from peasy_jobs.runner.counters import Tally
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.errors import error_entry
from peasy_jobs.workers.protocol import Report

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("peasy_jobs")

WRITE_EVERY = 0.005  # seconds between two batches while every worker has enough to do
WRITE_AGAIN = 0.1  # seconds until an outcome that met a lock is tried again, and four times as long as that took
WRITE_AT_ONCE = 1000  # outcomes
ROW_BY_ROW = 1.0  # seconds
PROGRESS_EVERY = 0.25

Trouble = (DatabaseError, InterfaceError, ValueError, TypeError, OverflowError)


class Recorder:
    """Writes outcomes in batches and the last progress of each job a few times a second."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        jobs: querysets.JobQuerySet,
        clock: Clock,
        tally: Tally | None = None,
    ) -> None:
        self.connection, self.jobs, self.clock, self.tally = (
            connection,
            jobs,
            clock,
            tally or Tally(jobs.db, clock),
        )
        self.endings: list[JobUpdate] = []
        self.locked: list[JobUpdate] = []  # those that met a lock: no other outcome waits for them
        self.progress: dict[int, Report] = {}
        self.write_at = self.locked_at = self.progress_at = 0.0
        self.gave_back = False

    @property
    def unwritten(self) -> list[JobUpdate]:
        """Every outcome that is not written yet."""
        return [*self.endings, *self.locked]

    def end(self, ending: JobUpdate) -> None:
        """A claimed job has ended, or goes back to the queue."""
        report = self.progress.pop(ending.claim.pk, None)
        if report is not None and report.fencing_token == ending.claim.fencing_token:
            ending.status_msg, ending.extra = report.status_msg, report.extra
        self.endings.append(ending)

    def report(self, report: Report) -> None:
        """A running job says how far it is."""
        old = self.progress.get(report.pk, report)
        message = old.status_msg if report.status_msg is None else report.status_msg
        extra = old.extra if report.extra is None else report.extra
        self.progress[report.pk] = Report(report.pk, report.fencing_token, message, extra)

    def next_write(self, urgent: bool) -> float:
        """When there is something to write (`time.monotonic()`); outcomes at once if `urgent`."""
        moments = [self.progress_at] if self.progress else []
        if self.locked:
            moments.append(self.locked_at)
        if self.endings:
            moments.append(0.0 if urgent else self.write_at)
        return min(moments, default=float("inf"))

    def write(self, runner_id: int, urgent: bool) -> bool:
        """Write what is due. Returns whether jobs went back to the queue.

        Raises what the database raises when nothing can be written; everything is kept then.
        """
        now, self.gave_back = monotonic(), False
        if self.endings and (urgent or now >= self.write_at):
            self.write_at = now + WRITE_EVERY
            self._write_endings(runner_id, self.endings[:WRITE_AT_ONCE])
        if self.locked and now >= self.locked_at:
            self._write_locked(runner_id)
        if self.progress and now >= self.progress_at:
            self.progress_at = now + PROGRESS_EVERY
            for report in list(self.progress.values()):
                self._write_progress(runner_id, report)
                if monotonic() - now > ROW_BY_ROW:
                    break
        return self.gave_back

    def _write_endings(self, runner_id: int, batch: list[JobUpdate]) -> None:
        try:
            lost = self.jobs.end(runner_id, batch, self.clock.at(monotonic()))
        except Trouble as error:
            if self._is_outage(error):
                raise
            started = monotonic()
            for ending in batch:
                if not self._write_ending(runner_id, ending):
                    self.locked.append(ending)
                    self.locked_at = max(self.locked_at, monotonic() + WRITE_AGAIN)
                self.endings.remove(ending)
                if monotonic() - started > ROW_BY_ROW:
                    break  # locks take their time, and the heartbeat must go on
        else:
            del self.endings[: len(batch)]
            self._written(batch, lost)

    def _write_locked(self, runner_id: int) -> None:
        started = monotonic()
        for ending in list(self.locked):
            if not self._write_ending(runner_id, ending):
                self.locked.append(self.locked.pop(0))  # the others come first
                break
            self.locked.remove(ending)
            if monotonic() - started > ROW_BY_ROW:
                break
        self.locked_at = monotonic() + max(WRITE_AGAIN, 4 * (monotonic() - started))

    def _write_ending(self, runner_id: int, ending: JobUpdate) -> bool:
        """Write one outcome. False when somebody else holds a lock on its row."""
        written = ending
        try:
            lost = self.jobs.end(runner_id, [ending], self.clock.at(monotonic()))
        except Trouble as error:
            if self._is_outage(error):
                raise
            if vendors.is_locked(error):
                return False
            failure = error_entry(Failure(f"What came of this job cannot be stored: {error}"))
            written = JobUpdate(
                claim=ending.claim, status=FAILED, error=failure, started=ending.started
            )
            written.completed = ending.completed or self.clock.at(monotonic())
            lost = self.jobs.end(runner_id, [written], self.clock.at(monotonic()))
        self._written([written], lost)
        return True

    def _write_progress(self, runner_id: int, report: Report) -> None:
        try:
            self.jobs.report(
                report.pk,
                report.status_msg,
                report.extra,
                runner=runner_id,
                claims=report.fencing_token,
                status=ONGOING,
            )
        except Trouble as error:
            if self._is_outage(error):
                raise
            if vendors.is_locked(error):
                self.progress[report.pk] = self.progress.pop(report.pk)  # the others come first
                return
            logger.warning("The progress of job %d cannot be stored: %s", report.pk, error)
        del self.progress[report.pk]

    def _is_outage(self, error: Exception) -> bool:
        """Whether it is of no use to try another row."""
        if vendors.is_locked(error):
            return self.connection.vendor == "sqlite"  # it locks the whole file
        return vendors.is_outage(error)

    def _written(self, endings: list[JobUpdate], lost: list[Claim]) -> None:
        self.gave_back = self.gave_back or any(
            ending.status in (ENQUEUED, SCHEDULED) for ending in endings
        )
        self.tally.count(
            [ending for ending in endings if ending.cancelled or ending.claim not in lost]
        )
        for ending in endings:
            title, pk = ending.claim.title, ending.claim.pk
            if ending.claim in lost:
                logger.info(
                    "%s (job %d) ended, but it had been cancelled or taken from this runner.",
                    title,
                    pk,
                )
            elif ending.status == COMPLETED and ending.started and ending.completed:
                seconds = (ending.completed - ending.started).total_seconds()
                logger.info("%s (job %d) completed in %.3f s.", title, pk, seconds)
            elif ending.status == FAILED and ending.error:
                logger.error("%s (job %d) failed: %s", title, pk, ending.error["message"])
            elif ending.status == SCHEDULED:
                why = ending.error["message"] if ending.error else "It asked to come back."
                seconds = (
                    (ending.run_after - self.clock.at(monotonic())).total_seconds()
                    if ending.run_after
                    else 0
                )
                logger.warning(
                    "%s (job %d) runs again in %.0f s: %s", title, pk, max(0, seconds), why
                )
            elif ending.status == CANCELLED:
                logger.info("%s (job %d) cancelled itself.", title, pk)
