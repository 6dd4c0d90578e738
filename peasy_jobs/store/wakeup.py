"""How an idle runner learns of new work. Each way is only a hint that leads to a look at the queue.

None of them may be needed: a hint that never comes costs at most one `PEASY_POLLING_INTERVAL`.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import sys
import weakref
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from django.db import DatabaseError, InterfaceError, connections, transaction

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

Peek = Callable[
    [], tuple[bool, datetime | None]
]  # whether a job may run now, and when the next one is due

CHANNEL = "peasy_jobs"
ANNOUNCE_EVERY, LOOK_EVERY = 0.25, 0.1  # seconds
SOON, CLOCK_EVERY, CLOCK_RUNS = (
    0.001,
    0.02,
    0.3,
)  # seconds: how SQLite is looked at while somebody writes
IN_MODIFY, IN_ONESHOT = 0x2, 0x80000000  # of inotify.h

_announced = float("-inf")


class Wakeup(Protocol):
    """What a runner asks while it is idle."""

    description: str
    polls: bool  # whether `has_signal` looks at the queue, so that nobody else has to
    check_at: float  # when to call `has_signal` (`time.monotonic()`), if `fileno` does not turn readable before
    recheck_delays: tuple[
        float, ...
    ]  # seconds between the looks after a hint: they find what was not announced

    def fileno(self) -> int: ...

    def readable(self) -> None: ...

    def has_signal(self) -> bool: ...


def announce(alias: str) -> None:
    """Tell idle runners that a job was enqueued, once the caller's transaction is committed."""
    connection = connections[alias]
    # With autocommit off nobody tells us of the commit: the runner's next look finds the job.
    if connection.vendor == "postgresql" and (
        connection.in_atomic_block or connection.get_autocommit()
    ):
        transaction.on_commit(lambda: _notify(connection), using=alias, robust=True)


def _notify(connection: BaseDatabaseWrapper) -> None:
    # A transaction that notifies holds a lock of the whole server while it commits, so not one for every job.
    global _announced
    if monotonic() - _announced < ANNOUNCE_EVERY:
        return
    _announced = monotonic()
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def watch(connection: BaseDatabaseWrapper, peek: Peek, polling_interval: float) -> Wakeup:
    """The cheapest way to hear of commits on this connection, which must be the runner's own.

    polling_interval: seconds within which a job has to be found in any case.
    """
    if connection.vendor == "sqlite":
        return SqliteCommitWakeup(connection)
    if connection.vendor == "postgresql" and hasattr(connection.connection, "add_notify_handler"):
        return NotifyWakeup(connection)
    return PollWakeup(peek, polling_interval)


def wait(selector: selectors.BaseSelector, until: float, wakeup: Wakeup | None) -> bool:
    """Wait until then (`time.monotonic()`), until something arrives, or for a hint. Returns whether there was one."""
    # A loop of its own: a whole turn of the runner takes ten times as long, and there may be 50 a second.
    listening = wakeup.fileno() if wakeup else -1
    while (left := until - monotonic()) > 0:
        try:  # before it waits as well: what PostgreSQL says during a query leaves the socket silent
            if wakeup is not None and wakeup.has_signal():
                return True
        except (DatabaseError, InterfaceError):
            return True  # the next turn meets it as well, and deals with it
        if wakeup is not None:
            left = min(left, wakeup.check_at - monotonic())
        if _collect(selector, left, listening):
            return False
    _collect(selector, 0, listening)
    return False


def _collect(selector: selectors.BaseSelector, timeout: float, listening: int) -> bool:
    """Returns whether anything has arrived but what may be a hint."""
    arrived = selector.select(max(0, timeout))
    for key, _ in arrived:
        key.data()
    return any(key.fd != listening for key, _ in arrived)


class SqliteCommitWakeup:
    """SQLite: a number that changes with every commit of another connection, read without touching the file.

    It is read by the clock, which stands still once the kernel watches the files (Linux's inotify) and nobody writes.
    """

    description = "by every commit"
    polls = False
    recheck_delays: tuple[float, ...] = ()

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.seen: Any = None
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA database_list")
            path = cursor.fetchall()[0][2]
        self.files = [os.fsencode(path), os.fsencode(f"{path}-wal")]
        self.libc = ctypes.CDLL(None)
        self.inotify = (
            self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if sys.platform == "linux" else -1
        )
        if self.inotify >= 0:
            weakref.finalize(self, os.close, self.inotify)
        self._wind_up()

    def _wind_up(self) -> None:
        """Let the clock run for a while, first fast: what was written is a commit only a moment later."""
        self.watched, self.pause = False, SOON
        self.check_at, self.stop_at = monotonic() + SOON, monotonic() + CLOCK_RUNS

    def fileno(self) -> int:
        return self.inotify

    def readable(self) -> None:
        os.read(self.inotify, 4096)
        self._wind_up()

    def has_signal(self) -> bool:
        now = monotonic()
        if now < self.check_at:
            return False
        self.pause = min(2 * self.pause, CLOCK_EVERY)
        self.check_at = now + self.pause
        if now > self.stop_at:
            if self.watched:  # and what was being written when that began has been looked for
                self.check_at = float("inf")
            self.watched = self._watches()
        # Past Django's cursor, which takes ten times as long as the pragma.
        with self.connection.wrap_database_errors:
            version = self.connection.connection.execute("PRAGMA data_version").fetchone()
        changed, self.seen = bool(version != self.seen), version
        return changed

    def _watches(self) -> bool:
        """Have the kernel say when the database's file or its log is written to, once. Neither is opened."""
        if self.inotify < 0:
            return False
        watched = [
            self.libc.inotify_add_watch(self.inotify, file, IN_MODIFY | IN_ONESHOT)
            for file in self.files
        ]
        return bool(watched[0] >= 0)  # without WAL there is no log


class NotifyWakeup:
    """PostgreSQL: NOTIFY, sent by whoever enqueues."""

    description = "by NOTIFY"
    polls = False
    check_at = float("inf")
    recheck_delays: tuple[float, ...] = (0.05, 0.1, 0.2)

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.notified = self.unread = False
        self.wrapper, self.connection = connection, connection.connection
        self.descriptor = int(self.connection.fileno())
        self.connection.add_notify_handler(self._notified)
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")

    def _notified(self, notification: object) -> None:
        self.notified = True

    def fileno(self) -> int:
        return self.descriptor

    def readable(self) -> None:
        self.unread = True

    def has_signal(self) -> bool:
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


class PollWakeup:
    """MariaDB, MySQL, and PostgreSQL with psycopg2: nothing to hear, so the queue is looked at ten times a second.

    A runner that is not connected holds one too.
    """

    description = "by a look every 0.1 s"
    polls = True
    recheck_delays: tuple[float, ...] = ()

    def __init__(self, peek: Peek, polling_interval: float) -> None:
        self.peek, self.pause = peek, min(LOOK_EVERY, polling_interval)
        self.seen: tuple[bool, datetime | None] = False, None
        self.check_at = 0.0

    def fileno(self) -> int:
        return -1

    def readable(self) -> None:
        pass

    def has_signal(self) -> bool:
        if monotonic() < self.check_at:
            return False
        self.check_at = monotonic() + self.pause
        found = self.peek()
        changed, self.seen = found != self.seen, found
        return found[0] or changed
