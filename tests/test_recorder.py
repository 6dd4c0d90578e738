"""Outcomes and progress on their way into a database that does not always take them."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.db import DatabaseError, OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import recorder
from peasy_jobs.runner.recorder import PROGRESS_EVERY, WRITE_AGAIN, WRITE_EVERY, Recorder
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock, as_field, database_now
from peasy_jobs.store.querysets import Claim, JobUpdate
from peasy_jobs.workers.protocol import Report
from tests.concurrent_processes import TABLE, locked

pytestmark = pytest.mark.django_db(transaction=True)

jobs = PeasyJobQueue.objects
ME, ANOTHER = 1, 2
SQLITE, MARIADB = (settings.TEST_DATABASE == name for name in ("sqlite", "mariadb"))
PYMYSQL = MARIADB and os.environ.get("PEASY_TEST_MARIADB_DRIVER", "pymysql") == "pymysql"
servers_only = pytest.mark.skipif(SQLITE, reason="SQLite locks the whole file")


class Time:
    """What the recorder takes for `time.monotonic()`."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(recorder, "monotonic", clock)
    return clock


@pytest.fixture
def book(transactional_db: None) -> Iterator[Recorder]:
    """A recorder on a connection that gives up a lock as soon as the database can."""
    vendors.configure_session(connection, 0.05)
    clock = Clock(connection)
    clock.sync()
    yield Recorder(connection, jobs.all(), clock)
    connection.close()


def claimed(count: int) -> list[Claim]:
    for _ in range(count):
        jobs.create(title="a job", job_name="tests.jobs.nothing")
    now = as_field(database_now(connection))
    return jobs.claim(ClaimRequest(runner_id=ME, limit=count, now=now))


def done(claim: Claim, **columns: Any) -> JobUpdate:
    return JobUpdate(claim=claim, status=COMPLETED, **{"result": b"J1", **columns})


def statuses(*claims: Claim) -> list[str]:
    return [row(claim).status for claim in claims]


def row(claim: Claim) -> PeasyJobQueue:
    return jobs.get(pk=claim.pk)


def shown(claim: Claim) -> tuple[str, Any]:
    return row(claim).status_msg, row(claim).extra


# Endings


def test_a_batch_is_written_and_forgotten(book):
    one, two = claimed(2)
    book.end(done(one))
    book.end(JobUpdate(claim=two, status=ENQUEUED, attempts=-1))

    assert book.write(ME, urgent=True) is True, "something went back to the queue"

    assert statuses(one, two) == [COMPLETED, ENQUEUED]
    assert book.endings == []
    assert book.write(ME, urgent=True) is False


@pytest.fixture
def zone(request, transactional_db, settings):
    """A site with `USE_TZ` or without, and the zone of its columns."""
    settings.USE_TZ, zone = request.param
    with mock.patch.dict(connection.settings_dict, TIME_ZONE=zone):
        forget_zone()
        yield
    forget_zone()


def forget_zone():
    connection.close()
    for name in ("timezone", "timezone_name"):
        vars(connections["default"]).pop(name, None)  # `connection` is a proxy, and forgets nothing


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize(
    "zone",
    [(True, None), (True, "Asia/Kathmandu"), (False, None)],
    ids=["UTC", "zone of its own", "naive"],
    indirect=True,
)
def test_times_are_stored_as_django_stores_them(zone, fraction):
    clock = Clock(connection)
    clock.offset = 1_800_000_000.0 + fraction
    (one,) = claimed(1)
    started, completed = clock.at(0.0), clock.at(3600.0)

    assert jobs.end(ME, [done(one, started=started, completed=completed)], completed) == []

    jobs.create(
        title="by Django", job_name="tests.jobs.nothing", started=started, completed=completed
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT started, completed FROM {TABLE}")
        by_us, by_django = cursor.fetchall()
    assert by_us == by_django
    assert (row(one).started, row(one).completed) == (started, completed)


def test_batches_are_written_a_moment_apart_unless_it_is_urgent(book, time):
    first, second, third = claimed(3)
    book.end(done(first))
    book.write(ME, urgent=False)
    assert book.next_write(urgent=False) == float("inf")

    book.end(done(second))
    book.write(ME, urgent=False)
    assert statuses(first, second) == [COMPLETED, ONGOING]
    assert book.next_write(urgent=False) == time.now + WRITE_EVERY
    time.now += WRITE_EVERY
    book.write(ME, urgent=False)
    assert row(second).status == COMPLETED

    book.end(done(third))
    assert book.next_write(urgent=True) <= time.now
    book.write(ME, urgent=True)
    assert row(third).status == COMPLETED


@servers_only
def test_a_locked_job_waits_and_the_others_land(book, time):
    first, held, last = claimed(3)
    for claim in (first, held, last):
        book.end(done(claim))

    with locked(held.pk):
        book.write(ME, urgent=True)
        assert statuses(first, held, last) == [COMPLETED, ONGOING, COMPLETED]
        assert [ending.claim for ending in book.unwritten] == [held]
        with CaptureQueriesContext(connection) as context:
            book.write(ME, urgent=True)
        assert len(context) == 0, "it is left alone for a moment, however urgent"
        assert book.next_write(urgent=True) == time.now + WRITE_AGAIN

    time.now += WRITE_AGAIN
    book.write(ME, urgent=True)
    assert row(held).status == COMPLETED
    assert book.unwritten == []


@servers_only
def test_a_locked_job_does_not_hold_up_what_ends_after_it(book, time):
    held, later = claimed(2)
    book.end(done(held))
    with locked(held.pk):
        book.write(ME, urgent=True)
        book.end(done(later))
        time.now += WRITE_AGAIN
        book.write(ME, urgent=True)
        assert statuses(held, later) == [ONGOING, COMPLETED]


@servers_only
def test_a_locked_job_is_tried_as_often_whatever_ends_meanwhile(book, time, monkeypatch):
    """Each try may take as long as the lock timeout, and everything waits for it."""
    held, *others = claimed(21)
    tries = 0
    end = querysets.JobQuerySet.end

    def counted(self: Any, runner: int, endings: list[JobUpdate], now: Any) -> Any:
        nonlocal tries
        tries += any(ending.claim is held for ending in endings)
        return end(self, runner, endings, now)

    monkeypatch.setattr(querysets.JobQuerySet, "end", counted)
    book.end(done(held))
    with locked(held.pk):
        for claim in others:
            book.end(done(claim))
            book.write(ME, urgent=True)
            assert statuses(claim) == [COMPLETED]
        assert tries == 2, "in its batch and by itself"


@servers_only
def test_many_locked_jobs_take_no_longer_than_a_few(book, monkeypatch):
    """The heartbeat waits for it."""
    monkeypatch.setattr(recorder, "ROW_BY_ROW", 0.0)
    claims = claimed(5)
    for claim in claims:
        book.end(done(claim))
    tried: list[list[int]] = []
    end = querysets.JobQuerySet.end

    def counted(self: Any, runner: int, endings: list[JobUpdate], now: Any) -> Any:
        tried.append([ending.claim.pk for ending in endings])
        return end(self, runner, endings, now)

    monkeypatch.setattr(querysets.JobQuerySet, "end", counted)
    pks = [claim.pk for claim in claims]
    with locked(*pks):
        book.write(ME, urgent=True)

        assert tried == [pks, pks[:1]]
        for _ in pks[1:]:
            book.write(ME, urgent=True)
        assert [ending.claim.pk for ending in book.unwritten] == pks
        tried.clear()
        for _ in pks:
            book.locked_at = 0
            book.write(ME, urgent=True)
        assert tried == [[pk] for pk in pks], "one at a time, and not always the same"
    for _ in pks:
        book.locked_at = 0
        book.write(ME, urgent=True)
    assert set(statuses(*claims)) == {COMPLETED}


@pytest.mark.skipif(not SQLITE, reason="only SQLite locks the whole file")
def test_a_locked_file_keeps_all_and_says_so(book, time):
    first, second = claimed(2)
    book.end(done(first))
    book.end(done(second))
    book.report(Report(second.pk, 1, "half way", None))

    with locked(first.pk):
        with pytest.raises(OperationalError, match="locked"):
            book.write(ME, urgent=True)
    assert statuses(first, second) == [ONGOING, ONGOING]

    time.now += WRITE_EVERY
    book.write(ME, urgent=True)
    assert statuses(first, second) == [COMPLETED, COMPLETED]


def test_an_outage_keeps_all_and_says_so(book, time, monkeypatch):
    (job,) = claimed(1)
    book.end(done(job))

    def away(*args: Any) -> None:
        raise OperationalError("the server has gone away")

    with monkeypatch.context() as patch:
        patch.setattr(querysets.JobQuerySet, "end", away)
        with pytest.raises(OperationalError, match="gone away"):
            book.write(ME, urgent=True)

    assert [ending.claim for ending in book.endings] == [job]
    time.now += WRITE_EVERY
    book.write(ME, urgent=True)
    assert row(job).status == COMPLETED


UNSTORABLE = {
    "a lone surrogate": {"status_msg": "\ud800"},
    "extra that is no JSON": {"extra": "{"},
    "a number that is too low": {"attempts": -5},
    **({} if SQLITE else {"a message that is too long": {"status_msg": "x" * 300}}),
    **({} if SQLITE or MARIADB else {"NUL": {"status_msg": "a\0b"}}),
    **({"extra nested too deep": {"extra": "[" * 40 + "]" * 40}} if MARIADB else {}),
    **(
        {"a result of more than max_allowed_packet": {"result": b"J" + b"0" * 17 * 2**20}}
        if MARIADB
        else {}
    ),
    **(
        {"a result that is more in hexadecimal": {"result": b"J" + b"0" * 9 * 2**20}}
        if PYMYSQL
        else {}
    ),
}


@pytest.mark.parametrize("wrong", UNSTORABLE.values(), ids=UNSTORABLE)
def test_what_the_database_refuses_fails_that_job_plainly_and_the_rest_lands(book, caplog, wrong):
    first, bad, last = claimed(3)
    times = {name: as_field(database_now(connection)) for name in ("started", "completed")}
    book.end(done(first))
    book.end(done(bad, **times, **wrong))
    book.end(done(last))

    with caplog.at_level(logging.ERROR, "peasy_jobs"):
        book.write(ME, urgent=True)

    assert statuses(first, bad, last) == [COMPLETED, FAILED, COMPLETED]
    assert book.endings == []
    job = row(bad)
    assert job.error.startswith("What came of this job cannot be stored: ")
    assert (job.started, job.completed, job.runner, job.result) == (
        times["started"],
        times["completed"],
        None,
        None,
    )
    assert [record.message for record in caplog.records] == [
        f"a job (job {bad.pk}) failed: {job.error}"
    ]


def test_a_job_that_goes_back_with_what_the_database_refuses_has_ended(book):
    (job,) = claimed(1)
    book.report(Report(job.pk, 1, "\ud800", None))
    book.end(JobUpdate(claim=job, status=ENQUEUED, attempts=-1))

    book.write(ME, urgent=True)

    assert row(job).status == FAILED
    assert row(job).completed is not None, "else it is never pruned"


def test_an_outcome_that_came_too_late_is_dropped_and_logged(book, caplog):
    taken, mine = claimed(2)
    jobs.filter(pk=taken.pk).update(status=CANCELLED)
    book.end(done(taken))
    book.end(done(mine))

    with caplog.at_level(logging.INFO, "peasy_jobs"):
        book.write(ME, urgent=True)

    assert statuses(taken, mine) == [CANCELLED, COMPLETED]
    assert book.endings == []
    assert (
        f"a job (job {taken.pk}) ended, but it had been cancelled or taken from this runner."
        in caplog.messages
    )


# Progress


def writes(action: Callable[[], Any]) -> int:
    """How often a job's row is written."""
    with CaptureQueriesContext(connection) as context:
        action()
    return sum(query["sql"].startswith("UPDATE") and TABLE in query["sql"] for query in context)


def test_of_many_reports_the_last_is_written(book):
    (job,) = claimed(1)
    for number in range(100):
        book.report(Report(job.pk, 1, f"row {number}", json.dumps({"progress": number})))

    assert writes(lambda: book.write(ME, urgent=False)) == 1

    assert shown(job) == ("row 99", {"progress": 99})
    assert book.progress == {}


def test_a_message_and_an_extra_that_were_reported_apart_are_both_written(book):
    (job,) = claimed(1)
    book.report(Report(job.pk, 1, "importing", None))
    book.report(Report(job.pk, 1, None, '{"progress": 5}'))

    book.write(ME, urgent=False)

    assert shown(job) == ("importing", {"progress": 5})


def test_progress_is_written_a_few_times_a_second_however_urgent(book, time):
    (job,) = claimed(1)

    def report(message: str) -> int:
        book.report(Report(job.pk, 1, message, None))
        return writes(lambda: book.write(ME, urgent=True))

    assert report("first") == 1
    assert [report(f"soon after {number}") for number in range(5)] == [0] * 5
    time.now += PROGRESS_EVERY - 0.01
    assert report("not yet") == 0
    assert book.next_write(urgent=True) == pytest.approx(time.now + 0.01)
    time.now += 0.01
    assert report("now") == 1
    assert shown(job) == ("now", None)
    assert PROGRESS_EVERY == 0.25


def test_the_last_progress_is_written_with_the_ending(book, time):
    spoken, silent = claimed(2)
    book.write(ME, urgent=True)
    book.progress_at = time.now + 60
    book.report(Report(spoken.pk, 1, "all done", '{"progress": 100}'))
    book.end(done(spoken))
    book.end(done(silent))

    book.write(ME, urgent=True)

    assert (row(spoken).status, *shown(spoken)) == (COMPLETED, "all done", {"progress": 100})
    assert (row(silent).status, *shown(silent)) == (COMPLETED, "", None)
    assert book.progress == {}


def test_a_job_that_waits_for_its_retry_is_one_warning_with_the_seconds_and_the_reason(
    book, caplog
):
    failed, asked = claimed(2)
    in_a_minute = book.clock.at(monotonic() + 60.4)
    error = {
        "where": "here",
        "exception": "builtins.ValueError",
        "message": "ValueError: no",
        "traceback": "",
    }
    book.end(JobUpdate(claim=failed, status=SCHEDULED, error=error, run_after=in_a_minute))
    book.end(JobUpdate(claim=asked, status=SCHEDULED, run_after=in_a_minute, attempts=-1))

    with caplog.at_level(logging.DEBUG, "peasy_jobs"):
        book.write(ME, urgent=True)

    assert [
        (record.levelname, record.message)
        for record in caplog.records
        if record.name == "peasy_jobs"
    ] == [
        ("WARNING", f"a job (job {failed.pk}) runs again in 60 s: ValueError: no"),
        ("WARNING", f"a job (job {asked.pk}) runs again in 60 s: It asked to come back."),
    ]


def test_a_job_that_cancelled_itself_is_one_line(book, caplog):
    (job,) = claimed(1)
    book.end(JobUpdate(claim=job, status=CANCELLED, completed=book.clock.at(monotonic())))

    with caplog.at_level(logging.DEBUG, "peasy_jobs"):
        book.write(ME, urgent=True)

    assert [
        (record.levelname, record.message)
        for record in caplog.records
        if record.name == "peasy_jobs"
    ] == [("INFO", f"a job (job {job.pk}) cancelled itself.")]


def test_progress_of_an_earlier_claim_is_not_written_with_the_ending(book):
    (job,) = claimed(1)
    book.report(Report(job.pk, 0, "of another life", None))
    book.end(done(job))

    book.write(ME, urgent=True)

    assert (row(job).status, row(job).status_msg) == (COMPLETED, "")


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"runner": ANOTHER},
        {"claims": 2},
        {"status": CANCELLED},
        {"status": ENQUEUED, "runner": None},
    ],
)
def test_progress_of_a_job_that_is_not_ours_any_more_is_dropped(book, meanwhile):
    taken, mine = claimed(2)
    jobs.filter(pk=taken.pk).update(**meanwhile)
    book.report(Report(taken.pk, 1, "late", "{}"))
    book.report(Report(mine.pk, 1, "on time", None))

    book.write(ME, urgent=False)

    assert shown(taken) == ("", None)
    assert shown(mine) == ("on time", None)
    assert book.progress == {}


@servers_only
def test_progress_that_meets_a_lock_waits_and_the_others_land(book, time):
    held, other = claimed(2)
    for claim in (held, other):
        book.report(Report(claim.pk, 1, "half way", None))

    with locked(held.pk):
        book.write(ME, urgent=False)
        assert [shown(claim)[0] for claim in (held, other)] == ["", "half way"]

    time.now += PROGRESS_EVERY
    book.write(ME, urgent=False)
    assert shown(held)[0] == "half way"


def test_progress_that_the_database_refuses_is_dropped_and_the_job_goes_on(book, caplog):
    bad, other = claimed(2)
    book.report(Report(bad.pk, 1, "\ud800", None))
    book.report(Report(other.pk, 1, "fine", None))

    with caplog.at_level(logging.WARNING, "peasy_jobs"):
        book.write(ME, urgent=False)

    assert statuses(bad, other) == [ONGOING, ONGOING]
    assert [shown(claim)[0] for claim in (bad, other)] == ["", "fine"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"The progress of job {bad.pk} cannot be stored"
    ]
    assert book.progress == {}


def test_the_refusals_of_a_database_are_no_outages():
    """Else the tests above would show nothing: they would be waited out."""
    assert not vendors.is_outage(DatabaseError("wrong data")) and vendors.is_outage(
        OperationalError("gone")
    )
