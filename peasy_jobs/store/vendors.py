"""How the databases differ, apart from claiming: sessions, limits of a statement, errors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from django.db.utils import DataError, InterfaceError, OperationalError

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

# What is raised for a time that another program has stored and that Python or Django cannot hold.
UNREADABLE = (DataError, ValueError, TypeError, AttributeError)

SURELY_ACCEPTED = 500_000  # bytes of a statement: no server is set to less
SQL_BYTES = 4096  # of a statement without its values, at most
INSERT_ROWS = 1000  # of one statement, at most
ESCAPED = b"\0\n\r\x1a\"'\\"  # each is sent as two bytes

# A lock timeout, a deadlock or a serialization failure: SQLSTATE, and numbers of MariaDB and MySQL.
LOCK_CODES = {"55P03", "40P01", "40001", 1020, 1205, 1213}
# More than max_allowed_packet, a wrong date, a character that the column cannot hold.
DATA_CODES = {1153, 1292, 1366}


# Statements


@contextmanager
def bare_cursor(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """Open a cursor for a query that runs ten times a second.

    On MariaDB and MySQL it is the driver's own, because Django's makes the query a tenth slower.
    """
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


# Sessions


def configure_runner_settings(connection: BaseDatabaseWrapper, timeout: float) -> None:
    """Give a runner's connection settings of its own, before it connects.

    timeout: seconds to wait for a server that does not answer, where the driver has such a limit.
    For answers to queries PostgreSQL has none: see `watchdog`.
    """
    seconds = max(1, round(timeout))
    options = {
        "postgresql": {"connect_timeout": seconds},
        "mysql": {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds},
    }.get(connection.vendor, {})
    own = connection.settings_dict
    options = {**options, **own["OPTIONS"]}
    options.pop("pool", None)  # a pool would pass the session's settings on to the jobs
    # A copy, because threads share the dictionary. AUTOCOMMIT: each write takes effect at once,
    # whatever the site has set.
    connection.settings_dict = {**own, "AUTOCOMMIT": True, "OPTIONS": options}


def configure_session(connection: BaseDatabaseWrapper, lock_timeout: float) -> None:
    """Set how a runner's own connection waits and reads, before its first query.

    lock_timeout: seconds after which a statement gives up waiting for a lock.
    """
    milliseconds = int(lock_timeout * 1000)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
            # One row with invalid UTF-8 must not stop the others.
            connection.connection.text_factory = lambda text: text.decode(errors="replace")
        elif connection.vendor == "postgresql":
            cursor.execute(f"SET lock_timeout = {milliseconds}")
            # The statistics of a queue are always out of date. Going by them, PostgreSQL sorts all
            # waiting jobs for each claim, and reads the whole table or compares each job with each
            # to write a batch of outcomes. Every query of a runner has an index, and what it claims
            # and finishes is in memory, so it is to look rows up by primary key, one by one. To
            # leave it no other index, and no estimate by status, these two statements compare
            # status and runner with more than a constant.
            cursor.execute(
                "SET enable_seqscan = off;"
                " SET enable_bitmapscan = off;"
                " SET enable_hashjoin = off;"
                " SET enable_mergejoin = off;"
                " SET random_page_cost = 0;"
                " SET seq_page_cost = 0;"
                " SET jit = off"
            )
        elif connection.vendor == "mysql":
            # REPEATABLE READ also locks gaps between rows, over which two claimers deadlock.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {max(1, round(lock_timeout))}")


def file_of(connection: BaseDatabaseWrapper) -> tuple[int, int] | None:
    """Return what identifies an SQLite file, even under an unchanged name, or None without one."""
    if connection.vendor != "sqlite":
        return None
    try:
        # Not opened: closing it would release SQLite's locks.
        status = os.stat(connection.settings_dict["NAME"])
    except OSError:
        return None
    return status.st_dev, status.st_ino


def socket_of(connection: BaseDatabaseWrapper) -> int:
    """Return the file descriptor of a PostgreSQL connection, −1 for other databases.

    Their drivers have time limits of their own.
    """
    with connection.wrap_database_errors:  # a lost connection no longer has a socket
        return int(connection.connection.fileno()) if connection.vendor == "postgresql" else -1


# Errors


def is_locked(error: BaseException) -> bool:
    """Return whether another transaction's lock was in the way.

    That is a lock timeout, a deadlock or a serialization failure: trying again is enough.
    """
    cause = error.__cause__
    # psycopg2 has a pgcode. PyMySQL has a sqlstate too, but HY000 for a lock timeout.
    codes = {getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *error.args[:1]}
    return not codes.isdisjoint(LOCK_CODES) or "is locked" in str(error)


def is_outage(error: BaseException) -> bool:
    """Return whether the database could not be used at all, whatever it was asked."""
    is_operational = isinstance(error, OperationalError | InterfaceError)
    return is_operational and DATA_CODES.isdisjoint(error.args[:1])


# Sizes


def refuse_too_large(connection: BaseDatabaseWrapper, rows: Iterable[Sequence[Any]]) -> None:
    """Raise `DataError` for rows of values that the server would not accept in one statement.

    MariaDB and MySQL close the connection of a client that sends more than max_allowed_packet. With
    some drivers that looks like an outage, which would be waited out for ever.
    """
    if connection.vendor != "mysql":
        return
    sends_hex = connection.Database.__name__ == "pymysql"  # type: ignore[attr-defined]  # for bytes
    large = [size for row in rows if (size := _sent_bytes(row, sends_hex)) > SURELY_ACCEPTED]
    if not large:
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (limit,) = cursor.fetchone()
    if max(large) > limit:
        raise DataError(
            f"{max(large):,} bytes, and max_allowed_packet of the database server is {limit:,}"
        )


def _sent_bytes(row: Sequence[Any], sends_hex: bool) -> int:
    """Return how many bytes a statement with these values takes: exact if large, else at most."""
    texts = [value.encode() for value in row if isinstance(value, str)]
    blobs = [value for value in row if isinstance(value, bytes)]
    upper_bound = 2 * sum(map(len, texts + blobs)) + SQL_BYTES
    if upper_bound <= SURELY_ACCEPTED:
        return upper_bound
    doubled, escaped = (blobs, texts) if sends_hex else ([], texts + blobs)
    size = 2 * sum(map(len, doubled)) + SQL_BYTES
    return size + sum(len(value) + sum(map(value.count, ESCAPED)) for value in escaped)


def portions(rows: list[T], sizes: list[int]) -> Iterator[list[T]]:
    """Split rows to insert into as many at a time as one statement may hold.

    sizes: of the rows, in bytes.
    """
    start = size = 0
    for end, more in enumerate(sizes):
        is_full = end - start == INSERT_ROWS
        if is_full or (end > start and size + more > SURELY_ACCEPTED // 2):
            yield rows[start:end]
            start, size = end, 0
        size += more
    yield rows[start:]
