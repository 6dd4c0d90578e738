"""Every change of a job's status. Nothing else writes one.

Each change is an UPDATE guarded by the status it leaves; once a job is claimed also by its runner and by `claims`,
which only grows: a runner that was taken for dead cannot write over the job's new life.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce, Greatest, Least
from django.db.utils import DataError

from peasy_jobs.statuses import CANCELLED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import claiming, wakeup
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.store.vendors import UNREADABLE, portions, refuse_too_large, table_sql, update_each

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

STATUS_MSG_LIMIT = 255
ERRORS_KEPT = 25  # failed attempts of a job, the newest
MAX_INTEGER = 2**31 - 1  # the largest value of an integer column on every database
# Of what `_ending_row` returns, on PostgreSQL.
TYPES = "text bytea text jsonb jsonb timestamptz timestamptz text timestamptz int int bigint text bigint int".split()
BATCH = 500  # rows that one round of housekeeping touches, so that it never holds a lock for long


def _entries(errors: Any) -> list[dict[str, str]]:
    """The failed attempts that a row keeps, whatever somebody else has written there."""
    return (
        [entry for entry in errors if isinstance(entry, dict)] if isinstance(errors, list) else []
    )


class JobQuerySet(models.QuerySet["PeasyJobQueue"]):
    """The jobs, and every verb that changes one."""

    def enqueue(self, **columns: Any) -> PeasyJobQueue:
        """One INSERT in the caller's own transaction: the job is there when and if that transaction commits."""
        job = self.create(status=SCHEDULED if columns.get("run_after") else ENQUEUED, **columns)
        wakeup.announce(self.db)
        return job

    def enqueue_many(
        self, calls: Iterable[tuple[bytes | None, bytes | None]], **columns: Any
    ) -> list[PeasyJobQueue]:
        """Jobs that differ in their arguments only: all of them are there when the caller's transaction commits."""
        self._for_write = True  # `self.db` is no replica from here on
        with transaction.atomic(using=self.db, savepoint=False):
            if not connections[
                self.db
            ].features.can_return_rows_from_bulk_insert:  # MySQL would not tell their keys
                return [
                    self.enqueue(args_data=args, kwargs_data=kwargs, **columns)
                    for args, kwargs in calls
                ]
            columns["status"] = SCHEDULED if columns.get("run_after") else ENQUEUED
            jobs = [
                self.model(args_data=args, kwargs_data=kwargs, **columns) for args, kwargs in calls
            ]
            for some in portions(
                jobs, [len(job.args_data or b"") + len(job.kwargs_data or b"") for job in jobs]
            ):
                self.bulk_create(some)
        wakeup.announce(self.db)
        return jobs

    def in_queues(self, queues: Sequence[str]) -> JobQuerySet:
        """The jobs of these queues; of all of them when none is named."""
        return self.filter(queue_name__in=queues) if queues else self

    def peek(self, queues: Sequence[str]) -> claiming.Waiting:
        """Return whether a job of these queues may run now, and when the next scheduled one is due.

        Take no lock. Without queues: of all of them.
        """
        return claiming.peek(self, queues)

    def claim(self, request: ClaimRequest) -> list[Claim]:
        """Claim waiting jobs for a runner: ENQUEUED becomes ONGOING. Return them, first to run first.

        Counts the claim and the attempt. `started` is set for the jobs that start at once and stays
        empty for those claimed ahead, which tells whoever rescues them that they had not begun.
        """
        try:
            return claiming.claim(self, request)
        except DataError:
            if not self._fail_exhausted_counters(request.now):
                raise
            return []

    def _fail_exhausted_counters(self, now: datetime) -> int:
        """Fail the waiting jobs that cannot be claimed, because a counter is at its largest value."""
        entry = {"at": now.isoformat(), "where": "", "exception": "", "traceback": ""}
        entry["message"] = (
            f"The counter `claims` or `attempts` of this job has reached {MAX_INTEGER:,}, the largest"
            " value of its column. Enqueue the job again."
        )
        exhausted = self.filter(
            Q(claims__gte=MAX_INTEGER) | Q(attempts__gte=MAX_INTEGER), status=ENQUEUED
        )
        return exhausted.update(status=FAILED, completed=now, errors=[entry])

    def give_back_unknown(self, runner_id: int, known: Iterable[Claim]) -> int:
        """Give back what a runner holds without knowing it: the answer to a claim was lost on the way."""
        held = {(claim.pk, claim.fencing_token) for claim in known}
        claimed = self.filter(runner=runner_id, status=ONGOING).values_list("pk", "claims")
        return sum(
            self.filter(pk=pk, runner=runner_id, status=ONGOING, claims=claims).update(
                status=ENQUEUED,
                runner=None,
                started=None,
                attempts=Greatest(Greatest("attempts", 1) - 1, 0),
            )
            for pk, claims in claimed
            if (pk, claims) not in held and type(claims) is int
        )

    def begin(self, runner_id: int, claims: Iterable[Claim], now: datetime) -> None:
        """Jobs that were claimed ahead have started."""
        self.filter(pk__in=[claim.pk for claim in claims], runner=runner_id, started=None).update(
            started=now
        )

    def end(self, runner_id: int, endings: Sequence[JobUpdate], now: datetime) -> list[Claim]:
        """Write what became of claimed jobs, in one transaction. Returns the claims that were not ours any more.

        Such an outcome is dropped: the job was cancelled, or rescued from this runner, meanwhile.
        """
        if not endings:
            return []
        with transaction.atomic(using=self.db):
            errors = self._errors_of([ending.claim.pk for ending in endings if ending.error])
            rows = [
                self._ending_row(runner_id, ending, errors.get(ending.claim.pk, []), now)
                for ending in endings
            ]
            refuse_too_large(connections[self.db], rows)
            if self._write_endings(rows) == len(endings):
                return []
            return self._not_landed(runner_id, endings, now)

    def _write_endings(self, rows: list[list[Any]]) -> int:
        # One statement for any mix of endings: the ORM would send a query for each. WHERE: see
        # `vendors.configure_session`.
        table = table_sql(connections[self.db], self.model._meta.db_table)
        update = (
            f"UPDATE {table} AS job{{join}} SET status = {{}}, result_data = {{}},"
            " status_msg = COALESCE({}, job.status_msg), extra = COALESCE({}, job.extra),"
            " errors = COALESCE({}, job.errors), started = {}, completed = {},"
            " run_after = CASE WHEN {} = 'Q' THEN job.run_after ELSE {} END,"
            " attempts = job.attempts + {}, crashes = job.crashes + {}, runner_id = NULL{source}"
            " WHERE id = {} AND COALESCE(job.status, '') = {} AND COALESCE(job.runner_id, 0) = {} AND job.claims = {}"
        )
        return update_each(connections[self.db], update, TYPES, rows)

    def _ending_row(
        self, runner_id: int, ending: JobUpdate, errors: list[dict[str, str]], now: datetime
    ) -> list[Any]:
        entries = None
        if ending.error:
            kind = ending.error["exception"]
            if ending.patience > sum(entry.get("exception") == kind for entry in errors):
                ending.status, ending.completed, ending.attempts = SCHEDULED, None, -1
            elif ending.status == FAILED:
                ending.run_after = None
            entries = json.dumps([*errors, {"at": now.isoformat(), **ending.error}][-ERRORS_KEPT:])
        return [
            *(ending.status, ending.result, ending.status_msg, ending.extra, entries),
            *(ending.started, ending.completed),
            *(ending.status, ending.run_after, ending.attempts, ending.crashes),
            *(ending.claim.pk, ONGOING, runner_id, ending.claim.fencing_token),
        ]

    def _errors_of(self, pks: list[int]) -> dict[int, list[dict[str, str]]]:
        found = self.filter(pk__in=pks).values_list("pk", "errors") if pks else []
        return {pk: _entries(errors) for pk, errors in found}

    def _not_landed(
        self, runner_id: int, endings: Sequence[JobUpdate], now: datetime
    ) -> list[Claim]:
        # executemany gives only a total. What landed, now or before a COMMIT whose answer was lost, has our claim.
        rows = self.filter(pk__in=[ending.claim.pk for ending in endings])
        landed: set[tuple[Any, ...]] = set(rows.values_list("pk", "claims", "status", "runner"))
        lost = [
            ending for ending in endings if (*ending.claim[:2], ending.status, None) not in landed
        ]
        for ending in lost:
            ending.cancelled = self.close_cancelled(runner_id, *ending.claim[:2], now)
        return [ending.claim for ending in lost]

    def close_cancelled(self, runner_id: int, pk: int, claims: int, now: datetime) -> bool:
        """A job that was cancelled while it ran has stopped running. False: there is no such job."""
        mine = self.filter(pk=pk, status=CANCELLED, runner=runner_id, claims=claims)
        return bool(mine.update(runner=None, completed=now, run_after=None))

    def report(self, pk: int, status_msg: str | None, extra: str | None, **guards: Any) -> None:
        """Write a job's progress: a message, `extra` as JSON text, or both."""
        columns: dict[str, Any] = {} if status_msg is None else {"status_msg": status_msg}
        if extra is not None:
            columns["extra"] = json.loads(extra)
        if columns:
            refuse_too_large(connections[self.db], [[status_msg, extra]])
            self.filter(pk=pk, **guards).update(**columns)

    def cancel(self, *pks: int) -> int:
        """Cancel jobs. One that waits never runs; one that runs is stopped by its runner. Returns how many."""
        self._for_write = True
        now = as_field(database_now(connections[self.db]))
        # One statement: between two, one for those that wait and one for those that run, a job could change sides.
        completed = Case(
            When(runner=None, then=Value(now, models.DateTimeField())), default=F("completed")
        )
        alive = self.filter(pk__in=pks, status__in=(ENQUEUED, SCHEDULED, ONGOING))
        return alive.update(status=CANCELLED, completed=completed)

    def retry(self, *pks: int) -> int:
        """Run jobs that have failed or were cancelled again, with new budgets. Their errors are kept. How many."""
        self._for_write = True
        over = self.filter(pk__in=pks, status__in=(FAILED, CANCELLED), runner=None)
        count = over.update(
            status=ENQUEUED,
            status_msg="",
            extra=None,
            attempts=0,
            crashes=0,
            run_after=as_field(database_now(connections[self.db])),  # it waits from here on
            started=None,
            completed=None,
        )
        wakeup.announce(self.db)
        return count

    def remove(self, *pks: int) -> int:
        """Delete jobs, none that is running. Returns how many."""
        jobs = self.filter(pk__in=pks, runner=None).exclude(status=ONGOING)
        return jobs.delete()[1].get(self.model._meta.label, 0)

    def cancelled_of(self, runner_id: int) -> list[tuple[int, int]]:
        """Primary key and claims of the jobs that this runner runs and that were cancelled."""
        cancelled = self.filter(runner=runner_id, status=CANCELLED).values_list("pk", "claims")
        return [(pk, claims) for pk, claims in cancelled if type(claims) is int]

    def promote(self, now: datetime) -> int:
        """Scheduled jobs that are due may run now. Returns how many there were in this batch."""
        due = self.filter(status=SCHEDULED, run_after__lte=now).order_by("run_after")
        pks = list(due.values_list("pk", flat=True)[:BATCH])
        return self.filter(pk__in=pks, status=SCHEDULED).update(status=ENQUEUED) if pks else 0

    def rescue(self, dead: int | None, reason: str, crash_retries: int, where: str = "") -> int:
        """Give back the jobs of a runner that is gone; `None` stands for those of the published package.

        A job that had started is charged with a crash, and FAILED with `reason` if it had its `crash_retries`.
        """
        now = as_field(database_now(connections[self.db]))
        with transaction.atomic(using=self.db):
            ongoing = self.filter(runner=dead, status=ONGOING)
            entry = {
                "at": now.isoformat(),
                "where": where,
                "exception": "",
                "message": reason,
                "traceback": "",
            }
            spent = ongoing.filter(
                crashes__gte=Coalesce("crash_retries", crash_retries), started__isnull=False
            )
            rescued = 0
            for pk, claims, errors in spent.values_list("pk", "claims", "errors"):
                if (
                    type(claims) is not int
                ):  # what is no number cannot be compared: it runs again, and is one then
                    continue
                kept = [*_entries(errors), entry][-ERRORS_KEPT:]
                rescued += ongoing.filter(pk=pk, claims=claims).update(
                    status=FAILED,
                    errors=kept,
                    completed=now,
                    runner=None,
                    run_after=None,
                    crashes=Least(F("crashes"), MAX_INTEGER - 1) + 1,
                )
            rescued += ongoing.filter(started__isnull=False).update(
                status=ENQUEUED, runner=None, started=None, crashes=F("crashes") + 1
            )
            rescued += ongoing.update(
                status=ENQUEUED, runner=None, attempts=Greatest(Greatest("attempts", 1) - 1, 0)
            )
            if dead is not None:
                self.filter(runner=dead, status=CANCELLED).update(runner=None, completed=now)
        return rescued

    def runners_named(self) -> set[int]:
        """The runners that jobs name, whether there is such a runner or not."""
        named = (
            self.filter(runner__isnull=False).order_by().values_list("runner", flat=True).distinct()
        )
        return {
            runner_id for runner_id in named if type(runner_id) is int
        }  # SQLite takes anything else as well

    def prune(self, status: str, maximum: int | None, before: datetime) -> int:
        """Delete the oldest finished jobs beyond `maximum`, none that finished after `before`. Returns how many."""
        finished = self.filter(status=status, runner=None, completed__isnull=False).order_by(
            "-completed", "-pk"
        )
        if maximum is None:
            return 0
        beyond = finished[maximum : maximum + 1]
        edge: tuple[datetime | None, int | None] | None = None, None
        with suppress(*UNREADABLE):
            edge = beyond.values_list("completed", "pk").first()
        if edge is None:
            return 0
        if edge[0] is None:  # somebody has written what is no time: it counts as just old enough
            return self.filter(pk__in=list(beyond.values_list("pk", flat=True))).update(
                completed=before
            )
        older = finished.filter(
            Q(completed__lt=edge[0]) | Q(completed=edge[0], pk__lte=edge[1]), completed__lte=before
        )
        pks = list(older.reverse().values_list("pk", flat=True)[:BATCH])
        return self.filter(pk__in=pks, status=status, runner=None).delete()[0] if pks else 0

    def normalise_external_changes(self, now: datetime) -> int:
        """Finish what a site has begun by writing a status itself. Returns how many there were in this batch.

        Jobs that were cancelled while they waited are over: their grace counts from here. Jobs that were scheduled
        without a time may run now.
        """
        changed = 0
        undated = self.filter(status=SCHEDULED, run_after=None)
        if pks := list(undated.order_by("run_after").values_list("pk", flat=True)[:BATCH]):
            changed += undated.filter(pk__in=pks).update(status=ENQUEUED)
        over = self.filter(status=CANCELLED, runner=None, completed=None)
        if pks := list(
            over.values_list("pk", flat=True)[:BATCH]
        ):  # looked at first: an UPDATE takes the write lock
            changed += over.filter(pk__in=pks).update(completed=now)
        return changed
