"""Writing outcomes and progress, also if the database refuses them or is unavailable."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from time import monotonic
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.db import DatabaseError, OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import outcomes
from peasy_jobs.runner import recorder as recorder_module
from peasy_jobs.runner.recorder import (
    LOCKED_RETRY_DELAY,
    PROGRESS_INTERVAL,
    WRITE_INTERVAL,
    Recorder,
)
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock, as_field, database_now
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.protocol import Report
from tests.concurrent_processes import TABLE, locked

pytestmark = pytest.mark.django_db(transaction=True)

jobs = PeasyJobQueue.objects
ME, ANOTHER = 1, 2
SQLITE, MARIADB = (settings.TEST_DATABASE == name for name in ("sqlite", "mariadb"))
PYMYSQL = MARIADB and os.environ.get("PEASY_TEST_MARIADB_DRIVER", "pymysql") == "pymysql"
servers_only = pytest.mark.skipif(SQLITE, reason="SQLite locks the whole file")


class Time:
    """Replaces `time.monotonic()` in the recorder."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(recorder_module, "monotonic", clock)
    return clock


@pytest.fixture
def recorder(transactional_db: None) -> Iterator[Recorder]:
    """A recorder whose connection has the shortest lock timeout."""
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


# Outcomes


def test_a_batch_is_written_once(recorder):
    one, two = claimed(2)
    recorder.record(done(one))
    recorder.record(JobUpdate(claim=two, status=ENQUEUED, attempts=-1))

    assert recorder.write(ME, urgent=True) is True, "a job went back into the queue"

    assert statuses(one, two) == [COMPLETED, ENQUEUED]
    assert recorder.updates == []
    assert recorder.write(ME, urgent=True) is False


@pytest.fixture
def zone(request, transactional_db, settings):
    """A site with or without `USE_TZ`, and the time zone of its columns."""
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

    assert jobs.finish(ME, [done(one, started=started, completed=completed)], completed) == []

    jobs.create(
        title="by Django", job_name="tests.jobs.nothing", started=started, completed=completed
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT started, completed FROM {TABLE}")
        by_us, by_django = cursor.fetchall()
    assert by_us == by_django
    assert row(one).started == started
    assert row(one).completed == completed


def test_batches_are_written_at_an_interval_unless_urgent(recorder, time):
    first, second, third = claimed(3)
    recorder.record(done(first))
    recorder.write(ME, urgent=False)
    assert recorder.next_write_at(urgent=False) == float("inf")

    recorder.record(done(second))
    recorder.write(ME, urgent=False)
    assert statuses(first, second) == [COMPLETED, ONGOING]
    assert recorder.next_write_at(urgent=False) == time.now + WRITE_INTERVAL
    time.now += WRITE_INTERVAL
    recorder.write(ME, urgent=False)
    assert row(second).status == COMPLETED

    recorder.record(done(third))
    assert recorder.next_write_at(urgent=True) <= time.now
    recorder.write(ME, urgent=True)
    assert row(third).status == COMPLETED


@servers_only
def test_a_locked_job_waits_while_the_others_are_written(recorder, time):
    first, held, last = claimed(3)
    for claim in (first, held, last):
        recorder.record(done(claim))

    with locked(held.pk):
        recorder.write(ME, urgent=True)
        assert statuses(first, held, last) == [COMPLETED, ONGOING, COMPLETED]
        assert [update.claim for update in recorder.unwritten] == [held]
        with CaptureQueriesContext(connection) as context:
            recorder.write(ME, urgent=True)
        assert len(context) == 0, "it is not tried again at once, even if urgent"
        assert recorder.next_write_at(urgent=True) == time.now + LOCKED_RETRY_DELAY

    time.now += LOCKED_RETRY_DELAY
    recorder.write(ME, urgent=True)
    assert row(held).status == COMPLETED
    assert recorder.unwritten == []


@servers_only
def test_a_locked_job_does_not_delay_jobs_that_end_later(recorder, time):
    held, later = claimed(2)
    recorder.record(done(held))
    with locked(held.pk):
        recorder.write(ME, urgent=True)
        recorder.record(done(later))
        time.now += LOCKED_RETRY_DELAY
        recorder.write(ME, urgent=True)
        assert statuses(held, later) == [ONGOING, COMPLETED]


@servers_only
def test_a_locked_job_is_not_tried_more_often_when_other_jobs_end(recorder, time, monkeypatch):
    """Each try may take as long as the lock timeout, and delays everything else."""
    held, *others = claimed(21)
    tries = 0
    finish = querysets.JobQuerySet.finish

    def counted(self: Any, runner: int, updates: list[JobUpdate], now: Any) -> Any:
        nonlocal tries
        tries += any(update.claim is held for update in updates)
        return finish(self, runner, updates, now)

    monkeypatch.setattr(querysets.JobQuerySet, "finish", counted)
    recorder.record(done(held))
    with locked(held.pk):
        for claim in others:
            recorder.record(done(claim))
            recorder.write(ME, urgent=True)
            assert statuses(claim) == [COMPLETED]
        assert tries == 2, "once in its batch and once alone"


@servers_only
def test_many_locked_jobs_take_no_longer_than_a_few(recorder, monkeypatch):
    """The heartbeat has to wait for them."""
    monkeypatch.setattr(recorder_module, "ROW_BY_ROW_SECONDS", 0.0)
    claims = claimed(5)
    for claim in claims:
        recorder.record(done(claim))
    tried: list[list[int]] = []
    finish = querysets.JobQuerySet.finish

    def counted(self: Any, runner: int, updates: list[JobUpdate], now: Any) -> Any:
        tried.append([update.claim.pk for update in updates])
        return finish(self, runner, updates, now)

    monkeypatch.setattr(querysets.JobQuerySet, "finish", counted)
    pks = [claim.pk for claim in claims]
    with locked(*pks):
        recorder.write(ME, urgent=True)

        assert tried == [pks, pks[:1]]
        for _ in pks[1:]:
            recorder.write(ME, urgent=True)
        assert [update.claim.pk for update in recorder.unwritten] == pks
        tried.clear()
        for _ in pks:
            recorder.locked_at = 0
            recorder.write(ME, urgent=True)
        assert tried == [[pk] for pk in pks], "one at a time, each in turn"
    for _ in pks:
        recorder.locked_at = 0
        recorder.write(ME, urgent=True)
    assert set(statuses(*claims)) == {COMPLETED}


@pytest.mark.skipif(not SQLITE, reason="only SQLite locks the whole file")
def test_a_locked_file_raises_and_loses_nothing(recorder, time):
    first, second = claimed(2)
    recorder.record(done(first))
    recorder.record(done(second))
    recorder.record_progress(Report(second.pk, 1, "half way", None))

    with locked(first.pk):
        with pytest.raises(OperationalError, match="locked"):
            recorder.write(ME, urgent=True)
    assert statuses(first, second) == [ONGOING, ONGOING]

    time.now += WRITE_INTERVAL
    recorder.write(ME, urgent=True)
    assert statuses(first, second) == [COMPLETED, COMPLETED]


def test_an_outage_raises_and_loses_no_update(recorder, time, monkeypatch):
    (job,) = claimed(1)
    recorder.record(done(job))

    def away(*args: Any) -> None:
        raise OperationalError("the server has gone away")

    with monkeypatch.context() as patch:
        patch.setattr(querysets.JobQuerySet, "finish", away)
        with pytest.raises(OperationalError, match="gone away"):
            recorder.write(ME, urgent=True)

    assert [update.claim for update in recorder.updates] == [job]
    time.now += WRITE_INTERVAL
    recorder.write(ME, urgent=True)
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
def test_an_outcome_that_the_database_refuses_fails_only_that_job(recorder, caplog, wrong):
    first, bad, last = claimed(3)
    times = {name: as_field(database_now(connection)) for name in ("started", "completed")}
    recorder.record(done(first))
    recorder.record(done(bad, **times, **wrong))
    recorder.record(done(last))

    with caplog.at_level(logging.ERROR, "peasy_jobs"):
        recorder.write(ME, urgent=True)

    assert statuses(first, bad, last) == [COMPLETED, FAILED, COMPLETED]
    assert recorder.updates == []
    job = row(bad)
    assert job.error.startswith("The outcome of this job could not be stored: ")
    assert job.started == times["started"]
    assert job.completed == times["completed"]
    assert job.runner is None
    assert job.result is None
    assert [entry.message for entry in caplog.records] == [
        f"a job (job {bad.pk}) failed: {job.error}"
    ]


def test_a_job_given_back_with_progress_that_the_database_refuses_fails(recorder):
    (job,) = claimed(1)
    recorder.record_progress(Report(job.pk, 1, "\ud800", None))
    recorder.record(JobUpdate(claim=job, status=ENQUEUED, attempts=-1))

    recorder.write(ME, urgent=True)

    assert row(job).status == FAILED
    assert row(job).completed is not None, "otherwise it is never pruned"


def test_the_outcome_of_a_job_cancelled_meanwhile_is_dropped_and_logged(recorder, caplog):
    taken, mine = claimed(2)
    jobs.filter(pk=taken.pk).update(status=CANCELLED)
    recorder.record(done(taken))
    recorder.record(done(mine))

    with caplog.at_level(logging.INFO, "peasy_jobs"):
        recorder.write(ME, urgent=True)

    assert statuses(taken, mine) == [CANCELLED, COMPLETED]
    assert recorder.updates == []
    assert (
        f"a job (job {taken.pk}) ended, but it had been cancelled or taken from this runner."
        in caplog.messages
    )


# Jobs whose function is missing

MISSING = {"exception": "peasy_jobs.exceptions.JobFunctionNotFound", "message": "no function"}
ANOTHER_ERROR = {"exception": "builtins.OSError", "message": "no disk"}


def function_missing(claim: Claim, now: Any) -> JobUpdate:
    return JobUpdate(
        claim=claim,
        status=FAILED,
        error=MISSING,
        started=now,
        completed=now,
        function_missing=True,
    )


@pytest.mark.parametrize(
    ("earlier_tries", "status"), [(0, SCHEDULED), (1, SCHEDULED), (2, SCHEDULED), (3, FAILED)]
)
def test_a_job_whose_function_is_missing_is_tried_three_more_times(earlier_tries, status):
    now, retry_at = datetime(2026, 6, 1, 12), datetime(2026, 6, 1, 13)
    claim = Claim(1, 1, "a job", "app.gone", 1, 0, None, None)
    update = function_missing(claim, now)

    decided = outcomes.wait_for_function(
        update, [ANOTHER_ERROR, *[MISSING] * earlier_tries], retry_at
    )

    assert decided.status == status
    assert decided.error == MISSING
    assert decided.started == now
    waits = status == SCHEDULED
    assert decided.run_after == (retry_at if waits else None)
    assert decided.completed == (None if waits else now)
    assert decided.attempts == (-1 if waits else 0)
    assert decided.function_missing is False


def test_a_job_whose_function_is_there_becomes_what_its_worker_reported():
    claim = Claim(1, 1, "a job", "app.there", 1, 0, None, None)
    failed = JobUpdate(claim=claim, status=FAILED, error=MISSING)

    assert outcomes.wait_for_function(failed, [], datetime(2026, 6, 1)) is failed


def test_a_job_whose_function_is_missing_waits_a_minute_each_time_until_it_fails(
    recorder, monkeypatch
):
    """Each batch is written twice, as it is when the answer to its COMMIT was lost."""
    finish = querysets.JobQuerySet.finish

    def finish_twice(self: Any, *args: Any) -> Any:
        finish(self, *args)
        return finish(self, *args)

    monkeypatch.setattr(querysets.JobQuerySet, "finish", finish_twice)
    pk = jobs.create(title="a job", job_name="app.gone", errors=[ANOTHER_ERROR]).pk
    statuses_seen = []
    for tries in range(1, 5):
        now = recorder.clock.at(monotonic())
        (claim,) = jobs.claim(ClaimRequest(runner_id=ME, limit=1, now=now))
        recorder.record(function_missing(claim, now))
        recorder.write(ME, urgent=True)
        job = jobs.get(pk=pk)
        statuses_seen.append(job.status)
        assert len(job.errors) == 1 + tries
        if job.status == SCHEDULED:
            assert job.attempts == 0
            assert job.completed is None
            wait = (job.run_after - now).total_seconds()
            assert wait == pytest.approx(outcomes.FUNCTION_MISSING_DELAY, abs=20)
        jobs.filter(pk=pk, status=SCHEDULED).update(status=ENQUEUED)

    assert statuses_seen == [SCHEDULED, SCHEDULED, SCHEDULED, FAILED]
    assert job.attempts == 1
    assert job.completed == now
    assert job.run_after is None


def test_an_update_whose_function_is_missing_stays_decided_when_the_database_goes_away(
    recorder, time, monkeypatch
):
    (claim,) = claimed(1)
    recorder.record(function_missing(claim, recorder.clock.at(monotonic())))

    def lose_the_answer(*args: Any) -> None:
        finish(*args)
        raise OperationalError("the server has gone away")

    finish = querysets.JobQuerySet.finish
    with monkeypatch.context() as patch:
        patch.setattr(querysets.JobQuerySet, "finish", lose_the_answer)
        with pytest.raises(OperationalError, match="gone away"):
            recorder.write(ME, urgent=True)
    recorder.write(ME, urgent=True)

    assert recorder.unwritten == []
    assert row(claim).status == SCHEDULED
    assert len(row(claim).errors) == 1


# Progress


def writes(action: Callable[[], Any]) -> int:
    """Return how often `action` updates a job's row."""
    with CaptureQueriesContext(connection) as context:
        action()
    return sum(query["sql"].startswith("UPDATE") and TABLE in query["sql"] for query in context)


def test_only_the_last_of_many_reports_is_written(recorder):
    (job,) = claimed(1)
    for number in range(100):
        recorder.record_progress(
            Report(job.pk, 1, f"row {number}", json.dumps({"progress": number}))
        )

    assert writes(lambda: recorder.write(ME, urgent=False)) == 1

    assert shown(job) == ("row 99", {"progress": 99})
    assert recorder.progress == {}


def test_a_message_and_an_extra_reported_separately_are_both_written(recorder):
    (job,) = claimed(1)
    recorder.record_progress(Report(job.pk, 1, "importing", None))
    recorder.record_progress(Report(job.pk, 1, None, '{"progress": 5}'))

    recorder.write(ME, urgent=False)

    assert shown(job) == ("importing", {"progress": 5})


def test_progress_is_written_at_its_own_interval_even_if_urgent(recorder, time):
    (job,) = claimed(1)

    def report(message: str) -> int:
        recorder.record_progress(Report(job.pk, 1, message, None))
        return writes(lambda: recorder.write(ME, urgent=True))

    assert report("first") == 1
    assert [report(f"soon after {number}") for number in range(5)] == [0] * 5
    time.now += PROGRESS_INTERVAL - 0.01
    assert report("not yet") == 0
    assert recorder.next_write_at(urgent=True) == pytest.approx(time.now + 0.01)
    time.now += 0.01
    assert report("now") == 1
    assert shown(job) == ("now", None)
    assert PROGRESS_INTERVAL == 0.25


def test_the_last_progress_is_written_with_the_outcome(recorder, time):
    spoken, silent = claimed(2)
    recorder.write(ME, urgent=True)
    recorder.progress_at = time.now + 60
    recorder.record_progress(Report(spoken.pk, 1, "all done", '{"progress": 100}'))
    recorder.record(done(spoken))
    recorder.record(done(silent))

    recorder.write(ME, urgent=True)

    assert (row(spoken).status, *shown(spoken)) == (COMPLETED, "all done", {"progress": 100})
    assert (row(silent).status, *shown(silent)) == (COMPLETED, "", None)
    assert recorder.progress == {}


def test_a_retry_is_logged_with_its_delay_and_reason(recorder, caplog):
    failed, asked = claimed(2)
    in_a_minute = recorder.clock.at(monotonic() + 60.4)
    error = {
        "where": "here",
        "exception": "builtins.ValueError",
        "message": "ValueError: no",
        "traceback": "",
    }
    recorder.record(JobUpdate(claim=failed, status=SCHEDULED, error=error, run_after=in_a_minute))
    recorder.record(JobUpdate(claim=asked, status=SCHEDULED, run_after=in_a_minute, attempts=-1))

    with caplog.at_level(logging.DEBUG, "peasy_jobs"):
        recorder.write(ME, urgent=True)

    assert [
        (entry.levelname, entry.message) for entry in caplog.records if entry.name == "peasy_jobs"
    ] == [
        ("WARNING", f"a job (job {failed.pk}) runs again in 60 s: ValueError: no"),
        ("WARNING", f"a job (job {asked.pk}) runs again in 60 s: It asked to run again later."),
    ]


def test_a_job_that_cancels_itself_is_logged_once(recorder, caplog):
    (job,) = claimed(1)
    recorder.record(
        JobUpdate(claim=job, status=CANCELLED, completed=recorder.clock.at(monotonic()))
    )

    with caplog.at_level(logging.DEBUG, "peasy_jobs"):
        recorder.write(ME, urgent=True)

    assert [
        (entry.levelname, entry.message) for entry in caplog.records if entry.name == "peasy_jobs"
    ] == [("INFO", f"a job (job {job.pk}) cancelled itself.")]


def test_progress_of_an_earlier_claim_is_not_written_with_the_outcome(recorder):
    (job,) = claimed(1)
    recorder.record_progress(Report(job.pk, 0, "of another life", None))
    recorder.record(done(job))

    recorder.write(ME, urgent=True)

    assert row(job).status == COMPLETED
    assert row(job).status_msg == ""


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"runner": ANOTHER},
        {"claims": 2},
        {"status": CANCELLED},
        {"status": ENQUEUED, "runner": None},
    ],
)
def test_progress_of_a_job_that_is_no_longer_held_is_dropped(recorder, meanwhile):
    taken, mine = claimed(2)
    jobs.filter(pk=taken.pk).update(**meanwhile)
    recorder.record_progress(Report(taken.pk, 1, "late", "{}"))
    recorder.record_progress(Report(mine.pk, 1, "on time", None))

    recorder.write(ME, urgent=False)

    assert shown(taken) == ("", None)
    assert shown(mine) == ("on time", None)
    assert recorder.progress == {}


@servers_only
def test_progress_of_a_locked_job_waits_while_the_others_are_written(recorder, time):
    held, other = claimed(2)
    for claim in (held, other):
        recorder.record_progress(Report(claim.pk, 1, "half way", None))

    with locked(held.pk):
        recorder.write(ME, urgent=False)
        assert [shown(claim)[0] for claim in (held, other)] == ["", "half way"]

    time.now += PROGRESS_INTERVAL
    recorder.write(ME, urgent=False)
    assert shown(held)[0] == "half way"


def test_progress_that_the_database_refuses_is_dropped_and_the_job_continues(recorder, caplog):
    bad, other = claimed(2)
    recorder.record_progress(Report(bad.pk, 1, "\ud800", None))
    recorder.record_progress(Report(other.pk, 1, "fine", None))

    with caplog.at_level(logging.WARNING, "peasy_jobs"):
        recorder.write(ME, urgent=False)

    assert statuses(bad, other) == [ONGOING, ONGOING]
    assert [shown(claim)[0] for claim in (bad, other)] == ["", "fine"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"The progress of job {bad.pk} could not be stored"
    ]
    assert recorder.progress == {}


def test_refused_data_is_not_an_outage():
    """Otherwise the recorder would wait instead of failing the job, unnoticed by these tests."""
    assert not vendors.is_outage(DatabaseError("wrong data"))
    assert vendors.is_outage(OperationalError("gone"))
