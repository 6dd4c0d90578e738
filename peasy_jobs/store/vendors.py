"""What differs between the databases, apart from how jobs are claimed: clocks, time limits, and what errors mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

from django.db.utils import DataError, InterfaceError, OperationalError

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

STATEMENT = 4096  # bytes of a statement without its values, at the most
ROWS = 1000  # of one INSERT
SURELY_ACCEPTED = 500_000  # bytes of a statement: no server is set to less
# What is raised for a time that another program has stored and that Python or Django cannot hold.
UNREADABLE = (DataError, ValueError, TypeError, AttributeError)
ESCAPED = b"\0\n\r\x1a\"'\\"  # each is sent as two bytes


@contextmanager
def bare_cursor(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """A cursor for what is asked ten times a second. On MariaDB and MySQL the driver's: Django's costs a tenth more."""
    connection.ensure_connection()
    source = connection.connection if connection.vendor == "mysql" else connection
    with connection.wrap_database_errors, closing(source.cursor()) as cursor:
        yield cursor


def table_sql(connection: BaseDatabaseWrapper, table: str, index: str = "") -> str:
    """Quote the name of a table, with the index that MariaDB and MySQL have to read.

    FORCE INDEX: going by statistics, which are always out of date for a queue, they would read
    another index or the whole table.
    """
    quoted = connection.ops.quote_name(table)
    return f"{quoted} FORCE INDEX ({index})" if index and connection.vendor == "mysql" else quoted


def configure_runner_settings(connection: BaseDatabaseWrapper, limit: float) -> None:
    """Make this the connection of a runner, apart from those of its jobs: before it connects.

    limit: seconds to wait for a server that does not answer, where the driver can.
    """
    seconds = max(1, round(limit))
    options = {
        "postgresql": {
            "connect_timeout": seconds
        },  # an answer to a query has no limit there: see `silence`
        "mysql": {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds},
    }.get(connection.vendor, {})
    own = connection.settings_dict
    options = {**options, **own["OPTIONS"]}
    options.pop("pool", None)  # what is set up below must not get to the jobs
    # A copy: threads share the dictionary. Each write is to be seen at once, whatever the site does.
    connection.settings_dict = {**own, "AUTOCOMMIT": True, "OPTIONS": options}


def configure_session(connection: BaseDatabaseWrapper, lock_timeout: float) -> None:
    """Set how a runner's own connection waits and reads, before its first query.

    lock_timeout: seconds after which it gives up a lock, because others need it meanwhile.
    """
    milliseconds = int(lock_timeout * 1000)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
            # One row with a broken text must not stop the others.
            connection.connection.text_factory = lambda text: text.decode(errors="replace")
        elif connection.vendor == "postgresql":
            cursor.execute(f"SET lock_timeout = {milliseconds}")
            # By statistics of a while ago, as those of a queue always are, it reads and sorts all that waits for each
            # claim, and the whole table for each batch of outcomes, or compares each job with each. What a runner asks
            # has an index, and what it claims and ends is in memory: it is looked up by primary key, job by job. So
            # that no other index serves, and none is thought to be there by its status, both are compared with more
            # than a constant.
            cursor.execute(
                "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off"
            )
            cursor.execute(
                "SET enable_mergejoin = off; SET random_page_cost = 0; SET seq_page_cost = 0; SET jit = off"
            )
        elif connection.vendor == "mysql":
            # READ COMMITTED: two claimers deadlock over the gaps that REPEATABLE READ locks as well.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {max(1, round(lock_timeout))}")


def file_of(connection: BaseDatabaseWrapper) -> tuple[int, int] | None:
    """What tells an SQLite file from another under the same name. None: there is no file."""
    if connection.vendor != "sqlite":
        return None
    try:
        status = os.stat(
            connection.settings_dict["NAME"]
        )  # never opened: closing it would drop SQLite's locks
    except OSError:
        return None
    return status.st_dev, status.st_ino


def socket_of(connection: BaseDatabaseWrapper) -> int:
    """The descriptor over which PostgreSQL is talked to, −1 elsewhere: the other drivers know time limits."""
    with connection.wrap_database_errors:  # a connection that is lost has no socket any more
        return int(connection.connection.fileno()) if connection.vendor == "postgresql" else -1


def is_locked(error: BaseException) -> bool:
    """Whether somebody else's lock was in the way: a lock timeout, a deadlock or a serialization failure."""
    cause = error.__cause__  # psycopg2 says pgcode; PyMySQL gives a sqlstate too, HY000 for 1205
    codes = {getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *error.args[:1]}
    return not codes.isdisjoint(
        {"55P03", "40P01", "40001", 1020, 1205, 1213}
    ) or "is locked" in str(error)


def is_outage(error: BaseException) -> bool:
    """Whether the database could not be used at all, whatever was asked of it."""
    # MariaDB: more than max_allowed_packet, a wrong date, a character that the column does not have.
    of_the_data = error.args[:1] in ((1153,), (1292,), (1366,))
    return isinstance(error, OperationalError | InterfaceError) and not of_the_data


def refuse_too_large(connection: BaseDatabaseWrapper, rows: Sequence[Sequence[Any]]) -> None:
    """Raise `DataError` for rows of values that the server would not take in one statement.

    MariaDB and MySQL end the connection of a client that sends too much. With some drivers that looks like an
    outage, which would be waited out for ever.
    """
    if connection.vendor != "mysql":
        return
    in_hex = connection.Database.__name__ == "pymysql"  # type: ignore[attr-defined]  # that is how it writes bytes
    if large := [size for row in rows if (size := _sent(row, in_hex)) > SURELY_ACCEPTED]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            limit = cursor.fetchone()[0]
        if max(large) > limit:
            raise DataError(
                f"{max(large):,} bytes, and max_allowed_packet of the database server is {limit:,}"
            )


def update_each(
    connection: BaseDatabaseWrapper, update: str, types: Sequence[str], rows: list[list[Any]]
) -> int:
    """Run an UPDATE once for each row of values. Returns how many rows of the table it has found.

    update: with `{}` in the place of each value, `{join}` before its SET and `{source}` before its WHERE.
    types: of the values on PostgreSQL. A `timestamptz` is given as a `Clock` tells it.
    """
    # Both are in UTC then: Django's way to the same text was a sixth of a runner's time on SQLite.
    in_utc = connection.vendor != "postgresql" and connection.timezone is UTC
    adapt = connection.ops.adapt_datetimefield_value
    times = [n for n, kind in enumerate(types) if kind == "timestamptz"]
    for row in rows:
        for n in times:
            if row[n] is not None:
                row[n] = str(row[n].replace(tzinfo=None)) if in_utc else adapt(row[n])
    return _update_each(connection, update, types, rows)


def _update_each(
    connection: BaseDatabaseWrapper, update: str, types: Sequence[str], rows: list[list[Any]]
) -> int:
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.executemany(update.format(*["%s"] * len(types), join="", source=""), rows)
            return int(cursor.rowcount)
    columns = list(zip(*rows, strict=True))
    texts = [
        column
        for kind, column in zip(types, columns, strict=True)
        if kind in ("text", "bytea", "jsonb")
    ]
    if (
        len(rows) > 1
        and sum(len(value) for column in texts for value in column if value) > SURELY_ACCEPTED // 2
    ):
        half = len(rows) // 2
        return sum(
            _update_each(connection, update, types, some) for some in (rows[:half], rows[half:])
        )
    # executemany is a statement for each row here, and costs a server up to ten times as much as one statement that
    # joins them all. What they have in common travels once.
    same = [column.count(column[0]) == len(column) for column in columns]
    statement, values = (_from_arrays if connection.vendor == "postgresql" else _joined)(
        update, types, columns, same
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def _from_arrays(
    update: str, types: Sequence[str], columns: list[Any], same: list[bool]
) -> tuple[str, list[Any]]:
    selected = [
        f"%s::{kind} AS v{n}" if same[n] else f"unnest(%s::{kind}[]) AS v{n}"
        for n, kind in enumerate(types)
    ]
    statement = update.format(
        *[f"rows.v{n}" for n in range(len(types))],
        join="",
        source=f" FROM (SELECT {', '.join(selected)}) AS rows",
    )
    return statement, [
        column[0] if same[n] else _array(types[n], column) for n, column in enumerate(columns)
    ]


def _array(kind: str, column: Sequence[Any]) -> Any:
    """An array for PostgreSQL: numbers and times as text, because a driver needs a microsecond for each element."""
    if kind not in ("int", "bigint", "timestamptz"):
        return list(column)
    return f"{{{','.join('NULL' if value is None else str(value) for value in column)}}}"


def _joined(
    update: str, types: Sequence[str], columns: list[Any], same: list[bool]
) -> tuple[str, list[Any]]:
    different = [n for n in range(len(types)) if not same[n]]
    # mysqlclient writes bytes as text, which only a binary column takes as they are.
    values_of = ["CAST(%s AS BINARY)" if types[n] == "bytea" else "%s" for n in different]
    first = ", ".join(f"{value} AS v{n}" for value, n in zip(values_of, different, strict=True))
    others = f" UNION ALL SELECT {', '.join(values_of)}" * (len(columns[0]) - 1)
    names = ["%s" if same[n] else f"ending.v{n}" for n in range(len(types))]
    values = [value for row in zip(*(columns[n] for n in different), strict=True) for value in row]
    values += [column[0] for n, column in enumerate(columns) if same[n]]
    return update.format(
        *names, join=f", (SELECT {first}{others}) AS ending" if different else "", source=""
    ), values


def portions(rows: list[T], sizes: list[int]) -> Iterator[list[T]]:
    """Rows to insert, as many at a time as one statement may hold: fewer where they are large, in bytes."""
    start = size = 0
    for end, more in enumerate(sizes):
        if end - start == ROWS or (end > start and size + more > SURELY_ACCEPTED // 2):
            yield rows[start:end]
            start, size = end, 0
        size += more
    yield rows[start:]


def _sent(row: Sequence[Any], in_hex: bool) -> int:
    """How many bytes a row of values takes in a statement, at the most; exactly when they are many."""
    texts = [value.encode() for value in row if isinstance(value, str)]
    blobs = [value for value in row if isinstance(value, bytes)]
    size = 2 * sum(map(len, texts + blobs)) + STATEMENT
    if size > SURELY_ACCEPTED:
        doubled, escaped = (blobs, texts) if in_hex else ([], texts + blobs)
        size = 2 * sum(map(len, doubled)) + STATEMENT
        size += sum(len(value) + sum(map(value.count, ESCAPED)) for value in escaped)
    return size
