"""A job over its time limit is asked to stop, then killed; a thread is only asked."""

import signal
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import CANCELLED, COMPLETED, FAILED, ONGOING
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.workers.processes import BEGIN_TIMEOUT
from tests import jobs
from tests.jobs import notes
from tests.rows import finished, heartbeats, is_gone, row, running, with_app, workers_of
from tests.waiting import wait_until

LONG_DEADLINE = 40  # seconds, for what takes two or three on an idle machine
KEEP_ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}
OWN_LIMIT = "The job took longer than its time limit of 0.5 s (timeout of @peasy.job)."


# In a process


def test_a_job_over_its_time_limit_can_clean_up_and_fails(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.limited(str(tmp_path / "never"), str(record)), timeout=LONG_DEADLINE)
    assert notes(record)[1:] == [f"cleaned up: {OWN_LIMIT}"]
    pid = int(notes(record)[0].split()[1])
    assert job.status == FAILED
    assert job.error == OWN_LIMIT
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.runner_id is None
    (entry,) = job.errors
    assert entry["exception"] == "peasy_jobs.exceptions.TimeLimit"
    assert entry["where"] == f"{socket.gethostname()}, pid {pid}"
    assert "in clean_up" in entry["traceback"], "the traceback does not show where it was stopped"
    assert job.completed - job.started >= timedelta(seconds=0.4)
    assert "died" not in command.output()


def test_a_job_over_its_time_limit_that_ignores_stop_is_killed_with_its_program(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.stubborn(str(tmp_path / "never"), str(record)), timeout=LONG_DEADLINE)
    started, *refusals = notes(record)
    worker, program = map(int, started.split()[1:])
    assert refusals == ["refused"], "it was not asked to stop exactly once"
    assert job.status == FAILED
    assert job.error == OWN_LIMIT
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.errors[0]["where"] == f"{socket.gethostname()}, pid {worker}"
    assert job.completed - job.started >= timedelta(seconds=1.4)  # time limit and grace period
    wait_until(lambda: is_gone(worker) and is_gone(program))
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_job_that_catches_every_exception_is_stopped_all_the_same(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.catch_errors(str(record)), timeout=LONG_DEADLINE)
    assert job.status == FAILED
    assert job.error == OWN_LIMIT
    assert "in catch_errors" in job.traceback, "it was killed, which leaves no traceback"


def test_the_site_wide_time_limit_applies_to_jobs_without_one_and_is_named(run_peasy, tmp_path):
    record, other = tmp_path / "record", tmp_path / "other"
    run_peasy("--concurrency", "2", settings={"PEASY_JOB_TIMEOUT": 0.3})
    site, own = finished(
        jobs.clean_up(str(tmp_path / "never"), str(record)),
        jobs.limited(str(tmp_path / "never"), str(other)),
        timeout=LONG_DEADLINE,
    )
    assert site.error == "The job took longer than its time limit of 0.3 s (PEASY_JOB_TIMEOUT)."
    assert own.error == OWN_LIMIT
    assert site.status == FAILED
    assert own.status == FAILED


@pytest.mark.parametrize("job", ["limited_with_retry", "stubborn_with_retry"])
def test_a_job_over_its_time_limit_is_retried_while_retries_are_left(run_peasy, tmp_path, job):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(getattr(jobs, job)(str(record)), timeout=LONG_DEADLINE)
    assert job.status == COMPLETED
    assert job.result == "second"
    assert job.attempts == 2
    assert job.crashes == 0
    assert job.claims == 2
    assert [entry["message"] for entry in job.errors] == [OWN_LIMIT]
    assert len([line for line in notes(record) if line.startswith("started")]) == 2


def test_a_stop_request_never_interrupts_the_next_job_of_the_worker(run_peasy, tmp_path):
    record, log = tmp_path / "record", tmp_path / "log"
    run_peasy(settings={**KEEP_ALL, "PEASY_MAX_CANCELLED": None})
    finished(*[jobs.nothing() for _ in range(50)])
    late, todo = [], []
    # All for one worker, with short jobs before and after each one that is stopped.
    for number in range(4):
        with transaction.atomic():
            todo += [jobs.short_work(str(record), 100 * number + n) for n in range(30)]
            late.append(jobs.limited(str(tmp_path / "never"), str(log)))
            todo += [jobs.short_work(str(record), 100 * number + n) for n in range(30, 60)]
    done = finished(*todo, *late, timeout=LONG_DEADLINE)
    assert {job.status for job in done[: len(todo)]} == {COMPLETED}
    assert {job.attempts for job in done[: len(todo)]} == {1}
    assert {job.crashes for job in done[: len(todo)]} == {0}
    assert {job.error for job in done[: len(todo)]} == {""}
    assert {job.status for job in done[len(todo) :]} == {FAILED}
    assert {job.error for job in done[len(todo) :]} == {OWN_LIMIT}
    assert sorted(int(line.split()[0]) for line in notes(record)) == sorted(
        job.result for job in done[: len(todo)]
    )
    # An interrupted worker is replaced, so each was stopped in a worker of its own.
    assert len({line.split()[1] for line in notes(log) if "started" in line}) == len(late)


def test_a_job_that_ends_at_its_time_limit_either_completes_or_fails(run_peasy, tmp_path):
    """The request arrives in the last moment of a job, or in the first moment of the next."""
    record = tmp_path / "record"
    run_peasy("--concurrency", "2", settings={**KEEP_ALL, "PEASY_JOB_TIMEOUT": 0.1})
    with transaction.atomic():
        todo = []
        for number in range(40):
            todo.append(jobs.start_and_end(str(record), number, 0.095 + number % 10 / 1000))
            todo.append(jobs.start_and_end(str(record), 1000 + number, 0))
    done = finished(*todo, timeout=LONG_DEADLINE)
    lines = notes(record)
    for job in done[1::2]:  # jobs far below the limit
        assert job.status == COMPLETED, job.errors
        assert job.attempts == 1, job.errors
        assert job.crashes == 0, job.errors
    for number, job in enumerate(done[::2]):
        assert job.attempts == 1
        assert job.crashes == 0
        assert lines.count(f"started {number}") == 1
        if job.status == COMPLETED:
            assert f"ended {number}" in lines
            assert job.errors == []
        else:
            assert job.status == FAILED
            assert job.result is None
            assert len(job.errors) == 1


def test_a_second_ctrl_c_tells_the_jobs_that_the_runner_stops_at_once(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    jobs.clean_up(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    command.signal(signal.SIGINT)
    command.wait_for_output("Stopping")
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert "is asked to stop: The runner stops at once." in command.output()
    assert "waits no longer" not in command.output()


# From when it counts


def wait_beyond_limit(job: PeasyJobQueue, limit: float) -> None:
    """Wait until a job was assigned for longer than its limit to a worker that cannot start it."""
    since = running(job).started
    wait_until(lambda: as_field(database_now(connection)) - since > timedelta(seconds=limit + 0.5))
    assert row(job).status == ONGOING


def test_the_time_limit_does_not_count_while_the_worker_is_suspended_before_the_job(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy(settings={"PEASY_JOB_TIMEOUT": 0.5})
    finished(jobs.nothing())
    (worker,) = workers_of(command)
    worker.suspend()
    job = jobs.start_and_end(str(record), 1)
    wait_beyond_limit(job, 0.5)
    worker.resume()
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.error == ""
    assert job.attempts == 1
    assert notes(record) == ["started 1", "ended 1"]
    assert "is asked to stop" not in command.output()


def test_the_time_limit_counts_from_the_start_of_the_job_in_a_worker_that_starts_slowly(
    run_peasy, tmp_path
):
    free, record = tmp_path / "free", tmp_path / "record"
    short, long = (
        jobs.start_and_end.using(priority=1)(str(record), 1),
        jobs.limited(str(tmp_path / "no"), str(record)),
    )
    settings = {**with_app("tests.fault_apps.WorkersStartLate"), "PEASY_JOB_TIMEOUT": 0.5}
    run_peasy("--concurrency", "2", settings=settings, env={"FAULT_ENDS_FILE": str(free)})
    for job in (short, long):
        wait_beyond_limit(job, 0.5)
    free.touch()
    short, long = finished(short, long)
    assert short.status == COMPLETED
    assert short.attempts == 1
    assert long.status == FAILED
    assert long.error == OWN_LIMIT
    assert notes(record)[-1] == f"cleaned up: {OWN_LIMIT}"
    # Earlier than if its worker had not reported the start.
    assert (
        timedelta(seconds=0.4)
        < long.completed - long.started
        < timedelta(seconds=0.5 + BEGIN_TIMEOUT / 2)
    )


# What a job leaves to the next of its worker


@pytest.mark.parametrize("how", ["handlers", "ignored", "blocked"])
def test_signal_handlers_and_masks_of_a_job_are_reset_before_the_next(run_peasy, tmp_path, how):
    record = tmp_path / "record"
    run_peasy()
    (before,) = finished(jobs.seize_signals(how))
    job = jobs.clean_up(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    assert job.cancel() is True
    wait_until(lambda: row(job).completed)
    assert notes(record) == [f"started {before.result}", "cleaned up: It was cancelled."]
    assert row(job).status == CANCELLED
    assert row(job).crashes == 0


def test_an_alarm_that_a_job_left_running_does_not_interrupt_the_next(run_peasy):
    run_peasy()
    before, after = finished(jobs.seize_signals("alarm"), jobs.alarm_left())
    assert after.result == [before.result, 0.0, 0.0]


# An async job


def test_a_cancelled_async_job_can_await_while_it_cleans_up(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = jobs.clean_up_later(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    assert job.cancel() is True
    wait_until(lambda: row(job).completed)
    assert notes(record)[1:] == ["cancelled", "cleaned up"]
    job = row(job)
    assert job.status == CANCELLED
    assert job.errors == []
    assert job.crashes == 0
    assert job.runner_id is None
    assert "died" not in command.output()


def test_an_async_job_over_its_time_limit_can_clean_up_and_fails(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(
        jobs.limited_later(str(tmp_path / "never"), str(record)), timeout=LONG_DEADLINE
    )
    assert notes(record)[1:] == ["cancelled", "cleaned up"]
    assert job.status == FAILED
    assert job.error == OWN_LIMIT
    assert job.attempts == 1
    assert job.crashes == 0
    assert "Traceback" in job.traceback, "it was killed, which leaves no traceback"
    assert "died" not in command.output()


# In a thread


def test_a_forked_child_that_returns_from_a_job_in_a_thread_exits(run_peasy, tmp_path):
    record = tmp_path / "record"
    # Python warns of forking while other threads run, which is the risk of such a job.
    env = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    command = run_peasy("--worker-type", "thread", env=env)
    twice, after = finished(jobs.return_twice(str(record)), jobs.echo("after"))
    assert twice.status == COMPLETED
    assert twice.result == "the parent"
    assert twice.attempts == 1
    assert twice.crashes == 0
    assert notes(record) == ["child", "parent"]
    assert after.result == "after"
    assert [process.pid for process in command.processes()] == [command.pid]


def test_a_thread_over_its_time_limit_keeps_its_slot_until_it_returns_and_fails(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy("--worker-type", "thread", settings={"PEASY_LEASE": 2})
    job, other = (
        jobs.slow_thread(str(tmp_path / "go"), str(record)),
        jobs.write_note(str(tmp_path / "other")),
    )
    command.wait_for_output(f"is asked to stop: {OWN_LIMIT}")
    heartbeats(3)  # beyond the grace period
    assert row(job).status == ONGOING
    assert row(other).status == PeasyJobQueue.ENQUEUED
    assert notes(record) == ["started"]
    Path(tmp_path, "go").touch()
    job, other = finished(job, other)
    assert notes(record) == ["started", "ended"]
    assert job.status == FAILED
    assert job.error == OWN_LIMIT
    assert job.result is None
    assert job.attempts == 1
    assert job.crashes == 0
    assert other.status == COMPLETED
    assert job.completed <= other.started


def test_a_thread_over_its_time_limit_is_retried_only_after_it_has_returned(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy(
        "--worker-type", "thread", "--concurrency", "2", settings={"PEASY_LEASE": 2}
    )
    job = jobs.slow_thread_with_retry(str(tmp_path), str(record))
    command.wait_for_output(f"is asked to stop: {OWN_LIMIT}")
    (meanwhile,) = finished(jobs.echo("in the other thread"))
    assert meanwhile.result == "in the other thread"
    heartbeats(3)
    assert row(job).status == ONGOING
    assert row(job).claims == 1
    assert notes(record) == ["started"]
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert notes(record) == ["started", "ended"] * 2
    assert job.status == COMPLETED
    assert job.result == "waited"
    assert job.attempts == 2
    assert job.crashes == 0
    assert [entry["message"] for entry in job.errors] == [OWN_LIMIT]


def test_a_thread_over_its_time_limit_is_stopped_where_it_reports_progress(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy("--worker-type", "thread", settings={"PEASY_JOB_TIMEOUT": 0.4})
    (job,) = finished(jobs.track_for_ever(str(record)), timeout=LONG_DEADLINE)
    reason = "The job took longer than its time limit of 0.4 s (PEASY_JOB_TIMEOUT)."
    assert notes(record) == ["started", f"noticed: {reason}"]
    assert job.status == FAILED
    assert job.error == reason


# Recycling


def test_workers_are_replaced_after_max_jobs_per_worker_and_no_job_is_lost(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings={**KEEP_ALL, "PEASY_MAX_JOBS_PER_WORKER": 7})
    with transaction.atomic():
        todo = [jobs.short_work(str(record), number) for number in range(100)]
    done = finished(*todo, timeout=LONG_DEADLINE)
    assert {job.status for job in done} == {COMPLETED}
    assert {job.attempts for job in done} == {1}
    assert {job.crashes for job in done} == {0}
    ran = [line.split() for line in notes(record)]
    assert sorted(int(number) for number, _ in ran) == list(range(100))
    by_pid: dict[str, int] = {}
    for _, pid in ran:
        by_pid[pid] = by_pid.get(pid, 0) + 1
    assert max(by_pid.values()) == 7
    assert len(by_pid) >= 15
    assert "died" not in command.output()
    wait_until(lambda: sum(not is_gone(int(pid)) for pid in by_pid) <= 2)


def test_without_max_jobs_per_worker_a_worker_is_kept(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy(settings=KEEP_ALL)
    finished(*[jobs.short_work(str(record), number) for number in range(50)], timeout=LONG_DEADLINE)
    assert len({line.split()[1] for line in notes(record)}) == 1
    job = jobs.wait_for(str(tmp_path / "go"))
    running(job)
    Path(tmp_path, "go").touch()
    finished(job)
