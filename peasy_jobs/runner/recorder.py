"""Keep the outcomes of claimed jobs until they are written or another runner has the jobs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError

from peasy_jobs.exceptions import Failure
from peasy_jobs.runner import outcomes
from peasy_jobs.runner.counters import Counters
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Dropped, JobUpdate
from peasy_jobs.workers.errors import error_entry
from peasy_jobs.workers.protocol import Report

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("peasy_jobs")

WRITE_INTERVAL = 0.005  # seconds between two batches while every worker has enough to do
PROGRESS_INTERVAL = 0.25  # seconds between two writes of progress
BATCH_SIZE = 1000  # updates
# Seconds until an update that met a lock is tried again; longer if a try takes long:
# see `_write_locked`.
LOCKED_RETRY_DELAY = 0.1
# Seconds for rows one at a time: each may wait for a lock, and the heartbeat must not be delayed.
ROW_BY_ROW_SECONDS = 1.0

# What a write raises: errors of the database, and values that Django or the driver cannot convert.
WRITE_ERRORS = (DatabaseError, InterfaceError, ValueError, TypeError, OverflowError)


class Recorder:
    """Writes updates of jobs in batches, and the last progress of each job a few times a second."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        jobs: querysets.JobQuerySet,
        clock: Clock,
        counters: Counters | None = None,
    ) -> None:
        self.connection, self.jobs, self.clock = connection, jobs, clock
        self.counters = counters or Counters(jobs.db, clock)
        self.updates: list[JobUpdate] = []
        self.locked: list[JobUpdate] = []  # met a lock: no other update waits for them
        self.progress: dict[int, Report] = {}  # the last one of each job, by primary key
        # When each may be written, by `time.monotonic()`.
        self.write_at = self.locked_at = self.progress_at = 0.0
        self.gave_back = False  # whether the current `write` has put jobs back into the queue

    @property
    def unwritten(self) -> list[JobUpdate]:
        """Every update that is not written yet."""
        return [*self.updates, *self.locked]

    def record(self, update: JobUpdate) -> None:
        """Keep what has become of a claimed job, with its last progress, until it is written."""
        report = self.progress.pop(update.claim.pk, None)
        if report is not None and report.fencing_token == update.claim.fencing_token:
            update = update._replace(status_msg=report.status_msg, extra=report.extra)
        self.updates.append(update)

    def record_progress(self, report: Report) -> None:
        """Keep the progress of a running job. What it does not mention stays as last reported."""
        old = self.progress.get(report.pk, report)
        message = old.status_msg if report.status_msg is None else report.status_msg
        extra = old.extra if report.extra is None else report.extra
        self.progress[report.pk] = Report(report.pk, report.fencing_token, message, extra)

    def next_write_at(self, urgent: bool) -> float:
        """Return when to call `write`, by `time.monotonic()`: for updates at once if `urgent`."""
        moments = [self.progress_at] if self.progress else []
        if self.locked:
            moments.append(self.locked_at)
        if self.updates:
            moments.append(0.0 if urgent else self.write_at)
        return min(moments, default=float("inf"))

    def write(self, runner_id: int, urgent: bool) -> bool:
        """Write what is due. Return whether jobs went back into the queue.

        Raises what the database raises when it cannot be used. Nothing is lost then.
        """
        now = monotonic()
        self.gave_back = False
        if self.updates and (urgent or now >= self.write_at):
            self.write_at = now + WRITE_INTERVAL
            self._write_batch(runner_id)
        if self.locked and now >= self.locked_at:
            self._write_locked(runner_id)
        if self.progress and now >= self.progress_at:
            self.progress_at = now + PROGRESS_INTERVAL
            self._write_progress(runner_id)
        return self.gave_back

    def _write_batch(self, runner_id: int) -> None:
        """Write the oldest updates in one transaction, or one by one if that fails."""
        batch = self._decided(self.updates[:BATCH_SIZE])
        self.updates[: len(batch)] = batch
        try:
            dropped = self.jobs.finish(runner_id, batch, self._now())
        except WRITE_ERRORS as error:
            if self._is_outage(error):
                raise
            self._write_one_by_one(runner_id, batch)
        else:
            del self.updates[: len(batch)]
            self._after_write(batch, dropped)

    def _decided(self, batch: list[JobUpdate]) -> list[JobUpdate]:
        """Return the batch with decisions on jobs whose function is missing, which stay decided.

        A batch is written again if the answer to its COMMIT was lost: by then its own errors are
        stored and must not count. Nobody else adds errors, or the fencing token is outdated.
        """
        missing = [update.claim.pk for update in batch if update.function_missing]
        if not missing:
            return batch
        stored = self.jobs.stored_errors(missing)
        retry_at = self.clock.at(monotonic() + outcomes.FUNCTION_MISSING_DELAY)
        return [
            outcomes.wait_for_function(update, stored.get(update.claim.pk, []), retry_at)
            for update in batch
        ]

    def _write_one_by_one(self, runner_id: int, batch: list[JobUpdate]) -> None:
        started = monotonic()
        for update in batch:
            if not self._write_one(runner_id, update):
                self.locked.append(update)
                self.locked_at = max(self.locked_at, monotonic() + LOCKED_RETRY_DELAY)
            self.updates.remove(update)
            if monotonic() - started > ROW_BY_ROW_SECONDS:
                break

    def _write_locked(self, runner_id: int) -> None:
        """Try updates that met a lock again, for at most about a fifth of the time."""
        started = monotonic()
        for update in list(self.locked):
            if not self._write_one(runner_id, update):
                self.locked.append(self.locked.pop(0))  # the others come first next time
                break
            self.locked.remove(update)
            if monotonic() - started > ROW_BY_ROW_SECONDS:
                break
        self.locked_at = monotonic() + max(LOCKED_RETRY_DELAY, 4 * (monotonic() - started))

    def _write_one(self, runner_id: int, update: JobUpdate) -> bool:
        """Write one update. Return False if another transaction has locked its row.

        What the database refuses becomes a failure of this job that says so.
        """
        try:
            dropped = self.jobs.finish(runner_id, [update], self._now())
        except WRITE_ERRORS as error:
            if self._is_outage(error):
                raise
            if vendors.is_locked(error):
                return False
            failure = Failure(f"The outcome of this job could not be stored: {error}")
            update = JobUpdate(
                claim=update.claim,
                status=FAILED,
                error=error_entry(failure),
                started=update.started,
                completed=update.completed or self._now(),
            )
            dropped = self.jobs.finish(runner_id, [update], self._now())
        self._after_write([update], dropped)
        return True

    def _write_progress(self, runner_id: int) -> None:
        started = monotonic()
        for report in list(self.progress.values()):
            self._write_report(runner_id, report)
            if monotonic() - started > ROW_BY_ROW_SECONDS:
                break

    def _write_report(self, runner_id: int, report: Report) -> None:
        try:
            self.jobs.report(
                report.pk,
                report.status_msg,
                report.extra,
                runner=runner_id,
                claims=report.fencing_token,
                status=ONGOING,
            )
        except WRITE_ERRORS as error:
            if self._is_outage(error):
                raise
            if vendors.is_locked(error):
                self.progress[report.pk] = self.progress.pop(report.pk)  # the others come first
                return
            logger.warning("The progress of job %d could not be stored: %s", report.pk, error)
        del self.progress[report.pk]

    def _is_outage(self, error: Exception) -> bool:
        """Return whether trying another row would be useless."""
        if vendors.is_locked(error):
            return self.connection.vendor == "sqlite"  # it locks the whole file
        return vendors.is_outage(error)

    def _after_write(self, updates: Sequence[JobUpdate], dropped: Sequence[Dropped]) -> None:
        """Count and log what was written and what was dropped."""
        self.gave_back |= any(update.status in (ENQUEUED, SCHEDULED) for update in updates)
        written = updates
        if dropped:
            claims = {each.claim for each in dropped}
            written = [update for update in updates if update.claim not in claims]
        self.counters.count(written)
        self._count_cancelled(updates, dropped)
        for update in written:
            self._log(update)
        for each in dropped:
            logger.info(
                "%s (job %d) ended, but it had been cancelled or taken from this runner.",
                each.claim.title,
                each.claim.pk,
            )

    def _count_cancelled(self, updates: Sequence[JobUpdate], dropped: Sequence[Dropped]) -> None:
        """Count the jobs that were cancelled while they ran, whatever their own outcome was."""
        cancelled = {each.claim for each in dropped if each.was_cancelled}
        if cancelled:
            self.counters.count(
                [
                    update._replace(status=CANCELLED)
                    for update in updates
                    if update.claim in cancelled
                ]
            )

    def _log(self, update: JobUpdate) -> None:
        title, pk = update.claim.title, update.claim.pk
        if update.status == COMPLETED and update.started and update.completed:
            seconds = (update.completed - update.started).total_seconds()
            logger.info("%s (job %d) completed in %.3f s.", title, pk, seconds)
        elif update.status == FAILED and update.error:
            logger.error("%s (job %d) failed: %s", title, pk, update.error["message"])
        elif update.status == SCHEDULED:
            reason = update.error["message"] if update.error else "It asked to run again later."
            wait = (update.run_after - self._now()).total_seconds() if update.run_after else 0
            logger.warning("%s (job %d) runs again in %.0f s: %s", title, pk, max(0, wait), reason)
        elif update.status == CANCELLED:
            logger.info("%s (job %d) cancelled itself.", title, pk)

    def _now(self) -> datetime:
        return self.clock.at(monotonic())
