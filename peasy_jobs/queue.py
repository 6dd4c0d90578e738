"""Every change of a job's status, and every difference between the databases. Nothing else writes a status.

Each change is an UPDATE guarded by the status it leaves; once a job is claimed also by its runner and by `claims`,
which only grows: a runner that was taken for dead cannot write over the job's new life.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db import connections, models, transaction
from django.db.models import Case, F, Min, Q, Value, When
from django.db.models.functions import Coalesce, Greatest
from django.db.utils import DataError, InterfaceError, OperationalError
from django.utils import timezone

from peasy_jobs import conf, wakeup
from peasy_jobs.claims import Claim, Ending

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from peasy_jobs.models import PeasyJobQueue

ENQUEUED, SCHEDULED, ONGOING, COMPLETED, FAILED, CANCELLED = "QSOCFX"
FINISHED = (COMPLETED, FAILED, CANCELLED)
STATUS_MSG_LIMIT = 255
ERRORS_KEPT = 25  # failed attempts of a job, the newest
STATEMENT = 4096  # bytes of a statement without its values, at the most
SURELY_ACCEPTED = 500_000  # bytes of a statement: no server is set to less
ESCAPED = b"\0\n\r\x1a\"'\\"  # each is sent as two bytes
BATCH = 500  # rows that one round of housekeeping touches, so that it never holds a lock for long


class Clock:
    """The database's clock, read now and then and carried on by the monotonic one in between."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.offset = 0.0

    def sync(self) -> float:
        """Read the database's clock. Returns seconds since 1970."""
        now = database_now(self.connection).timestamp()
        self.offset = now - monotonic()
        return now

    def at(self, moment: float) -> datetime:
        """The time of `moment` (`time.monotonic()`, the same in every process of a host), as fields hold it."""
        return as_field(datetime.fromtimestamp(moment + self.offset, UTC))


def database_now(connection: BaseDatabaseWrapper) -> datetime:
    """The database's own time in UTC: the only clock that is compared with what is due, leased or expired."""
    with connection.cursor() as cursor:
        cursor.execute(
            {
                "sqlite": "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')",
                "postgresql": "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
                "mysql": "SELECT UTC_TIMESTAMP(6)",  # Now() would be the time of the server's zone
            }[connection.vendor]
        )
        now = cursor.fetchone()[0]
    return (datetime.fromisoformat(now) if isinstance(now, str) else now).replace(tzinfo=UTC)


def as_field(moment: datetime) -> datetime:
    """An aware `moment` as the site's datetime fields hold it: aware or naive, as `USE_TZ` says."""
    return moment if conf.uses_time_zones() else timezone.make_naive(moment, timezone.get_default_timezone())


def bound_silence(connection: BaseDatabaseWrapper, limit: float) -> None:
    """Let a runner's own connection wait `limit` seconds for a server that does not answer, where its driver can."""
    seconds = max(1, round(limit))
    options = {
        "postgresql": {"connect_timeout": seconds},  # an answer to a query has no limit there: see `silence`
        "mysql": {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds},
    }.get(connection.vendor, {})
    own = connection.settings_dict
    connection.settings_dict = {**own, "OPTIONS": {**options, **own["OPTIONS"]}}  # a copy: threads share the dictionary


def set_up(connection: BaseDatabaseWrapper, lock_timeout: float) -> None:
    """Make a runner's own connection give up a lock after `lock_timeout` seconds: others still need it meanwhile."""
    milliseconds = int(lock_timeout * 1000)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
        elif connection.vendor == "postgresql":
            cursor.execute(f"SET lock_timeout = {milliseconds}")
        elif connection.vendor == "mysql":
            # READ COMMITTED: two claimers deadlock over the gaps that REPEATABLE READ locks as well.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {max(1, round(lock_timeout))}")


def is_locked(error: BaseException) -> bool:
    """Whether somebody else's lock was in the way: a lock timeout, a deadlock or a serialization failure."""
    cause = error.__cause__  # psycopg2 says pgcode; PyMySQL gives a sqlstate too, HY000 for 1205
    codes = {getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *error.args[:1]}
    return not codes.isdisjoint({"55P03", "40P01", "40001", 1020, 1205, 1213}) or "is locked" in str(error)


def is_outage(error: BaseException) -> bool:
    """Whether the database could not be used at all, whatever was asked of it."""
    # MariaDB: more than max_allowed_packet, a wrong date, a character that the column does not have.
    of_the_data = error.args[:1] in ((1153,), (1292,), (1366,))
    return isinstance(error, OperationalError | InterfaceError) and not of_the_data


def _entries(errors: Any) -> list[dict[str, str]]:
    """The failed attempts that a row keeps, whatever somebody else has written there."""
    return [entry for entry in errors if isinstance(entry, dict)] if isinstance(errors, list) else []


def _sent(row: Sequence[Any]) -> int:
    """How many bytes a row of values takes in a statement, at the most; exactly when they are many."""
    values = [value.encode() if isinstance(value, str) else value for value in row if isinstance(value, str | bytes)]
    size = 2 * sum(map(len, values)) + STATEMENT
    if size > SURELY_ACCEPTED:
        size = sum(len(value) + sum(map(value.count, ESCAPED)) for value in values) + STATEMENT
    return size


class JobQuerySet(models.QuerySet["PeasyJobQueue"]):
    """The jobs, and every verb that changes one."""

    def enqueue(self, **columns: Any) -> PeasyJobQueue:
        """One INSERT in the caller's own transaction: the job is there when and if that transaction commits."""
        job = self.create(status=SCHEDULED if columns.get("run_after") else ENQUEUED, **columns)
        wakeup.announce(self.db)
        return job

    def in_queues(self, queues: Sequence[str]) -> JobQuerySet:
        """The jobs of these queues; of all of them when none is named."""
        return self.filter(queue_name__in=queues) if queues else self

    def peek(self, queues: Sequence[str]) -> tuple[bool, datetime | None]:
        """Whether a job may run now, and when the next scheduled one is due. Takes no lock."""
        waiting = self.in_queues(queues).filter(status=ENQUEUED, **({} if queues else {"claims__gte": 0}))
        due = self.in_queues(queues).filter(status=SCHEDULED).aggregate(due=Min("run_after"))["due"]
        return waiting.order_by().exists(), due

    def claim(self, runner_id: int, limit: int, queues: Sequence[str], now: datetime, ahead: int = 0) -> list[Claim]:
        """Take the next `limit` jobs for this runner, first to run first. The last `ahead` are not to start at once.

        `started` stays empty for those, which says to a rescuer that they had not begun.
        """
        queues = list(dict.fromkeys(queues))
        if connections[self.db].vendor == "mysql":
            rows = self._claim_locked(runner_id, limit, queues, now, limit - ahead)
        else:
            rows = self._claim_returning(runner_id, limit, queues, now, limit - ahead)
        rows.sort()  # RETURNING has no order
        return [Claim(*row[1:]) for row in rows]

    def _claim_returning(
        self, runner_id: int, limit: int, queues: Sequence[str], now: datetime, at_once: int
    ) -> list[Any]:
        # Plain SQL: the ORM has no UPDATE … RETURNING. PostgreSQL needs the candidates as a materialised CTE: a bare
        # sub-select may be run again after a lock wait and then updates more rows than its limit.
        connection = connections[self.db]
        table = self._table()
        probe = f"SELECT id, priority FROM {table} WHERE status = 'Q'%s ORDER BY priority DESC, id LIMIT {limit:d}"
        if connection.features.has_select_for_update_skip_locked:
            probe += " FOR UPDATE SKIP LOCKED"
        # One probe for each queue: their index is in order within a queue only.
        probes = " UNION ALL ".join(
            f"SELECT id, priority FROM ({probe % condition}) AS queue_{n}"
            for n, condition in enumerate([" AND queue_name = %s"] * len(queues) or [" AND claims >= 0"])
        )
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH candidates AS MATERIALIZED ({probes}),"
                " next AS (SELECT id AS next_id, ROW_NUMBER() OVER (ORDER BY priority DESC, id) AS place"
                f" FROM candidates ORDER BY place LIMIT {limit:d})"
                f" UPDATE {table} SET status = 'O', runner_id = %s, claims = claims + 1, attempts = attempts + 1,"
                " run_after = NULL, started = CASE WHEN place <= %s THEN %s END"
                " FROM next WHERE id = next_id AND status = 'Q'"
                " RETURNING -priority, id, claims, title, job_name, args_data, kwargs_data,"
                " attempts, crashes, crash_retries, timeout",
                [*queues, runner_id, at_once, self._value("started", now)],
            )
            return list(cursor.fetchall())

    def _claim_locked(
        self, runner_id: int, limit: int, queues: Sequence[str], now: datetime, at_once: int
    ) -> list[Any]:
        # MariaDB and MySQL have no UPDATE … RETURNING. The update goes by primary key alone: through a secondary
        # index it would lock in another order than a finish does, and deadlock with it.
        # And plain SQL, to name the index: with another queue's backlog before this one MariaDB takes the wrong one.
        table, skip = self._table(), connections[self.db].features.has_select_for_update_skip_locked
        rows: list[Any] = []
        with transaction.atomic(using=self.db):
            for queue in queues or [""]:
                index, condition = (
                    ("peasy_waiting_in_queue", " AND queue_name = %s") if queue else ("peasy_waiting", "")
                )
                with connections[self.db].cursor() as cursor:
                    cursor.execute(
                        "SELECT -priority, id, claims + 1, title, job_name, args_data, kwargs_data, attempts + 1,"
                        f" crashes, crash_retries, timeout FROM {table} FORCE INDEX ({index})"
                        f" WHERE status = 'Q'{condition} ORDER BY priority DESC, id LIMIT {limit:d} FOR UPDATE"
                        + (" SKIP LOCKED" if skip else ""),
                        [queue] if queue else [],
                    )
                    rows += cursor.fetchall()
            rows = sorted(set(rows))[:limit]  # MariaDB may find a job in two queues: their names ignore case
            pks = [row[1] for row in rows]
            for some, started in ((pks[:at_once], now), (pks[at_once:], None)):
                if some:
                    self.filter(pk__in=some).update(
                        status=ONGOING,
                        runner=runner_id,
                        claims=F("claims") + 1,
                        attempts=F("attempts") + 1,
                        run_after=None,
                        started=started,
                    )
        return rows

    def give_back_unknown(self, runner_id: int, known: Iterable[Claim]) -> int:
        """Give back what a runner holds without knowing it: the answer to a claim was lost on the way."""
        held = {(claim.pk, claim.claims) for claim in known}
        claimed = self.filter(runner=runner_id, status=ONGOING).values_list("pk", "claims")
        return sum(
            self.filter(pk=pk, runner=runner_id, status=ONGOING, claims=claims).update(
                status=ENQUEUED, runner=None, started=None, attempts=F("attempts") - 1
            )
            for pk, claims in claimed
            if (pk, claims) not in held
        )

    def begin(self, runner_id: int, claims: Iterable[Claim], now: datetime) -> None:
        """Jobs that were claimed ahead have started."""
        self.filter(pk__in=[claim.pk for claim in claims], runner=runner_id, started=None).update(started=now)

    def end(self, runner_id: int, endings: Sequence[Ending], now: datetime) -> list[Claim]:
        """Write what became of claimed jobs, in one transaction. Returns the claims that were not ours any more.

        Such an outcome is dropped: the job was cancelled, or rescued from this runner, meanwhile.
        """
        if not endings:
            return []
        table = self._table()
        with transaction.atomic(using=self.db):
            errors = self._errors_of([ending.claim.pk for ending in endings if ending.error])
            rows = [self._ending_row(runner_id, ending, errors.get(ending.claim.pk, []), now) for ending in endings]
            self._refuse_too_large(rows)
            with connections[self.db].cursor() as cursor:
                # Plain SQL: one prepared statement for any mix of endings; the ORM would send a query for each.
                cursor.executemany(
                    f"UPDATE {table} SET status = %s, result_data = %s, status_msg = COALESCE(%s, status_msg),"
                    " extra = COALESCE(%s, extra), errors = COALESCE(%s, errors), started = %s, completed = %s,"
                    " run_after = %s,"
                    " attempts = attempts + %s, crashes = crashes + %s, runner_id = NULL"
                    " WHERE id = %s AND status = 'O' AND runner_id = %s AND claims = %s",
                    rows,
                )
                if cursor.rowcount == len(endings):
                    return []
            return self._not_landed(runner_id, endings, now)

    def _ending_row(self, runner_id: int, ending: Ending, errors: list[dict[str, str]], now: datetime) -> list[Any]:
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
            *(self._value("started", ending.started), self._value("completed", ending.completed)),
            *(self._value("run_after", ending.run_after), ending.attempts, ending.crashes),
            *(ending.claim.pk, runner_id, ending.claim.claims),
        ]

    def _refuse_too_large(self, rows: Sequence[Sequence[Any]]) -> None:
        # MariaDB and MySQL end the connection of a client that sends too much. With some drivers that looks like an
        # outage, which would be waited out for ever.
        if connections[self.db].vendor != "mysql":
            return
        if large := [size for row in rows if (size := _sent(row)) > SURELY_ACCEPTED]:
            with connections[self.db].cursor() as cursor:
                cursor.execute("SELECT @@max_allowed_packet")
                limit = cursor.fetchone()[0]
            if max(large) > limit:
                raise DataError(f"{max(large):,} bytes, and max_allowed_packet of the database server is {limit:,}")

    def _errors_of(self, pks: list[int]) -> dict[int, list[dict[str, str]]]:
        found = self.filter(pk__in=pks).values_list("pk", "errors") if pks else []
        return {pk: _entries(errors) for pk, errors in found}

    def _not_landed(self, runner_id: int, endings: Sequence[Ending], now: datetime) -> list[Claim]:
        # executemany gives only a total. What landed, now or before a COMMIT whose answer was lost, has our claim.
        wanted = {ending.claim.pk: (ending.claim.claims, ending.status) for ending in endings}
        found = {pk: rest for pk, *rest in self.filter(pk__in=wanted).values_list("pk", "claims", "status", "runner")}
        lost = []
        for ending in endings:
            claim, row = ending.claim, found.get(ending.claim.pk)
            if row is None or tuple(row) != (*wanted[claim.pk], None):
                lost.append(claim)
                self.close_cancelled(runner_id, claim.pk, claim.claims, now)
        return lost

    def close_cancelled(self, runner_id: int, pk: int, claims: int, now: datetime) -> None:
        """A job that was cancelled while it ran has stopped running."""
        mine = self.filter(pk=pk, status=CANCELLED, runner=runner_id, claims=claims)
        mine.update(runner=None, completed=now)

    def report(self, pk: int, status_msg: str | None, extra: str | None, **guards: Any) -> None:
        """Write a job's progress: a message, `extra` as JSON text, or both."""
        columns: dict[str, Any] = {} if status_msg is None else {"status_msg": status_msg}
        if extra is not None:
            columns["extra"] = json.loads(extra)
        if columns:
            self._refuse_too_large([[status_msg, extra]])
            self.filter(pk=pk, **guards).update(**columns)

    def cancel(self, pk: int) -> bool:
        """Cancel a job. One that waits never runs; one that runs is stopped by its runner. False: it had ended."""
        now = as_field(database_now(connections[self.db]))
        # One statement: between two, one for those that wait and one for those that run, a job could change sides.
        completed = Case(When(runner=None, then=Value(now, models.DateTimeField())), default=F("completed"))
        alive = self.filter(pk=pk, status__in=(ENQUEUED, SCHEDULED, ONGOING))
        return bool(alive.update(status=CANCELLED, completed=completed))

    def cancelled_of(self, runner_id: int) -> list[tuple[int, int]]:
        """Primary key and claims of the jobs that this runner runs and that were cancelled."""
        return list(self.filter(runner=runner_id, status=CANCELLED).values_list("pk", "claims"))

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
            mine = self.filter(runner=dead) if dead is not None else self.filter(runner=None)
            ongoing = mine.filter(status=ONGOING)
            entry = {"at": now.isoformat(), "where": where, "exception": "", "message": reason, "traceback": ""}
            spent = ongoing.filter(crashes__gte=Coalesce("crash_retries", crash_retries), started__isnull=False)
            rescued = 0
            for pk, claims, errors in spent.values_list("pk", "claims", "errors"):
                kept = [*_entries(errors), entry][-ERRORS_KEPT:]
                rescued += ongoing.filter(pk=pk, claims=claims).update(
                    status=FAILED, errors=kept, completed=now, runner=None, crashes=F("crashes") + 1
                )
            rescued += ongoing.filter(started__isnull=False).update(
                status=ENQUEUED, runner=None, started=None, crashes=F("crashes") + 1
            )
            rescued += ongoing.update(status=ENQUEUED, runner=None, attempts=Greatest(F("attempts"), 1) - 1)
            if dead is not None:
                mine.filter(status=CANCELLED).update(runner=None, completed=now)
        return rescued

    def runners_named(self) -> set[int]:
        """The runners that jobs name, whether there is such a runner or not."""
        named = self.filter(runner__isnull=False).order_by().values_list("runner", flat=True).distinct()
        return {runner_id for runner_id in named if runner_id is not None}

    def prune(self, status: str, maximum: int | None, before: datetime) -> int:
        """Delete the oldest finished jobs beyond `maximum`, none that finished after `before`. Returns how many."""
        finished = self.filter(status=status, runner=None, completed__isnull=False).order_by("-completed", "-pk")
        edge = None if maximum is None else finished.values_list("completed", "pk")[maximum : maximum + 1].first()
        if edge is None:
            return 0
        older = finished.filter(Q(completed__lt=edge[0]) | Q(completed=edge[0], pk__lte=edge[1]), completed__lte=before)
        pks = list(older.reverse().values_list("pk", flat=True)[:BATCH])
        return self.filter(pk__in=pks, status=status, runner=None).delete()[0] if pks else 0

    def stamp_cancelled(self, now: datetime) -> None:
        """Jobs that were cancelled while they waited are over: their grace counts from here."""
        over = self.filter(status=CANCELLED, runner=None, completed=None)
        if pks := list(over.values_list("pk", flat=True)[:BATCH]):  # looked at first: an UPDATE takes the write lock
            over.filter(pk__in=pks).update(completed=now)

    def _table(self) -> str:
        return connections[self.db].ops.quote_name(self.model._meta.db_table)

    def _value(self, field: str, value: Any) -> Any:
        column: models.Field[Any, Any] = self.model._meta.get_field(field)  # type: ignore[assignment]
        return column.get_db_prep_save(value, connections[self.db])
