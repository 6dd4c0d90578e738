"""Look for waiting jobs and claim them for a runner.

There are two claimers behind one request. SQLite and PostgreSQL claim with a single
`UPDATE … RETURNING`; MariaDB and MySQL, which have none, with a locking `SELECT` and an `UPDATE`.
Both lock only rows that no other transaction has locked, and both take jobs in the order in which
they are to run: higher priority first, then the older job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections, transaction
from django.db.models import F

from peasy_jobs.statuses import ONGOING
from peasy_jobs.store.clock import as_field, as_read
from peasy_jobs.store.values import Claim
from peasy_jobs.store.vendors import UNREADABLE, bare_cursor, table_sql

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import QuerySet

    from peasy_jobs.models import PeasyJobQueue

WAITING_INDEX = "peasy_waiting"  # all waiting jobs, in the order in which they are to run
QUEUE_INDEX = "peasy_waiting_in_queue"  # the same within each queue
DUE_INDEX = "peasy_due"

# LENGTH reads only the header of a large value, which is stored outside of the row.
PAYLOAD_BYTES = "COALESCE(LENGTH(args_data), 0) + COALESCE(LENGTH(kwargs_data), 0)"
# Always true. It is the condition of the partial index `peasy_waiting`, which is used only for
# queries that repeat it. Queries for named queues do not, so they never read the backlog of all
# queues.
OF_ALL_QUEUES = "claims >= 0"
OF_ONE_QUEUE = "queue_name = %s"

ARGUMENTS = ("args", "kwargs")  # the last fields of a `Claim`

in_run_order: Callable[[Claim | Candidate], Any] = attrgetter("rank", "pk")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Which jobs a runner wants to claim. Without `queues`, from all of them."""

    runner_id: int
    limit: int  # jobs, at most
    now: datetime  # what `started` is set to
    ahead: int = 0  # how many of `limit` wait behind another job; their `started` stays empty
    max_bytes: int = 1 << 24  # of arguments, after which no more jobs are claimed ahead
    queues: Sequence[str] = ()

    @property
    def at_once(self) -> int:
        """How many of the jobs start at once. They are claimed whatever their size is."""
        return self.limit - self.ahead

    @property
    def distinct_queues(self) -> list[str]:
        return list(dict.fromkeys(self.queues))


def claim(jobs: QuerySet[PeasyJobQueue], request: ClaimRequest) -> list[Claim]:
    """Claim jobs for a runner and return them in the order in which they are to run."""
    if connections[jobs.db].vendor == "mysql":
        claims = _select_and_update(jobs, request)
    else:
        claims = _update_returning(connections[jobs.db], jobs.model._meta.db_table, request)
    claims.sort(key=in_run_order)
    return claims


# SQLite and PostgreSQL


def _update_returning(
    connection: BaseDatabaseWrapper, table: str, request: ClaimRequest
) -> list[Claim]:
    """Claim with one UPDATE … RETURNING, which the ORM does not have."""
    started = connection.ops.adapt_datetimefield_value(request.now)
    parameters = [
        *request.distinct_queues,
        request.runner_id,
        request.at_once,
        started,
        request.at_once,
    ]
    with connection.cursor() as cursor:
        cursor.execute(_claim_statement(connection, table, request), parameters)
        return as_claims(cursor.fetchall())


def _claim_statement(connection: BaseDatabaseWrapper, table: str, request: ClaimRequest) -> str:
    """Return the SQL of a claim.

    Each queue has a sub-select, a probe, because the index is in order only within a queue.
    """
    conditions = [OF_ONE_QUEUE] * len(request.distinct_queues) or [OF_ALL_QUEUES]
    probes = [
        _probe(connection, table, condition, request.limit, number)
        for number, condition in enumerate(conditions)
    ]
    # MATERIALIZED: PostgreSQL may run a plain sub-select again after it has waited for a lock, and
    # would then update more rows than the limit allows.
    # The status is compared with the joined column `waiting` and not with a constant, so that
    # PostgreSQL finds the rows by primary key and not by an index of the status; see
    # `vendors.configure_session`.
    return f"""
        WITH candidates AS MATERIALIZED (
            {" UNION ALL ".join(probes)}
        ),
        next AS (
            SELECT
                id AS next_id,
                'Q' AS waiting,
                ROW_NUMBER() OVER line AS place,
                SUM(payload_bytes) OVER line - payload_bytes AS bytes_before
            FROM candidates
            WINDOW line AS (ORDER BY priority DESC, id)
            ORDER BY place
            LIMIT {request.limit:d}
        )
        UPDATE {table_sql(connection, table)}
        SET
            status = 'O',
            runner_id = %s,
            claims = claims + 1,
            attempts = attempts + 1,
            started = CASE WHEN place <= %s THEN %s END
        FROM next
        WHERE id = next_id
            AND status = waiting
            AND (place <= %s OR bytes_before <= {request.max_bytes:d})
        RETURNING {", ".join(_claim_columns(connection.vendor, is_claimed=True).values())}
    """


def _probe(
    connection: BaseDatabaseWrapper, table: str, condition: str, limit: int, number: int
) -> str:
    """Return SQL for the first waiting jobs that meet a condition, in the order of their index."""
    locking = "FOR UPDATE SKIP LOCKED" if _can_skip_locked(connection) else ""
    return f"""
            SELECT id, priority, payload_bytes
            FROM (
                SELECT id, priority, {PAYLOAD_BYTES} AS payload_bytes
                FROM {table_sql(connection, table)}
                WHERE status = 'Q' AND {condition}
                ORDER BY priority DESC, id
                LIMIT {limit:d}
                {locking}
            ) AS probe_{number:d}"""


# MariaDB and MySQL


class Candidate(NamedTuple):
    """A waiting job that this transaction has locked."""

    pk: int
    rank: float
    payload_bytes: int
    columns: list[Any]  # the fields of its `Claim`, except the arguments


def _select_and_update(jobs: QuerySet[PeasyJobQueue], request: ClaimRequest) -> list[Claim]:
    """Claim with a locking SELECT and an UPDATE, in one transaction.

    The arguments are read last and only for the jobs that are claimed, because those of the other
    candidates may be large.
    """
    with transaction.atomic(using=jobs.db):
        candidates = _lock_candidates(connections[jobs.db], jobs.model._meta.db_table, request)
        chosen = _within_bytes(candidates, request)
        with_arguments = [each.pk for each in chosen if each.payload_bytes]
        rows = jobs.filter(pk__in=with_arguments).values_list("pk", "args_data", "kwargs_data")
        arguments = {pk: data for pk, *data in rows}
        claims = [Claim(*each.columns, *arguments.get(each.pk, ())) for each in chosen]
        _mark_claimed(jobs, request, claims[: request.at_once], started=request.now)
        _mark_claimed(jobs, request, claims[request.at_once :], started=None)
    return claims


def _lock_candidates(
    connection: BaseDatabaseWrapper, table: str, request: ClaimRequest
) -> list[Candidate]:
    """Lock the first `limit` waiting jobs and return them in the order in which they are to run."""
    columns = _claim_columns(connection.vendor, is_claimed=False)
    selected = ", ".join(sql for field, sql in columns.items() if field not in ARGUMENTS)
    skip_locked = "SKIP LOCKED" if _can_skip_locked(connection) else ""
    # By primary key: MariaDB may find a job in two queues, because their names ignore case there.
    candidates: dict[int, Candidate] = {}
    queues = request.distinct_queues
    source = table_sql(connection, table, QUEUE_INDEX if queues else WAITING_INDEX)
    condition = OF_ONE_QUEUE if queues else OF_ALL_QUEUES
    for parameters in [[queue] for queue in queues] or [[]]:
        statement = f"""
            SELECT {columns["pk"]}, {columns["rank"]}, {PAYLOAD_BYTES}, {selected}
            FROM {source}
            WHERE status = 'Q' AND {condition}
            ORDER BY priority DESC, id
            LIMIT {request.limit:d}
            FOR UPDATE {skip_locked}
        """
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            for pk, rank, payload_bytes, *values in cursor.fetchall():
                candidates[pk] = Candidate(pk, rank, payload_bytes, values)
    return sorted(candidates.values(), key=in_run_order)[: request.limit]


def _within_bytes(candidates: list[Candidate], request: ClaimRequest) -> list[Candidate]:
    """Return the jobs that start at once, and those behind them until `max_bytes` are used up."""
    bytes_before = accumulate((each.payload_bytes for each in candidates), initial=0)
    return [
        candidate
        for place, (candidate, before) in enumerate(zip(candidates, bytes_before, strict=False))
        if place < request.at_once or before <= request.max_bytes
    ]


def _mark_claimed(
    jobs: QuerySet[PeasyJobQueue],
    request: ClaimRequest,
    claims: list[Claim],
    started: datetime | None,
) -> None:
    # By primary key alone, because the rows are locked already. Through a secondary index, this
    # UPDATE would lock in another order than the one that writes outcomes, and they would deadlock.
    if claims:
        jobs.filter(pk__in=[claim.pk for claim in claims]).update(
            status=ONGOING,
            runner=request.runner_id,
            claims=F("claims") + 1,
            attempts=F("attempts") + 1,
            started=started,
        )


# Both


def _claim_columns(vendor: str, *, is_claimed: bool) -> dict[str, str]:
    """Return SQL for each field of a `Claim`, in order.

    is_claimed: the row is claimed already, rather than about to be.
    """
    one_more = "" if is_claimed else " + 1"
    columns = {
        "pk": "id",
        "fencing_token": f"claims{one_more}",
        "title": "title",
        "job_name": "job_name",
        "attempts": f"attempts{one_more}",
        "crashes": "crashes",
        "crash_retries": "crash_retries",
        "timeout": "timeout",
        "runnable_since": _runnable_since(vendor, first_attempt=1 if is_claimed else 0),
        "rank": "0 - priority",  # a number even where SQLite holds a text
        "args": "args_data",
        "kwargs": "kwargs_data",
    }
    return {field: columns[field] for field in Claim._fields}


def _runnable_since(vendor: str, first_attempt: int) -> str:
    """Return SQL for the time when a job could first have started; see `Claim.runnable_since`.

    first_attempt: what `attempts` is when this is the first one.
    """
    # Seconds instead of a datetime, because a stored one may be out of Python's range.
    seconds = {
        "sqlite": "(julianday({time}) - 2440587.5) * 86400.0",
        "postgresql": "CAST(EXTRACT(EPOCH FROM CAST({time} AS timestamp)) AS double precision)",
        "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {time}) / 1e6",
    }[vendor]
    # COALESCE instead of a test for NULL, because in SQLite 3.40 `RETURNING run_after IS NOT NULL`
    # is 1 for NULL.
    might_start = f"COALESCE(run_after, CASE WHEN attempts = {first_attempt:d} THEN created END)"
    return seconds.format(time=f"CASE WHEN crashes = 0 THEN {might_start} END")


def as_claims(rows: Iterable[Sequence[Any]]) -> list[Claim]:
    """Return rows of `_claim_columns` as claims, with bytes where psycopg2 has a memoryview."""
    claims: list[Any] = list(map(Claim._make, rows))
    return [
        claim._replace(args=_as_bytes(claim.args), kwargs=_as_bytes(claim.kwargs))
        if memoryview in (type(claim.args), type(claim.kwargs))
        else claim
        for claim in claims
    ]


def _as_bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _can_skip_locked(connection: BaseDatabaseWrapper) -> bool:
    return bool(connection.features.has_select_for_update_skip_locked)


# Looking without a lock


class Waiting(NamedTuple):
    """What a runner could do next."""

    can_run: bool  # a job may run now
    due: datetime | None  # when the next scheduled job is due


def peek(jobs: QuerySet[PeasyJobQueue], queues: Sequence[str]) -> Waiting:
    """Return whether a job may run now and when the next scheduled one is due. Take no lock.

    A time that cannot be read counts as due.
    """
    # SQL and a bare cursor, because an idle runner that nothing wakes asks this ten times a second.
    connection, table = connections[jobs.db], jobs.model._meta.db_table
    can_run = _any_waiting(connection, table, queues)
    placeholders = ", ".join(["%s"] * len(queues))
    first_due = f"""(
        SELECT MIN(run_after)
        FROM {table_sql(connection, table, DUE_INDEX)}
        WHERE status = 'S' {f"AND queue_name IN ({placeholders})" if queues else ""}
    )"""
    with bare_cursor(connection) as cursor:
        with suppress(*UNREADABLE):
            cursor.execute(f"SELECT {can_run}, {first_due}", [*queues, *queues])
            found, due = cursor.fetchone()
            return Waiting(bool(found), None if due is None else as_read(connection, due))
        cursor.execute(f"SELECT {can_run}", queues)
        (found,) = cursor.fetchone()
        return Waiting(bool(found), as_field(datetime(1970, 1, 1, tzinfo=UTC)))


def _any_waiting(connection: BaseDatabaseWrapper, table: str, queues: Sequence[str]) -> str:
    """Return SQL for whether a job waits in one of these queues, or in any when none is named."""
    # ORDER BY keeps PostgreSQL on the index: with EXISTS alone it reads the whole table when old
    # statistics say that many jobs wait.
    source = table_sql(connection, table, QUEUE_INDEX if queues else WAITING_INDEX)
    return " OR ".join(
        f"""(
        SELECT id
        FROM {source}
        WHERE status = 'Q' AND {condition}
        ORDER BY priority DESC, id
        LIMIT 1
    ) IS NOT NULL"""
        for condition in [OF_ONE_QUEUE] * len(queues) or [OF_ALL_QUEUES]
    )
