"""What happened to claimed jobs and is not written yet. Kept until it is written or the job is no longer ours."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError

from peasy_jobs import queue
from peasy_jobs.claims import Claim, Ending
from peasy_jobs.execution import Failure, Report, described
from peasy_jobs.queue import COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("peasy_jobs")

WRITE_EVERY = 0.005  # seconds between two batches while every worker has enough to do
WRITE_AGAIN = 0.1  # seconds until an outcome that met a lock is tried again
WRITE_AT_ONCE = 1000  # outcomes
ROW_BY_ROW = 1.0  # seconds
PROGRESS_EVERY = 0.25

Trouble = (DatabaseError, InterfaceError, ValueError, TypeError, OverflowError)


class Recorder:
    """Writes outcomes in batches and the last progress of each job a few times a second."""

    def __init__(self, connection: BaseDatabaseWrapper, jobs: queue.JobQuerySet, clock: queue.Clock) -> None:
        self.connection, self.jobs, self.clock = connection, jobs, clock
        self.endings: list[Ending] = []
        self.progress: dict[int, Report] = {}
        self.write_at = self.progress_at = 0.0
        self.gave_back = False

    def end(self, ending: Ending) -> None:
        """A claimed job has ended, or goes back to the queue."""
        report = self.progress.pop(ending.claim.pk, None)
        if report is not None and report.claims == ending.claim.claims:
            ending.status_msg, ending.extra = report.status_msg, report.extra
        self.endings.append(ending)

    def report(self, report: Report) -> None:
        """A running job says how far it is."""
        old = self.progress.get(report.pk, report)
        message = old.status_msg if report.status_msg is None else report.status_msg
        extra = old.extra if report.extra is None else report.extra
        self.progress[report.pk] = Report(report.pk, report.claims, message, extra)

    def next_write(self, urgent: bool) -> float:
        """When there is something to write (`time.monotonic()`); at once if `urgent`, unless a lock was in the way."""
        moments = [self.progress_at] if self.progress else []
        if self.endings:
            moments.append(0.0 if urgent and self.write_at - monotonic() <= WRITE_EVERY else self.write_at)
        return min(moments, default=float("inf"))

    def write(self, runner_id: int, urgent: bool) -> bool:
        """Write what is due. Returns whether jobs went back to the queue.

        Raises what the database raises when nothing can be written; everything is kept then.
        """
        now, self.gave_back = monotonic(), False
        if self.endings and now >= self.next_write(urgent):
            self.write_at = now + WRITE_EVERY
            self._write_endings(runner_id, self.endings[:WRITE_AT_ONCE])
        if self.progress and now >= self.progress_at:
            self.progress_at = now + PROGRESS_EVERY
            for report in list(self.progress.values()):
                self._write_progress(runner_id, report)
                if monotonic() - now > ROW_BY_ROW:
                    break
        return self.gave_back

    def _write_endings(self, runner_id: int, batch: list[Ending]) -> None:
        try:
            lost = self.jobs.end(runner_id, batch, self.clock.at(monotonic()))
        except Trouble as error:
            if self._is_outage(error):
                raise
            started = monotonic()
            for ending in batch:
                self._write_ending(runner_id, ending)
                if monotonic() - started > ROW_BY_ROW:
                    break  # locks take their time, and the heartbeat must go on
        else:
            del self.endings[: len(batch)]
            self._written(batch, lost)

    def _write_ending(self, runner_id: int, ending: Ending) -> None:
        written = ending
        try:
            lost = self.jobs.end(runner_id, [ending], self.clock.at(monotonic()))
        except Trouble as error:
            if self._is_outage(error):
                raise
            if queue.is_locked(error):
                self.endings.remove(ending)
                self.endings.append(ending)  # the others come first, next time too
                self.write_at = monotonic() + WRITE_AGAIN
                return
            failure = described(Failure(f"What came of this job cannot be stored: {error}"))
            written = Ending(claim=ending.claim, status=FAILED, error=failure, started=ending.started)
            written.completed = ending.completed or self.clock.at(monotonic())
            lost = self.jobs.end(runner_id, [written], self.clock.at(monotonic()))
        self.endings.remove(ending)
        self._written([written], lost)

    def _write_progress(self, runner_id: int, report: Report) -> None:
        try:
            self.jobs.report(
                report.pk, report.status_msg, report.extra, runner=runner_id, claims=report.claims, status=ONGOING
            )
        except Trouble as error:
            if self._is_outage(error):
                raise
            if queue.is_locked(error):
                self.progress[report.pk] = self.progress.pop(report.pk)  # the others come first
                return
            logger.warning("The progress of job %d cannot be stored: %s", report.pk, error)
        del self.progress[report.pk]

    def _is_outage(self, error: Exception) -> bool:
        """Whether it is of no use to try another row."""
        if queue.is_locked(error):
            return self.connection.vendor == "sqlite"  # it locks the whole file
        return queue.is_outage(error)

    def _written(self, endings: list[Ending], lost: list[Claim]) -> None:
        self.gave_back = self.gave_back or any(ending.status in (ENQUEUED, SCHEDULED) for ending in endings)
        for ending in endings:
            title, pk = ending.claim.title, ending.claim.pk
            if ending.claim in lost:
                logger.info("%s (job %d) was cancelled, or taken from this runner, before it ended.", title, pk)
            elif ending.status == COMPLETED and ending.started and ending.completed:
                seconds = (ending.completed - ending.started).total_seconds()
                logger.info("%s (job %d) completed in %.3f s.", title, pk, seconds)
            elif ending.status == FAILED and ending.error:
                logger.error("%s (job %d) failed: %s", title, pk, ending.error["message"])
