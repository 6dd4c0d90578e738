"""How an idle runner learns that there may be new work.

The contract of a wake-up:

- It is a hint. A signal may be missed, may come late, and may come without a reason. Correctness
  must not depend on any of them: `PEASY_POLLING_INTERVAL` alone is sufficient, and a signal that
  never comes delays a job by at most that long.
- `has_signal` is edge-triggered: it returns whether something may have changed since the last call,
  and thereby takes the signal. Any number of commits between two calls are one signal.
  `PollWakeup` sees the jobs themselves and is level-triggered: it returns True as long as jobs
  wait.
- What the first call returns is undefined. A runner therefore looks at the queue, or
  claims, once after `watch`, which also finds what was committed before.
- `has_signal` may be called at any time. Before `check_at` it returns False without using the
  database; a signal stays until a later call takes it. It raises what the database raises.
- `fileno` is a descriptor that turns readable when there may be a signal, or −1 without one.
  Whoever selects on it calls `readable` each time, which does not use the database, and calls
  `has_signal` soon.
- One thread calls all of it: the one that owns the connection, the main thread of a runner. `wait`
  calls both methods while the runner is idle, and the runner's loop calls `has_signal` once in each
  iteration.
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

# Returns whether a job may run now, and when the next scheduled job is due.
Peek = Callable[[], tuple[bool, datetime | None]]

CHANNEL = "peasy_jobs"  # of NOTIFY on PostgreSQL
NOTIFY_EVERY = 0.25  # seconds between two notifications of one process
PEEK_EVERY = 0.1  # seconds between two looks of `PollWakeup`

# How often SQLite's change counter is read, in seconds. The interval doubles from the first to the
# second value, and reading stops after the third if the kernel reports the next write.
READ_SOON, READ_EVERY, READ_FOR = 0.001, 0.02, 0.3

IN_MODIFY, IN_ONESHOT = 0x2, 0x80000000  # from <sys/inotify.h>

_notified_at = float("-inf")  # when this process last sent NOTIFY (`time.monotonic()`)


class Wakeup(Protocol):
    """One way to learn of new work. The module's docstring has the contract."""

    description: str  # completes "woken …" in what `run_peasy` says when it starts
    polls: bool  # `has_signal` looks at the queue: no other look for waiting jobs is needed
    check_at: float  # when to call `has_signal` although `fileno` is not readable (`monotonic`)
    # Seconds after a signal, one after the other, until the queue is looked at again. Empty unless
    # a signal may come before the commit of another job that it also stands for. If there are any,
    # a signal is sent for jobs only, and the runner may claim without a look.
    recheck_delays: tuple[float, ...]

    def fileno(self) -> int: ...

    def readable(self) -> None: ...

    def has_signal(self) -> bool: ...


def announce(alias: str) -> None:
    """Signal idle runners that a job was enqueued, once the caller's transaction commits."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return
    if not connection.in_atomic_block and not connection.get_autocommit():
        return  # Django does not know when the caller commits: polling finds the job
    transaction.on_commit(lambda: _notify(connection), using=alias, robust=True)


def _notify(connection: BaseDatabaseWrapper) -> None:
    # PostgreSQL serialises the commits of all transactions that notify, so not one for every job.
    # The recheck delays of `NotifyWakeup` find the jobs that are left out.
    global _notified_at
    if monotonic() - _notified_at < NOTIFY_EVERY:
        return
    _notified_at = monotonic()
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


def watch(connection: BaseDatabaseWrapper, peek: Peek, polling_interval: float) -> Wakeup:
    """Return the cheapest wake-up for this connection, which must be the runner's own.

    polling_interval: seconds within which a job must be found in any case.
    """
    if connection.vendor == "sqlite":
        return SqliteCommitWakeup(connection)
    # Only psycopg 3 calls a handler; psycopg2 collects notifications in a list.
    if connection.vendor == "postgresql" and hasattr(connection.connection, "add_notify_handler"):
        return NotifyWakeup(connection)
    return PollWakeup(peek, polling_interval)


def wait(selector: selectors.BaseSelector, until: float, wakeup: Wakeup | None) -> bool:
    """Wait until `until` (`time.monotonic()`), an event or a signal.

    Return whether it was a signal.

    Every registered file object has a callable as its data, which is called when it turns readable.
    """
    # A loop of its own, because an iteration of the runner takes ten times as long, and `check_at`
    # may pass 50 times a second.
    wakeup_fd = wakeup.fileno() if wakeup is not None else -1
    while (timeout := until - monotonic()) > 0:
        if wakeup is not None:
            # Also before the first select: a notification that arrived during a query does not make
            # the socket readable.
            if _has_signal_or_error(wakeup):
                return True
            timeout = min(timeout, wakeup.check_at - monotonic())
        if _call_readable(selector, timeout, wakeup_fd):
            return False
    _call_readable(selector, 0, wakeup_fd)
    return False


def _has_signal_or_error(wakeup: Wakeup) -> bool:
    try:
        return wakeup.has_signal()
    except (DatabaseError, InterfaceError):
        return True  # the runner's next iteration meets the same error and handles it


def _call_readable(selector: selectors.BaseSelector, timeout: float, wakeup_fd: int) -> bool:
    """Handle what turns readable within `timeout`. Return whether there was an event."""
    ready = selector.select(max(0, timeout))
    for key, _ in ready:
        key.data()
    return any(key.fd != wakeup_fd for key, _ in ready)


class SqliteCommitWakeup:
    """SQLite: read `PRAGMA data_version`, which changes with every commit of another connection.

    On Linux inotify reports that the file or its write-ahead log is being written to, and the
    pragma is read only for a moment after that. Elsewhere it is read every `READ_EVERY` seconds.
    """

    description = "by every commit"
    polls = False
    recheck_delays: tuple[float, ...] = ()

    is_watched: bool  # the kernel will report the next write
    interval: float  # seconds to the next read
    check_at: float
    stop_reading_at: float

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.seen: Any = None  # the last data_version
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA database_list")
            path = cursor.fetchall()[0][2]
        self.files = [os.fsencode(path), os.fsencode(f"{path}-wal")]
        self.libc = ctypes.CDLL(None)
        self.inotify = -1
        if sys.platform == "linux":
            self.inotify = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.inotify >= 0:
            weakref.finalize(self, os.close, self.inotify)
        self._start_reading()

    def fileno(self) -> int:
        return self.inotify

    def readable(self) -> None:
        os.read(self.inotify, 4096)
        self._start_reading()

    def has_signal(self) -> bool:
        now = monotonic()
        if now < self.check_at:
            return False
        self.interval = min(2 * self.interval, READ_EVERY)
        self.check_at = now + self.interval
        if now > self.stop_reading_at:
            # Stop only when the kernel has been watching since the previous call: what was being
            # written when the watch began is found by this last one.
            if self.is_watched:
                self.check_at = float("inf")
            self.is_watched = self._watch_files()
        # The driver's own cursor: Django's takes ten times as long as the pragma.
        with self.connection.wrap_database_errors:
            version = self.connection.connection.execute("PRAGMA data_version").fetchone()
        has_changed = bool(version != self.seen)
        self.seen = version
        return has_changed

    def _start_reading(self) -> None:
        # Soon and often at first: a write is reported a moment before it becomes a commit.
        self.is_watched = False
        self.interval = READ_SOON
        self.check_at = monotonic() + READ_SOON
        self.stop_reading_at = monotonic() + READ_FOR

    def _watch_files(self) -> bool:
        """Have the kernel report the next write to the database or its log. Return whether it does.

        One-shot, so that a busy site costs one event and not one for every write. Neither file is
        opened: closing it would drop SQLite's locks.
        """
        if self.inotify < 0:
            return False
        database, *_ = [  # without WAL there is no log to watch
            self.libc.inotify_add_watch(self.inotify, file, IN_MODIFY | IN_ONESHOT)
            for file in self.files
        ]
        return bool(database >= 0)


class NotifyWakeup:
    """PostgreSQL: LISTEN for the NOTIFY that is sent by whoever enqueues a job."""

    description = "by NOTIFY"
    polls = False
    check_at = float("inf")
    recheck_delays: tuple[float, ...] = (0.05, 0.1, 0.2)  # together longer than `NOTIFY_EVERY`

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.notified = False
        self.has_input = False
        self.wrapper = connection
        self.connection = connection.connection
        self.descriptor = int(self.connection.fileno())
        self.connection.add_notify_handler(self._handle)
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")

    def fileno(self) -> int:
        return self.descriptor

    def readable(self) -> None:
        self.has_input = True

    def has_signal(self) -> bool:
        if self.has_input:
            self.has_input = False
            # libpq directly: psycopg's notifies() warns when there is a handler as well.
            server = self.connection.pgconn
            with self.wrapper.wrap_database_errors:
                server.consume_input()
                while server.notifies():
                    self.notified = True
        notified, self.notified = self.notified, False
        return notified

    def _handle(self, notification: object) -> None:
        """Called by psycopg for a notification that arrives with the answer to a query."""
        self.notified = True


class PollWakeup:
    """MariaDB, MySQL, and PostgreSQL with psycopg2: look at the queue ten times a second."""

    description = f"by a look every {PEEK_EVERY:g} s"
    polls = True
    recheck_delays: tuple[float, ...] = ()

    def __init__(self, peek: Peek, polling_interval: float) -> None:
        self.peek = peek
        self.interval = min(PEEK_EVERY, polling_interval)
        self.seen: tuple[bool, datetime | None] = False, None
        self.check_at = 0.0

    def fileno(self) -> int:
        return -1

    def readable(self) -> None:
        pass

    def has_signal(self) -> bool:
        if monotonic() < self.check_at:
            return False
        self.check_at = monotonic() + self.interval
        found = self.peek()
        # Also when the next scheduled job is another one: the runner waits for it from then on.
        has_changed = found != self.seen
        self.seen = found
        is_waiting, _ = found
        return is_waiting or has_changed
