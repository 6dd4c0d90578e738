"""Cancelling a running job stops only that job, in a process within two seconds."""

import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import connection, transaction

from peasy_jobs import conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.runner.loop import Runner
from peasy_jobs.runner.outcomes import given_back
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, ONGOING
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.values import Claim
from tests import jobs
from tests.jobs import notes
from tests.rows import finished, is_gone, row, running, workers_of
from tests.waiting import wait_until

KEEP_ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_CANCELLED": None}
GONE_WITHIN = 2  # seconds on an idle machine, one of which is the grace period
SLACK = 3  # seconds that a busy machine may add


def by_status(job: PeasyJobQueue) -> None:
    PeasyJobQueue.objects.filter(pk=job.pk).update(status=PeasyJobQueue.CANCELLED)


def by_key(job: PeasyJobQueue) -> None:
    assert peasy.cancel(job.pk) is True


def by_row(job: PeasyJobQueue) -> None:
    assert job.cancel() is True
    assert job.status == CANCELLED


every_way = pytest.mark.parametrize("cancel", [by_status, by_key, by_row])


def wait_until_stopped(job: PeasyJobQueue) -> PeasyJobQueue:
    """Wait until a cancelled job has stopped, and return its row."""
    wait_until(
        lambda: row(job).runner_id is None and row(job).completed,
        message=lambda: f"{row(job).__dict__}",
    )
    return row(job)


# In a process


@every_way
def test_a_cancelled_job_is_interrupted_and_other_jobs_are_not(run_peasy, tmp_path, cancel):
    record, other_record = tmp_path / "record", tmp_path / "other"
    command = run_peasy("--concurrency", "2")
    job = jobs.clean_up(str(tmp_path / "never"), str(record))
    other = jobs.clean_up(str(tmp_path / "go"), str(other_record))
    wait_until(lambda: notes(record) and notes(other_record))
    untouched = int(notes(other_record)[0].split()[1])
    cancel(job)
    since = time.monotonic()
    job = wait_until_stopped(job)
    assert time.monotonic() - since < GONE_WITHIN + SLACK
    assert notes(record)[1:] == ["cleaned up: It was cancelled."]
    assert job.status == CANCELLED
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.errors == []
    assert job.result is None
    assert job.started <= job.completed
    assert row(other).status == ONGOING
    Path(tmp_path, "go").touch()
    (other,) = finished(other)
    assert other.status == COMPLETED
    assert other.result == "waited"
    assert other.attempts == 1
    assert notes(other_record) == [f"started {untouched}"]
    assert untouched in {process.pid for process in workers_of(command)}
    assert row(job).status == CANCELLED


@every_way
def test_a_cancelled_job_that_ignores_stop_is_killed_with_its_program(run_peasy, tmp_path, cancel):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings={"PEASY_JOB_TIMEOUT": 600})
    stubborn = jobs.stubborn.using()
    stubborn.options = stubborn.options.changed(timeout=600)
    job = stubborn(str(tmp_path / "never"), str(record))
    other = jobs.wait_for(str(tmp_path / "go"), str(tmp_path / "other"))
    wait_until(lambda: notes(record) and notes(tmp_path / "other"))
    worker, program = map(int, notes(record)[0].split()[1:])
    cancel(job)
    since = time.monotonic()
    wait_until(lambda: is_gone(worker) and is_gone(program))
    assert time.monotonic() - since < GONE_WITHIN + SLACK
    job = wait_until_stopped(job)
    assert notes(record)[1:] == ["refused"]
    assert job.status == CANCELLED
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.errors == []
    assert row(other).status == ONGOING
    Path(tmp_path, "go").touch()
    (other,) = finished(other)
    assert other.status == COMPLETED
    assert other.attempts == 1
    assert other.crashes == 0
    assert len(notes(tmp_path / "other")) == 2
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    assert "often out of memory" not in command.output()


def test_a_job_that_holds_the_interpreter_lock_is_killed_when_it_is_cancelled(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    job = jobs.hold_gil(str(record))
    wait_until(lambda: notes(record))
    by_key(job)
    since = time.monotonic()
    wait_until(lambda: is_gone(int(notes(record)[0].split()[1])))
    assert time.monotonic() - since < GONE_WITHIN + SLACK
    assert wait_until_stopped(job).status == CANCELLED
    assert row(job).crashes == 0
    assert len(notes(record)) == 1


def test_a_cancelled_job_is_not_retried(run_peasy, tmp_path):
    record = tmp_path / "record"
    retried = jobs.limited_with_retry.using()
    retried.options = retried.options.changed(timeout=600)
    run_peasy()
    job = retried(str(record))
    wait_until(lambda: notes(record))
    by_key(job)
    job = wait_until_stopped(job)
    finished(jobs.nothing())
    assert row(job).status == CANCELLED
    assert row(job).run_after is None
    assert len(notes(record)) == 1


def test_cancelling_several_jobs_stops_each_of_them_and_no_other(run_peasy, tmp_path):
    records = [tmp_path / f"record {number}" for number in range(4)]
    run_peasy("--concurrency", "4", settings=KEEP_ALL)
    todo = [jobs.clean_up(str(tmp_path / "go"), str(record)) for record in records]
    wait_until(lambda: all(notes(record) for record in records))
    PeasyJobQueue.objects.filter(pk__in=[todo[0].pk, todo[2].pk]).update(status=CANCELLED)
    assert wait_until_stopped(todo[0]).status == CANCELLED
    assert wait_until_stopped(todo[2]).status == CANCELLED
    Path(tmp_path, "go").touch()
    kept = finished(todo[1], todo[3])
    assert {job.status for job in kept} == {COMPLETED}
    assert {job.attempts for job in kept} == {1}
    assert [len(notes(record)) for record in records] == [2, 1, 2, 1]


def test_a_cancelled_job_that_was_assigned_to_a_worker_never_runs(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy(settings=KEEP_ALL)
    # The runner sees that jobs are short, so it assigns many to a worker at once.
    finished(*[jobs.nothing() for _ in range(100)])
    with transaction.atomic():
        first = jobs.cancel_others(str(record))
        rest = [jobs.write_note(str(record), number) for number in range(20)]
        PeasyJobQueue.objects.filter(pk=first.pk).update(extra=[job.pk for job in rest[::2]])
    done = finished(first, *rest)
    assert notes(record)[0] == f"cancelled {[True] * 10}"
    # The first job takes long enough for the runner to recall the others.
    assert sorted(map(int, notes(record)[1:])) == list(range(1, 20, 2))
    assert {job.status for job in done[1::2]} == {CANCELLED}
    assert {job.status for job in done[2::2]} == {COMPLETED}
    for job in rest[::2]:
        assert wait_until_stopped(job).runner_id is None
        assert row(job).result is None


# In a thread


@every_way
@pytest.mark.parametrize("job", ["track_for_ever", "report_for_ever"])
def test_a_job_in_a_thread_is_stopped_where_it_reports_progress(run_peasy, tmp_path, job, cancel):
    record = tmp_path / "record"
    run_peasy("--worker-type", "thread")
    job = getattr(jobs, job)(str(record))
    wait_until(lambda: notes(record) and row(job).status_msg)
    cancel(job)
    job = wait_until_stopped(job)
    assert notes(record) == ["started", "noticed: It was cancelled."]
    assert job.status == CANCELLED
    assert job.errors == []
    assert job.crashes == 0
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


@pytest.mark.parametrize(
    ("worker_type", "expected_notes"),
    [("process", ["started"]), ("thread", ["started", "noticed"])],
)
def test_a_job_can_check_whether_it_was_cancelled(run_peasy, tmp_path, worker_type, expected_notes):
    record = tmp_path / "record"
    run_peasy("--worker-type", worker_type)
    job = jobs.ask_whether_cancelled(str(record))
    wait_until(lambda: notes(record))
    by_status(job)
    job = wait_until_stopped(job)
    # A thread ends by itself and its result is dropped; a process is interrupted before it asks.
    assert notes(record) == expected_notes
    assert job.status == CANCELLED
    assert job.result is None
    assert job.errors == []


def test_a_cancelled_job_in_a_thread_that_does_not_check_keeps_its_slot_until_it_ends(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    settings = {"PEASY_LEASE": 2, "PEASY_MAX_CANCELLED": 0, "PEASY_PRUNE_GRACE": 0}
    command = run_peasy("--worker-type", "thread", settings=settings)
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    wait_until(lambda: notes(record))
    claimed = running(job)
    waiting = jobs.nothing()
    by_status(job)
    command.wait_for_output("is asked to stop: It was cancelled.")
    # Long enough for pruning, which runs every four to six seconds.
    since = claimed.started
    wait_until(lambda: _now() - since > timedelta(seconds=8), 40)
    now = row(job)
    assert now.status == CANCELLED
    assert now.runner_id == claimed.runner_id
    assert now.completed is None
    assert row(waiting).status == ENQUEUED
    Path(tmp_path, "go").touch()
    finished(waiting)
    assert notes(record)[1:] == ["ended"]
    # Now it is pruned.
    wait_until(lambda: not PeasyJobQueue.objects.filter(pk=job.pk).exists())


def _now():
    return as_field(database_now(connection))


# What had ended, and what never began


def test_cancelling_a_finished_job_changes_nothing(run_peasy):
    run_peasy()
    (done,) = finished(jobs.echo(1))
    (failed,) = finished(jobs.boom())
    for job in (done, failed):
        assert peasy.cancel(job.pk) is False
        assert job.cancel() is False
        assert row(job).status == job.status
        assert row(job).completed == job.completed
    assert peasy.cancel(2**31) is False


def test_a_cancelled_waiting_job_never_runs(run_peasy, tmp_path):
    record = tmp_path / "record"
    queued = [
        jobs.write_note(str(record), cancel.__name__) for cancel in (by_status, by_key, by_row)
    ]
    later = jobs.write_note.using(run_after=timedelta(seconds=0.5))(str(record), "later")
    for cancel, job in zip((by_status, by_key, by_row), queued, strict=True):
        cancel(job)
    by_key(later)
    run_peasy(settings=KEEP_ALL)
    finished(jobs.write_note.using(run_after=timedelta(seconds=1))(str(record), "last"))
    assert notes(record) == ["last"]
    assert {row(job).status for job in (*queued, later)} == {CANCELLED}
    for job in (*queued, later):
        assert wait_until_stopped(job).attempts == 0


def test_cancelling_a_job_twice_stops_it_once(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    job = jobs.clean_up(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    assert peasy.cancel(job.pk) is True
    peasy.cancel(job.pk)
    wait_until_stopped(job)
    assert peasy.cancel(job.pk) is False
    assert len(notes(record)) == 2


def test_a_cancelled_job_whose_runner_died_is_closed_by_the_next_runner(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = jobs.wait_for(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    command.signal(signal.SIGSTOP)  # so that it does not notice the cancellation
    by_status(job)
    command.kill()
    run_peasy()
    job = wait_until_stopped(job)
    assert job.status == CANCELLED
    assert job.crashes == 0
    assert len(notes(record)) == 1


def test_unwritten_outcomes_are_read_once_for_any_number_of_cancelled_jobs(
    transactional_db, monkeypatch
):
    reads, unwritten = [], Recorder.unwritten

    def counted(self):
        reads.append(1)
        return unwritten.fget(self)

    monkeypatch.setattr(Recorder, "unwritten", property(counted))
    runner = Runner(replace(conf.get(), worker_type="thread"), lambda text: None)
    runner.workers = SimpleNamespace(workers=[])
    runner.lease.id = 1
    pks = [job.pk for job in jobs.nothing.map([()] * 20)]
    PeasyJobQueue.objects.update(status=CANCELLED, runner=1, claims=1)
    claims = [Claim(pk, 1, "", "", 1, 0, None, None) for pk in pks]
    runner.held.add(claims, started=20)
    for claim in claims[:10]:
        runner.held.recorder.record(given_back(claim))

    runner._stop_cancelled()

    named = PeasyJobQueue.objects.filter(runner=1).values_list("pk", flat=True)
    assert sorted(named) == pks[:10]
    assert len(reads) == 1
