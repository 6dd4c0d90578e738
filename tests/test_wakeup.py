"""The contract of the wake-ups (see `peasy_jobs.store.wakeup`), without a runner."""

import ctypes
import selectors
import sys
import threading
from time import monotonic

import pytest
from django.db import ConnectionHandler, InterfaceError, connection, transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import ENQUEUED
from peasy_jobs.store import wakeup
from tests import jobs
from tests.waiting import wait_until

LONG = 20  # seconds, far more than a busy machine needs
WAL = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")
on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has NOTIFY"
)


class FakeClock:
    """Replaces `time.monotonic` in the module of the wake-ups."""

    def __init__(self):
        self.now = monotonic()

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = FakeClock()
    monkeypatch.setattr(wakeup, "monotonic", fake)
    return fake


@pytest.fixture
def wait():
    """Register a wake-up as a runner does, and wait for a signal for so many seconds."""
    with selectors.DefaultSelector() as selector:

        def wait(signals, seconds):
            if signals.fileno() >= 0 and signals.fileno() not in selector.get_map():
                selector.register(signals.fileno(), selectors.EVENT_READ, signals.readable)
            return wakeup.wait(selector, monotonic() + seconds, signals)

        yield wait


def take_signals(signals, wait):
    """Wait until what was committed so far has been signalled, and nothing is left to look for."""
    while wait(signals, 0.5):
        pass
    return signals


# The contract, for each wake-up on its database


@pytest.fixture
def runner_connection(transactional_db):
    own = connection.copy()
    own.ensure_connection()
    yield own
    own.close()


@pytest.fixture(params=["of this database", "polling"])
def signals(request, runner_connection):
    """The wake-up that a runner has on this database, and the one that works on every database."""

    def peek():
        with runner_connection.cursor() as cursor:
            cursor.execute(
                f"SELECT 1 FROM {PeasyJobQueue._meta.db_table} WHERE status = %s LIMIT 1",
                [ENQUEUED],
            )
            return cursor.fetchone() is not None, None

    if request.param == "polling":
        return wakeup.PollWakeup(peek, 60)
    return wakeup.watch(runner_connection, peek, 60)


@pytest.fixture
def announced(monkeypatch):
    """This process has not announced a job just now."""
    monkeypatch.setattr(wakeup, "_notified_at", float("-inf"))


def queries_of(django_connection):
    """Return a list of what is asked of the database over this connection from now on."""
    queries = []
    if django_connection.vendor == "sqlite":
        django_connection.connection.set_trace_callback(queries.append)
    django_connection.execute_wrappers.append(
        lambda execute, sql, *rest: [queries.append(sql), execute(sql, *rest)][1]
    )
    return queries


def test_a_job_that_is_enqueued_while_the_runner_waits_ends_the_wait(signals, wait, announced):
    take_signals(signals, wait)
    later = threading.Timer(0.2, enqueue_in_thread)
    later.start()
    assert wait(signals, LONG)
    later.join()


def enqueue_in_thread():
    jobs.nothing()
    connection.close()


def test_a_job_that_is_enqueued_between_two_calls_is_signalled_by_a_later_call(
    signals, wait, announced
):
    take_signals(signals, wait)
    jobs.nothing()
    assert wait(signals, LONG)


def test_a_job_is_signalled_when_its_transaction_commits(signals, wait, announced):
    take_signals(signals, wait)
    with transaction.atomic():
        jobs.nothing()
        take_signals(signals, wait)
    assert wait(signals, LONG)


def test_without_a_new_job_a_signal_is_given_once(signals, wait, announced):
    take_signals(signals, wait)
    jobs.nothing()
    assert wait(signals, LONG)
    PeasyJobQueue.objects.all().delete()
    take_signals(signals, wait)
    assert not wait(signals, 0.5)


def test_what_was_committed_before_may_be_signalled_or_not_but_never_raises(
    runner_connection, signals
):
    jobs.nothing()
    assert signals.has_signal() in (True, False)


def test_before_check_at_the_database_is_not_used(signals, wait, runner_connection, clock):
    signals.has_signal()
    queries = queries_of(runner_connection)
    clock.now = min(signals.check_at, clock.now + 60) - 0.0001
    assert not signals.has_signal()
    assert queries == []


def test_a_signal_that_comes_before_check_at_is_kept(signals, wait, announced, clock):
    signals.has_signal()
    jobs.nothing()
    signals.has_signal()  # too early for some

    def is_signalled():
        clock.now += 0.2
        with selectors.DefaultSelector() as selector:
            if signals.fileno() >= 0:
                selector.register(signals.fileno(), selectors.EVENT_READ, signals.readable)
            return wakeup.wait(selector, clock.now + 0.01, signals)

    wait_until(is_signalled)


def test_readable_does_not_use_the_database(signals, wait, runner_connection, announced):
    take_signals(signals, wait)
    jobs.nothing()
    queries = queries_of(runner_connection)
    with selectors.DefaultSelector() as selector:
        if signals.fileno() >= 0:
            selector.register(signals.fileno(), selectors.EVENT_READ, signals.readable)
            assert selector.select(LONG)
            signals.readable()
    assert queries == []


def test_a_lost_connection_counts_as_a_signal(signals, wait, runner_connection, monkeypatch):
    def fails():
        raise InterfaceError("the connection is closed")

    monkeypatch.setattr(signals, "has_signal", fails)
    assert wait(signals, LONG)


def test_a_wait_without_a_signal_lasts_as_long_as_it_should(signals, wait):
    take_signals(signals, wait)
    before = monotonic()
    assert not wait(signals, 0.5)
    assert monotonic() >= before + 0.5


# NOTIFY


@on_postgresql
def test_a_notification_that_arrives_during_a_query_is_not_missed(runner_connection):
    signals = wakeup.NotifyWakeup(runner_connection)
    assert not signals.has_signal()
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {wakeup.CHANNEL}")
    # It comes with the answer to a query: the socket does not turn readable for it.
    with runner_connection.cursor() as cursor:
        wait_until(lambda: [cursor.execute("SELECT 1"), signals.has_signal()][1])
    assert not signals.has_signal()


@on_postgresql
def test_a_job_that_is_rolled_back_is_not_announced(runner_connection, wait, announced):
    signals = wakeup.NotifyWakeup(runner_connection)
    with transaction.atomic():
        jobs.nothing()
        transaction.set_rollback(True)
    assert not wait(signals, 0.5)


@on_postgresql
def test_the_recheck_delays_outlast_the_time_without_notifications():
    assert sum(wakeup.NotifyWakeup.recheck_delays) > wakeup.NOTIFY_EVERY


def test_a_notification_before_the_wait_ends_it_at_once():
    """PostgreSQL delivers it with the answer to a query, and the socket does not turn readable."""

    class Notified:
        def fileno(self):
            return -1

        def has_signal(self):
            return True

    with selectors.DefaultSelector() as selector:
        before = monotonic()
        assert wakeup.wait(selector, before + 10, Notified())
        assert monotonic() < before + 10


# Polling


def test_polling_signals_as_long_as_jobs_wait(clock):
    signals = wakeup.PollWakeup(lambda: (True, None), 60)
    for _ in range(3):
        assert signals.has_signal()
        clock.now += wakeup.PEEK_EVERY


def test_polling_signals_once_when_another_scheduled_job_is_the_next(clock):
    found = [False, None]
    signals = wakeup.PollWakeup(lambda: tuple(found), 60)
    assert not signals.has_signal()
    found[1] = "tomorrow"
    clock.now += wakeup.PEEK_EVERY
    assert signals.has_signal()
    clock.now += wakeup.PEEK_EVERY
    assert not signals.has_signal()


def test_polling_is_as_frequent_as_the_polling_interval_asks_for(clock):
    looks = []
    signals = wakeup.PollWakeup(lambda: [looks.append(1), (False, None)][1], 0.01)
    for _ in range(5):
        signals.has_signal()
        clock.now += 0.011
    assert len(looks) == 5


# SQLite, with two connections to a file of its own, whatever database the suite runs on


def no_peek():
    raise AssertionError("SQLite is asked for jobs to find out whether something was committed")


@pytest.fixture(params=[WAL, ""], ids=["WAL", "rollback journal"])
def site(request, tmp_path, django_db_blocker):
    """Two connections to one SQLite file: that of a runner, and that of a process that enqueues."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "db.sqlite3"}
    database["OPTIONS"] = {"init_command": request.param} if request.param else {}
    with django_db_blocker.unblock():
        handler = ConnectionHandler({"default": database, "site": database})
        with handler["site"].cursor() as cursor:
            cursor.execute("CREATE TABLE job (id INTEGER)")
        handler["default"].ensure_connection()
        yield handler["default"], handler["site"]
        handler.close_all()


def insert(site):
    with site.cursor() as cursor:
        cursor.execute("INSERT INTO job VALUES (1)")


def commit_later(site, seconds):
    def commit():
        insert(site)
        site.close()

    site.inc_thread_sharing()
    later = threading.Timer(seconds, commit)
    later.start()
    return later


@on_linux
def test_sqlite_is_not_read_while_nobody_writes(site, wait):
    signals = take_signals(wakeup.watch(site[0], no_peek, 1), wait)
    queries = queries_of(site[0])
    assert not wait(signals, 0.3)
    assert queries == []


def test_a_commit_to_sqlite_ends_the_wait(site, wait):
    signals = take_signals(wakeup.watch(site[0], no_peek, 1), wait)
    for _ in range(3):
        later = commit_later(site[1], 0.1)
        assert wait(signals, LONG)
        later.join()
        assert not wait(signals, 0.5)


def test_a_commit_to_sqlite_ends_the_wait_without_inotify(site, wait, monkeypatch):
    class NoInotify:
        def inotify_init1(self, flags):
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: NoInotify())
    test_a_commit_to_sqlite_ends_the_wait(site, wait)


def test_a_commit_long_after_its_last_write_ends_the_wait(site, wait, monkeypatch):
    """On a slow disk: the kernel has reported the write, and reports nothing for the commit."""
    monkeypatch.setattr(wakeup.SqliteCommitWakeup, "fileno", lambda self: -1)
    monkeypatch.setattr(wakeup.os, "read", lambda descriptor, size: b"")
    signals = take_signals(wakeup.watch(site[0], no_peek, 1), wait)
    signals.readable()
    later = commit_later(site[1], 0.1)
    assert wait(signals, LONG)
    later.join()


@on_linux
def test_a_site_that_always_writes_is_read_as_rarely_as_without_inotify(site, wait):
    signals = take_signals(wakeup.watch(site[0], no_peek, 1), wait)
    queries, over = queries_of(site[0]), threading.Event()

    def write():
        while not over.is_set():
            insert(site[1])
        site[1].close()

    site[1].inc_thread_sharing()
    writer = threading.Thread(target=write)
    writer.start()
    until = monotonic() + 2
    while monotonic() < until:
        wait(signals, 0.1)
    over.set()
    writer.join()
    assert len(queries) <= 2 / wakeup.READ_EVERY * 1.5


def test_many_writes_while_the_runner_is_busy_are_one_event(site, wait):
    signals = take_signals(wakeup.watch(site[0], no_peek, 1), wait)
    for _ in range(20):
        insert(site[1])
    with selectors.DefaultSelector() as selector:
        if signals.fileno() >= 0:
            selector.register(signals.fileno(), selectors.EVENT_READ, signals.readable)
        while selector.select(0):
            signals.readable()
        insert(site[1])
        assert not selector.select(0)
    assert wait(signals, LONG)  # they are found when the runner is idle again
