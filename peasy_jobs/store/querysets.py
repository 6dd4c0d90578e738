"""Every change of a job's status. Nothing else writes one.

Each change is an UPDATE guarded by the status it leaves; once a job is claimed also by its runner and by `claims`,
which only grows: a runner that was taken for dead cannot write over the job's new life.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from django.db import connections, models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce, Greatest, Least
from django.db.utils import DataError

from peasy_jobs.statuses import CANCELLED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import wakeup
from peasy_jobs.store.clock import as_field, as_read, database_now
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.store.vendors import bare_cursor, portions, refuse_too_large, update_each

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

STATUS_MSG_LIMIT = 255
ERRORS_KEPT = 25  # failed attempts of a job, the newest
MOST = 2**31 - 1  # that an integer column holds
UNREADABLE = (
    DataError,
    ValueError,
    TypeError,
    AttributeError,
)  # a time that Python or Django cannot hold
# Of what `_ending_row` returns, on PostgreSQL.
TYPES = "text bytea text jsonb jsonb timestamptz timestamptz text timestamptz int int bigint text bigint int".split()
WEIGHT = "COALESCE(LENGTH(args_data), 0) + COALESCE(LENGTH(kwargs_data), 0)"  # reads no more than the head of a row
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

    def peek(self, queues: Sequence[str]) -> tuple[bool, datetime | None]:
        """Whether a job may run now, and when the next scheduled one is due. Takes no lock."""
        # Plain SQL: where nothing wakes an idle runner, it asks this ten times a second.
        within = f" AND queue_name IN ({', '.join(['%s'] * len(queues))})" if queues else ""
        # In order, or PostgreSQL reads the whole table when by its statistics, which are of a while ago, many wait.
        table = self._table("peasy_waiting_in_queue" if queues else "peasy_waiting")
        probe = f"(SELECT id FROM {table} WHERE status = 'Q'%s ORDER BY priority DESC, id LIMIT 1) IS NOT NULL"
        waiting = " OR ".join(
            probe % each for each in [" AND queue_name = %s"] * len(queues) or [" AND claims >= 0"]
        )
        scheduled = (
            f"(SELECT MIN(run_after) FROM {self._table('peasy_due')} WHERE status = 'S'{within})"
        )
        with bare_cursor(connections[self.db]) as cursor:
            with suppress(*UNREADABLE):
                cursor.execute(f"SELECT {waiting}, {scheduled}", [*queues, *queues])
                found, due = cursor.fetchone()
                return bool(found), None if due is None else as_read(connections[self.db], due)
            cursor.execute(f"SELECT {waiting}", queues)  # a time that nobody can read counts as due
            return bool(cursor.fetchone()[0]), as_field(datetime(1970, 1, 1, tzinfo=UTC))

    def claim(
        self,
        runner_id: int,
        limit: int,
        queues: Sequence[str],
        now: datetime,
        ahead: int = 0,
        weight: int = 1 << 24,
    ) -> list[Claim]:
        """Take the next `limit` jobs for this runner, first to run first. The last `ahead` are not to start at once.

        `started` stays empty for those, which says to a rescuer that they had not begun. None of them is taken once
        the arguments of the jobs before it have more than `weight` bytes.
        """
        claim = (
            self._claim_locked if connections[self.db].vendor == "mysql" else self._claim_returning
        )
        try:
            rows = claim(runner_id, limit, list(dict.fromkeys(queues)), now, limit - ahead, weight)
        except DataError:
            if not self._fail_worn_out(now):
                raise
            return []
        rows.sort(key=itemgetter(0, 1))  # RETURNING has no order
        # psycopg2 gives bytes as a memoryview.
        plain: list[list[Any]] = [
            [bytes(each) if type(each) is memoryview else each for each in row] for row in rows
        ]
        return [Claim(*row[1:]) for row in plain]

    def _fail_worn_out(self, now: datetime) -> int:
        """Fail the jobs that can be claimed no more: somebody has set a counter to the end of its range."""
        entry = {"at": now.isoformat(), "where": "", "exception": "", "traceback": ""}
        entry["message"] = f"claims or attempts of this job are at {MOST:,}, the most there can be."
        worn_out = self.filter(Q(claims__gte=MOST) | Q(attempts__gte=MOST), status=ENQUEUED)
        return worn_out.update(status=FAILED, completed=now, errors=[entry])

    def _claim_returning(
        self,
        runner_id: int,
        limit: int,
        queues: Sequence[str],
        now: datetime,
        at_once: int,
        weight: int,
    ) -> list[Any]:
        # The ORM has no UPDATE … RETURNING. PostgreSQL needs the candidates materialised: a bare sub-select may
        # be run again after a lock wait and then updates more rows than its limit. `waiting`: see
        # `vendors.configure_session`.
        connection = connections[self.db]
        table = self._table()
        probe = f"SELECT id, priority, {WEIGHT} AS weight FROM {table}"
        probe += f" WHERE status = 'Q'%s ORDER BY priority DESC, id LIMIT {limit:d}"
        if connection.features.has_select_for_update_skip_locked:
            probe += " FOR UPDATE SKIP LOCKED"
        # One probe for each queue: their index is in order within a queue only.
        probes = " UNION ALL ".join(
            f"SELECT id, priority, weight FROM ({probe % condition}) AS queue_{n}"
            for n, condition in enumerate(
                [" AND queue_name = %s"] * len(queues) or [" AND claims >= 0"]
            )
        )
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH candidates AS MATERIALIZED ({probes}), next AS (SELECT id AS next_id, 'Q' AS waiting,"
                " ROW_NUMBER() OVER line AS place, SUM(weight) OVER line - weight AS before FROM candidates"
                f" WINDOW line AS (ORDER BY priority DESC, id) ORDER BY place LIMIT {limit:d})"
                f" UPDATE {table} SET status = 'O', runner_id = %s, claims = claims + 1, attempts = attempts + 1,"
                " started = CASE WHEN place <= %s THEN %s END"
                f" FROM next WHERE id = next_id AND status = waiting AND (place <= %s OR before <= {weight:d})"
                " RETURNING 0 - priority, id, claims, title, job_name, args_data, kwargs_data,"
                f" attempts, crashes, crash_retries, timeout, {self._since(first=1)}",
                [
                    *queues,
                    runner_id,
                    at_once,
                    connection.ops.adapt_datetimefield_value(now),
                    at_once,
                ],
            )
            return list(cursor.fetchall())

    def _claim_locked(
        self,
        runner_id: int,
        limit: int,
        queues: Sequence[str],
        now: datetime,
        at_once: int,
        weight: int,
    ) -> list[Any]:
        # MariaDB and MySQL have no UPDATE … RETURNING. The update goes by primary key alone: through a secondary
        # index it would lock in another order than a finish does, and deadlock with it.
        skip = connections[self.db].features.has_select_for_update_skip_locked
        rows: list[Any] = []
        with transaction.atomic(using=self.db):
            for queue in queues or [""]:
                table = self._table("peasy_waiting_in_queue" if queue else "peasy_waiting")
                condition = " AND queue_name = %s" if queue else ""
                with connections[self.db].cursor() as cursor:
                    cursor.execute(
                        f"SELECT 0 - priority, id, claims + 1, title, job_name, {WEIGHT}, attempts + 1,"
                        f" crashes, crash_retries, timeout, {self._since(first=0)} FROM {table}"
                        f" WHERE status = 'Q'{condition} ORDER BY priority DESC, id LIMIT {limit:d} FOR UPDATE"
                        + (" SKIP LOCKED" if skip else ""),
                        [queue] if queue else [],
                    )
                    rows += cursor.fetchall()
            # A set: MariaDB may find a job in two queues, because their names ignore case.
            rows = sorted(set(rows), key=itemgetter(0, 1))[:limit]
            before = accumulate((row[5] for row in rows), initial=0)
            rows = [row for n, row in enumerate(rows) if next(before) <= weight or n < at_once]
            pks = [row[1] for row in rows]
            arguments = self.filter(pk__in=[row[1] for row in rows if row[5]])
            found = {
                pk: rest for pk, *rest in arguments.values_list("pk", "args_data", "kwargs_data")
            }
            for some, started in ((pks[:at_once], now), (pks[at_once:], None)):
                if some:
                    self.filter(pk__in=some).update(
                        status=ONGOING,
                        runner=runner_id,
                        claims=F("claims") + 1,
                        attempts=F("attempts") + 1,
                        started=started,
                    )
        return [(*row[:5], *found.get(row[1], (None, None)), *row[6:]) for row in rows]

    def _since(self, first: int) -> str:
        """SQL for when a job might have started: seconds since 1970, in the time zone of the columns, or NULL.

        Nobody knows it of a job whose worker died, or that was put back by hand after its `first` attempt.
        """
        # Not the time itself: one that somebody else has put there may be more than Python can hold.
        seconds = {
            "sqlite": "(julianday(%s) - 2440587.5) * 86400.0",
            "postgresql": "CAST(EXTRACT(EPOCH FROM CAST(%s AS timestamp)) AS double precision)",
            "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', %s) / 1e6",
        }[connections[self.db].vendor]
        # COALESCE: `RETURNING run_after IS NOT NULL` is 1 for NULL in SQLite 3.40.
        when = f"COALESCE(run_after, CASE WHEN attempts = {first:d} THEN created END)"
        return seconds % f"CASE WHEN crashes = 0 THEN {when} END"

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
        update = (
            f"UPDATE {self._table()} AS job{{join}} SET status = {{}}, result_data = {{}},"
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
                    crashes=Least(F("crashes"), MOST - 1) + 1,
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

    def _table(self, index: str = "") -> str:
        """For SQL, with the index to read on MariaDB and MySQL: by their statistics they take another, or none."""
        name = connections[self.db].ops.quote_name(self.model._meta.db_table)
        return (
            f"{name} FORCE INDEX ({index})"
            if index and connections[self.db].vendor == "mysql"
            else name
        )
