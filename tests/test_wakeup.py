"""How an idle runner hears of commits: what no server is needed for."""

import ctypes
import selectors
import sys
import threading
from time import monotonic

import pytest
from django.db import ConnectionHandler

from peasy_jobs.store import wakeup

LONG = 20  # seconds, far above what a busy machine needs
WAL = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"


def no_peek():
    raise AssertionError("SQLite is not asked for jobs to find out whether something was committed")


@pytest.fixture(params=[WAL, ""], ids=["WAL", "rollback journal"])
def site(request, tmp_path, django_db_blocker):
    """Two connections to one SQLite file: that of a runner, and that of who enqueues."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "db.sqlite3"}
    database["OPTIONS"] = {"init_command": request.param} if request.param else {}
    with django_db_blocker.unblock():
        handler = ConnectionHandler({"default": database, "site": database})
        with handler["site"].cursor() as cursor:
            cursor.execute("CREATE TABLE job (id INTEGER)")
        handler["default"].ensure_connection()
        yield handler["default"], handler["site"]
        handler.close_all()


@pytest.fixture
def waiting():
    """Registers a wake-up as a runner does, and waits for it."""
    with selectors.DefaultSelector() as selector:

        def wait(hints, seconds):
            if hints.fileno() >= 0 and hints.fileno() not in selector.get_map():
                selector.register(hints.fileno(), selectors.EVENT_READ, hints.readable)
            return wakeup.wait(selector, monotonic() + seconds, hints)

        yield wait


def insert(site):
    with site.cursor() as cursor:
        cursor.execute("INSERT INTO job VALUES (1)")


def settled(hints, waiting):
    """What was there before has been seen, and nothing is left to look for."""
    while waiting(hints, 0.5):
        pass
    return hints


def looks(connection):
    """Counts, from now on, how often this connection is asked whether something was committed."""
    asked = []
    connection.connection.set_trace_callback(asked.append)
    return asked


def committed_later(site, seconds):
    def commit():
        insert(site)
        site.close()

    site.inc_thread_sharing()
    later = threading.Timer(seconds, commit)
    later.start()
    return later


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")
def test_while_nobody_writes_sqlite_is_not_looked_at(site, waiting):
    hints = settled(wakeup.watch(site[0], no_peek, 1), waiting)
    asked = looks(site[0])
    assert not waiting(hints, 0.3)
    assert asked == []


def test_a_commit_ends_the_wait(site, waiting):
    hints = settled(wakeup.watch(site[0], no_peek, 1), waiting)
    for _ in range(3):
        later = committed_later(site[1], 0.1)
        assert waiting(hints, LONG)
        later.join()
        assert not waiting(hints, 0.5)


def test_a_commit_ends_the_wait_where_the_kernel_watches_nothing(site, waiting, monkeypatch):
    class NoInotify:
        def inotify_init1(self, flags):
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: NoInotify())
    test_a_commit_ends_the_wait(site, waiting)


def test_a_commit_that_becomes_one_long_after_its_last_write_ends_the_wait(
    site, waiting, monkeypatch
):
    """A slow disk: the kernel has told of the write, and tells of nothing when it is valid."""
    monkeypatch.setattr(wakeup.SqliteCommitWakeup, "fileno", lambda self: -1)
    monkeypatch.setattr(wakeup.os, "read", lambda descriptor, size: b"")
    hints = settled(wakeup.watch(site[0], no_peek, 1), waiting)
    hints.readable()
    later = committed_later(site[1], 0.1)
    assert waiting(hints, LONG)
    later.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has inotify")
def test_a_site_that_writes_all_the_time_is_looked_at_as_often_as_without_inotify(site, waiting):
    hints = settled(wakeup.watch(site[0], no_peek, 1), waiting)
    asked, over = looks(site[0]), threading.Event()

    def write():
        while not over.is_set():
            insert(site[1])
        site[1].close()

    site[1].inc_thread_sharing()
    writer = threading.Thread(target=write)
    writer.start()
    until = monotonic() + 2
    while monotonic() < until:
        waiting(hints, 0.1)
    over.set()
    writer.join()
    assert len(asked) <= 2 / wakeup.CLOCK_EVERY * 1.5


def test_a_runner_that_is_busy_is_told_of_one_write_and_not_of_each(site, waiting):
    hints = settled(wakeup.watch(site[0], no_peek, 1), waiting)
    for _ in range(20):
        insert(site[1])
    with selectors.DefaultSelector() as selector:
        if hints.fileno() >= 0:
            selector.register(hints.fileno(), selectors.EVENT_READ, hints.readable)
        while selector.select(0):
            hints.readable()
        insert(site[1])
        assert not selector.select(0)
    assert waiting(hints, LONG)  # it sees them once it looks


def test_what_is_announced_before_a_runner_waits_ends_the_wait_at_once():
    """PostgreSQL says it during a query: then the socket stays silent."""

    class Announced:
        def fileno(self):
            return -1

        def has_signal(self):
            return True

    with selectors.DefaultSelector() as selector:
        before = monotonic()
        assert wakeup.wait(selector, before + 10, Announced())
        assert monotonic() < before + 10
