"""All job status changes. No module outside `store` writes `status`.

Each verb is an UPDATE guarded by the status that it leaves and, once a job is claimed, by its
runner and its fencing token. The token is the column `claims`, which only grows: a runner that is
presumed dead cannot overwrite a later attempt. Verbs stand in the order of a job's life.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce, Greatest, Least
from django.db.utils import DataError

from peasy_jobs.statuses import CANCELLED, ENQUEUED, FAILED, ONGOING, SCHEDULED, sources
from peasy_jobs.store import claiming, wakeup, writing
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.values import Claim, Dropped, JobUpdate
from peasy_jobs.store.vendors import UNREADABLE, portions, refuse_too_large

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

STATUS_MSG_LIMIT = 255  # characters
MAX_INTEGER = 2**31 - 1  # the largest value of an integer column on every database
# Rows that one call of a maintenance verb changes at most, so that it never holds a lock for long.
MAINTENANCE_BATCH = 500


class JobQuerySet(models.QuerySet["PeasyJobQueue"]):
    """The jobs, and every verb that changes one."""

    def in_queues(self, queues: Sequence[str]) -> JobQuerySet:
        """Return the jobs of these queues, or of all queues if none is named."""
        return self.filter(queue_name__in=queues) if queues else self

    # Enqueue

    def enqueue(self, **columns: Any) -> PeasyJobQueue:
        """Insert a job: SCHEDULED with a `run_after`, ENQUEUED otherwise. Return it.

        The INSERT belongs to the caller's transaction: the job is created only if that commits.
        """
        job = self.create(status=SCHEDULED if columns.get("run_after") else ENQUEUED, **columns)
        wakeup.announce(self.db)
        return job

    def enqueue_many(
        self, calls: Iterable[tuple[bytes | None, bytes | None]], **columns: Any
    ) -> list[PeasyJobQueue]:
        """Insert jobs that differ only in their arguments. Return them, all or none created.

        calls: the stored arguments and keyword arguments of each job.
        """
        self._for_write = True  # from here on `self.db` is not a replica
        with transaction.atomic(using=self.db, savepoint=False):
            if not connections[self.db].features.can_return_rows_from_bulk_insert:
                # MySQL does not return the primary keys of several rows.
                return [
                    self.enqueue(args_data=args, kwargs_data=kwargs, **columns)
                    for args, kwargs in calls
                ]
            columns["status"] = SCHEDULED if columns.get("run_after") else ENQUEUED
            jobs = [
                self.model(args_data=args, kwargs_data=kwargs, **columns) for args, kwargs in calls
            ]
            sizes = [len(job.args_data or b"") + len(job.kwargs_data or b"") for job in jobs]
            for some in portions(jobs, sizes):
                self.bulk_create(some)
        wakeup.announce(self.db)
        return jobs

    # Claim and run

    def peek(self, queues: Sequence[str]) -> claiming.Waiting:
        """Return whether a job of these queues may run now, and when the next scheduled one is due.

        Takes no lock. Looks at all queues if none is named.
        """
        return claiming.peek(self, queues)

    def claim(self, request: ClaimRequest) -> list[Claim]:
        """Claim jobs for a runner: ENQUEUED becomes ONGOING. Return them, first to run first.

        Counts the claim and the attempt. `started` is set for the jobs that start at once and stays
        empty for those claimed ahead, so that a rescue knows that they had not started.
        """
        try:
            return claiming.claim(self, request)
        except DataError:
            if not self._fail_exhausted_counters(request.now):
                raise
            return []

    def _fail_exhausted_counters(self, now: datetime) -> int:
        """Fail the jobs that cannot be claimed because a counter has reached its largest value."""
        message = (
            f"The counter `claims` or `attempts` of this job has reached {MAX_INTEGER:,}, the"
            " largest value of its column. Enqueue the job again."
        )
        exhausted = self.filter(
            Q(claims__gte=MAX_INTEGER) | Q(attempts__gte=MAX_INTEGER), status=ENQUEUED
        )
        return exhausted.update(status=FAILED, completed=now, errors=[_entry(now, message)])

    def give_back_unknown(self, runner_id: int, known: Iterable[Claim]) -> int:
        """Give back jobs that a runner holds without knowing it: ONGOING becomes ENQUEUED.

        The answer to their claim was lost. The attempt is not counted. Returns how many jobs were
        given back.
        """
        held = {(claim.pk, claim.fencing_token) for claim in known}
        claimed = self.filter(runner=runner_id, status=ONGOING).values_list("pk", "claims")
        return sum(
            self.filter(pk=pk, runner=runner_id, status=ONGOING, claims=claims).update(
                status=ENQUEUED, runner=None, started=None, attempts=_one_attempt_less()
            )
            for pk, claims in claimed
            if (pk, claims) not in held and type(claims) is int
        )

    def begin(self, runner_id: int, claims: Iterable[Claim], now: datetime) -> None:
        """Set `started` of jobs that were claimed ahead, if this runner still has them."""
        pks = [claim.pk for claim in claims]
        self.filter(pk__in=pks, runner=runner_id, started=None).update(started=now)

    def report(self, pk: int, status_msg: str | None, extra: str | None, **guards: Any) -> None:
        """Write the progress of a job, unless it no longer meets the guards.

        extra: JSON text. None leaves the message, or `extra`, as it is.
        """
        columns: dict[str, Any] = {} if status_msg is None else {"status_msg": status_msg}
        if extra is not None:
            columns["extra"] = json.loads(extra)
        if columns:
            refuse_too_large(connections[self.db], [[status_msg, extra]])
            self.filter(pk=pk, **guards).update(**columns)

    # Finish

    def finish(self, runner_id: int, updates: Sequence[JobUpdate], now: datetime) -> list[Dropped]:
        """Write what has become of claimed jobs, in one transaction: ONGOING becomes any status.

        Guarded by runner and fencing token. Returns the updates that were dropped, because the job
        was cancelled or rescued from this runner. The cancelled ones are closed. An update may be
        written again if the answer to the COMMIT was lost.
        """
        return writing.finish(self, runner_id, updates, now)

    def stored_errors(self, pks: Sequence[int]) -> dict[int, list[dict[str, str]]]:
        """Return the failed attempts of jobs by primary key, the newest last."""
        return writing.stored_errors(self, pks)

    # Cancel, retry, remove

    def cancel(self, *pks: int) -> int:
        """Cancel jobs that have not ended. Return how many.

        A waiting job never runs. A running job is stopped by its runner, and is over only when the
        runner calls `close_cancelled`.
        """
        self._for_write = True
        now = as_field(database_now(connections[self.db]))
        # One statement, because a job could start between one for waiting and one for running jobs.
        completed = Case(
            When(runner=None, then=Value(now, models.DateTimeField())), default=F("completed")
        )
        alive = self.filter(pk__in=pks, status__in=sources("cancel"))
        return alive.update(status=CANCELLED, completed=completed)

    def cancelled_of(self, runner_id: int) -> list[tuple[int, int]]:
        """Return primary key and fencing token of the cancelled jobs that a runner still runs."""
        cancelled = self.filter(runner=runner_id, status=CANCELLED).values_list("pk", "claims")
        return [(pk, claims) for pk, claims in cancelled if type(claims) is int]

    def close_cancelled(self, runner_id: int, pk: int, fencing_token: int, now: datetime) -> bool:
        """Record that a cancelled job has stopped running: clear its runner.

        Guarded by runner and fencing token. Returns whether there was such a job.
        """
        return writing.close_cancelled(self, runner_id, pk, fencing_token, now)

    def retry(self, *pks: int) -> int:
        """Run FAILED or CANCELLED jobs again: they become ENQUEUED. Return how many.

        Attempts and crashes are counted from 0 again. The errors are kept.
        """
        self._for_write = True
        over = self.filter(pk__in=pks, status__in=sources("retry"), runner=None)
        count = over.update(
            status=ENQUEUED,
            status_msg="",
            extra=None,
            attempts=0,
            crashes=0,
            run_after=as_field(database_now(connections[self.db])),  # it waits from now on
            started=None,
            completed=None,
        )
        wakeup.announce(self.db)
        return count

    def remove(self, *pks: int) -> int:
        """Delete jobs, except running ones. Return how many."""
        jobs = self.filter(pk__in=pks, runner=None).exclude(status=ONGOING)
        return jobs.delete()[1].get(self.model._meta.label, 0)

    # Rescue

    def rescue(
        self, runner_id: int | None, reason: str, crash_retries: int, where: str = ""
    ) -> int:
        """Take the jobs of a runner that is gone: ONGOING becomes ENQUEUED or FAILED.

        A crash is counted for a job that had started. It fails with `reason` if it has used up its
        `crash_retries`. A job that had not started is given back, and nothing is counted. Cancelled
        jobs are closed. Returns how many jobs were given back or failed.

        runner_id: None for jobs of peasy-jobs 0.4, which name no runner.
        crash_retries: of jobs that have no budget of their own.
        """
        now = as_field(database_now(connections[self.db]))
        with transaction.atomic(using=self.db):
            ongoing = self.filter(runner=runner_id, status=ONGOING)
            rescued = self._fail_crashed(ongoing, crash_retries, _entry(now, reason, where), now)
            rescued += ongoing.filter(started__isnull=False).update(
                status=ENQUEUED, runner=None, started=None, crashes=F("crashes") + 1
            )
            rescued += ongoing.update(status=ENQUEUED, runner=None, attempts=_one_attempt_less())
            if runner_id is not None:
                self.filter(runner=runner_id, status=CANCELLED).update(runner=None, completed=now)
        return rescued

    def _fail_crashed(
        self, ongoing: JobQuerySet, crash_retries: int, entry: dict[str, str], now: datetime
    ) -> int:
        """Fail the jobs of a dead runner that have used up their retries. Return how many."""
        failed = 0
        spent = ongoing.filter(
            crashes__gte=Coalesce("crash_retries", crash_retries), started__isnull=False
        )
        for pk, claims, errors in spent.values_list("pk", "claims", "errors"):
            if type(claims) is not int:
                continue  # SQLite may hold a text: the job runs again, and a claim repairs it
            failed += ongoing.filter(pk=pk, claims=claims).update(
                status=FAILED,
                errors=writing.with_entry(writing.error_entries(errors), entry),
                completed=now,
                runner=None,
                run_after=None,
                crashes=Least(F("crashes"), MAX_INTEGER - 1) + 1,
            )
        return failed

    def runners_named(self) -> set[int]:
        """Return the ids of the runners that jobs name, whether such a runner exists or not."""
        named = self.filter(runner__isnull=False).order_by().values_list("runner", flat=True)
        # SQLite may hold something else than a number.
        return {runner_id for runner_id in named.distinct() if type(runner_id) is int}

    # Maintenance

    def prune(self, status: str, maximum: int | None, before: datetime) -> int:
        """Delete a batch of the oldest jobs of a finished status beyond `maximum`.

        Keeps those that finished after `before`, and all if `maximum` is None. Returns how many
        jobs were deleted or changed: call it again until it returns 0.
        """
        if maximum is None:
            return 0
        finished = self.filter(status=status, runner=None, completed__isnull=False).order_by(
            "-completed", "-pk"
        )
        newest_beyond = finished[maximum : maximum + 1]
        edge: tuple[datetime | None, int | None] | None
        try:
            edge = newest_beyond.values_list("completed", "pk").first()
        except UNREADABLE:
            edge = (None, None)
        if edge is None:
            return 0
        completed, pk = edge
        if completed is None:
            # Another program stored a value that is not a time. Count it as just old enough.
            unreadable = list(newest_beyond.values_list("pk", flat=True))
            return self.filter(pk__in=unreadable).update(completed=before)
        beyond = finished.filter(
            Q(completed__lt=completed) | Q(completed=completed, pk__lte=pk), completed__lte=before
        )
        pks = _first_pks(beyond.reverse())
        return self.filter(pk__in=pks, status=status, runner=None).delete()[0] if pks else 0

    def promote(self, now: datetime) -> int:
        """Promote a batch of the scheduled jobs that are due: SCHEDULED becomes ENQUEUED.

        Returns how many were promoted.
        """
        due = self.filter(status=SCHEDULED, run_after__lte=now).order_by("run_after")
        pks = _first_pks(due)
        return self.filter(pk__in=pks, status=SCHEDULED).update(status=ENQUEUED) if pks else 0

    def normalise_external_changes(self, now: datetime) -> int:
        """Complete a batch of the status changes that a site has made with a plain `update()`.

        Jobs that were cancelled while they waited get `now` as their `completed`. Jobs that were
        scheduled without a time become ENQUEUED. Returns how many jobs were changed.
        """
        changed = 0
        undated = self.filter(status=SCHEDULED, run_after=None)
        # Both are selected first: an UPDATE takes SQLite's write lock even if it finds nothing.
        if pks := _first_pks(undated.order_by("run_after")):
            changed += undated.filter(pk__in=pks).update(status=ENQUEUED)
        over = self.filter(status=CANCELLED, runner=None, completed=None)
        if pks := _first_pks(over):
            changed += over.filter(pk__in=pks).update(completed=now)
        return changed


def _first_pks(jobs: models.QuerySet[PeasyJobQueue]) -> list[int]:
    return list(jobs.values_list("pk", flat=True)[:MAINTENANCE_BATCH])


def _one_attempt_less() -> Greatest:
    """Return `attempts` less one, and at least 0.

    The inner Greatest is for MariaDB and MySQL, where 0 - 1 is an error in an unsigned column; the
    outer one for a text that SQLite may hold, which compares as greater than any number but counts
    as 0 in arithmetic.
    """
    return Greatest(Greatest("attempts", 1) - 1, 0)


def _entry(now: datetime, message: str, where: str = "") -> dict[str, str]:
    """Return an entry of `errors` for a failure outside of any job's code."""
    return {
        "at": now.isoformat(),
        "where": where,
        "exception": "",
        "message": message,
        "traceback": "",
    }
