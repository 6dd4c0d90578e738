"""How an idle runner learns of new work. Each way is only a hint that leads to a look at the queue.

None of them may be needed: a hint that never comes costs at most one `PEASY_POLLING_INTERVAL`.
"""

from __future__ import annotations

import selectors
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from django.db import DatabaseError, InterfaceError, connections, transaction

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

CHANNEL = "peasy_jobs"
ANNOUNCE_EVERY = 0.25  # seconds

_announced = float("-inf")


class Wakeup(Protocol):
    """What a runner asks while it is idle."""

    description: str
    interval: float | None  # seconds between two calls of `hinted`; None: `fileno` turns readable instead
    follow_ups: tuple[float, ...]  # seconds between the looks after a hint: they find what was not announced

    def fileno(self) -> int: ...

    def readable(self) -> None: ...

    def hinted(self) -> bool: ...


def announce(alias: str) -> None:
    """Tell idle runners that a job was enqueued, once the caller's transaction is committed."""
    connection = connections[alias]
    # With autocommit off nobody tells us of the commit: the runner's next look finds the job.
    if connection.vendor == "postgresql" and (connection.in_atomic_block or connection.get_autocommit()):
        transaction.on_commit(lambda: _notify(connection), using=alias, robust=True)


def _notify(connection: BaseDatabaseWrapper) -> None:
    # A transaction that notifies holds a lock of the whole server while it commits, so not one for every job.
    global _announced
    if monotonic() - _announced < ANNOUNCE_EVERY:
        return
    _announced = monotonic()
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def watch(connection: BaseDatabaseWrapper) -> Wakeup:
    """The cheapest way to hear of commits on this connection, which must be the runner's own."""
    if connection.vendor == "sqlite":
        return DataVersion(connection)
    if connection.vendor == "postgresql" and hasattr(connection.connection, "add_notify_handler"):
        return Listen(connection)
    return Look()


def wait(selector: selectors.BaseSelector, until: float, wakeup: Wakeup | None) -> bool:
    """Wait until then (`time.monotonic()`), until something arrives, or for a hint. Returns whether there was one."""
    # A loop of its own: a whole turn of the runner takes ten times as long, and there would be 50 a second.
    interval = wakeup.interval if wakeup else None
    while (left := until - monotonic()) > 0:
        try:  # before it waits as well: what PostgreSQL says during a query leaves the socket silent
            if wakeup is not None and wakeup.hinted():
                return True
        except (DatabaseError, InterfaceError):
            return True  # the next turn meets it as well, and deals with it
        if _collect(selector, left if interval is None else min(left, interval)):
            return False
    _collect(selector, 0)
    return False


def _collect(selector: selectors.BaseSelector, timeout: float) -> bool:
    arrived = selector.select(timeout)
    for key, _ in arrived:
        key.data()
    return bool(arrived)


class DataVersion:
    """SQLite: a number that changes with every commit of another connection, read without touching the file."""

    description = "by every commit (data_version)"
    interval: float | None = 0.02
    follow_ups: tuple[float, ...] = ()

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.seen: Any = None

    def fileno(self) -> int:
        return -1

    def readable(self) -> None:
        pass

    def hinted(self) -> bool:
        # Past Django's cursor, which takes ten times as long as the pragma and is asked 50 times a second.
        with self.connection.wrap_database_errors:
            version = self.connection.connection.execute("PRAGMA data_version").fetchone()
        changed, self.seen = bool(version != self.seen), version
        return changed


class Listen:
    """PostgreSQL: NOTIFY, sent by whoever enqueues."""

    description = "by NOTIFY"
    interval: float | None = None
    follow_ups: tuple[float, ...] = (0.05, 0.1, 0.2)

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.notified = self.unread = False
        self.wrapper, self.connection = connection, connection.connection
        self.connection.add_notify_handler(self._notified)
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")

    def _notified(self, notification: object) -> None:
        self.notified = True

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def readable(self) -> None:
        self.unread = True

    def hinted(self) -> bool:
        if self.unread:
            self.unread = False
            # Not psycopg's notifies(), which warns that it does not go together with a handler.
            server = self.connection.pgconn
            with self.wrapper.wrap_database_errors:
                server.consume_input()
                while server.notifies():
                    self.notified = True
        # One that arrived during a query has left the socket silent, but called the handler.
        notified, self.notified = self.notified, False
        return notified


class Look:
    """MariaDB, MySQL: nothing to hear, so the queue itself is looked at ten times a second."""

    description = "by a look every 0.1 s"
    interval: float | None = 0.1
    follow_ups: tuple[float, ...] = ()

    def __init__(self) -> None:
        self.look_at = 0.0

    def fileno(self) -> int:
        return -1

    def readable(self) -> None:
        pass

    def hinted(self) -> bool:
        if monotonic() < self.look_at:
            return False
        self.look_at = monotonic() + 0.09
        return True
