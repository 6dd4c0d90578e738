"""A job takes too long: it is asked to stop, then killed; a thread is asked, and runs nowhere else until it ends."""

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

LATE = 40  # seconds: for what takes two or three on an idle machine
ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}
OWN_LIMIT = "The job took longer than its time limit of 0.5 s (timeout of @peasy.job)."


# In a process


def test_a_job_over_its_limit_may_clean_up_and_has_failed(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.limited(str(tmp_path / "never"), str(record)), timeout=LATE)
    assert notes(record)[1:] == [f"cleaned up: {OWN_LIMIT}"]
    pid = int(notes(record)[0].split()[1])
    assert (job.status, job.error, job.attempts, job.crashes, job.runner_id) == (
        FAILED,
        OWN_LIMIT,
        1,
        0,
        None,
    )
    (entry,) = job.errors
    assert entry["exception"] == "peasy_jobs.exceptions.TimeLimit"
    assert entry["where"] == f"{socket.gethostname()}, pid {pid}"
    assert "in clean_up" in entry["traceback"]  # where it was when it was stopped
    assert job.completed - job.started >= timedelta(seconds=0.4)
    assert "died" not in command.output()


def test_a_job_that_ignores_the_request_is_killed_with_the_program_it_started(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.stubborn(str(tmp_path / "never"), str(record)), timeout=LATE)
    started, *refusals = notes(record)
    worker, program = map(int, started.split()[1:])
    assert refusals == ["refused"]  # asked once, and not again while it might clean up
    assert (job.status, job.error, job.attempts, job.crashes) == (FAILED, OWN_LIMIT, 1, 0)
    assert job.errors[0]["where"] == f"{socket.gethostname()}, pid {worker}"
    assert job.completed - job.started >= timedelta(seconds=1.4)  # the limit and the grace
    wait_until(lambda: is_gone(worker) and is_gone(program))
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_loop_that_catches_every_exception_does_not_swallow_the_request(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.catch_errors(str(record)), timeout=LATE)
    assert (job.status, job.error) == (FAILED, OWN_LIMIT)
    assert (
        "in catch_errors" in job.traceback
    )  # by itself: a job that is killed has no traceback of its own


def test_the_limit_of_the_site_holds_for_jobs_without_one_and_is_named(run_peasy, tmp_path):
    record, other = tmp_path / "record", tmp_path / "other"
    run_peasy("--concurrency", "2", settings={"PEASY_JOB_TIMEOUT": 0.3})
    site, own = finished(
        jobs.clean_up(str(tmp_path / "never"), str(record)),
        jobs.limited(str(tmp_path / "never"), str(other)),
        timeout=LATE,
    )
    assert site.error == "The job took longer than its time limit of 0.3 s (PEASY_JOB_TIMEOUT)."
    assert own.error == OWN_LIMIT
    assert (site.status, own.status) == (FAILED, FAILED)


@pytest.mark.parametrize("job", ["limited_with_retry", "stubborn_with_retry"])
def test_a_job_over_its_limit_is_retried_while_retries_are_left(run_peasy, tmp_path, job):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(getattr(jobs, job)(str(record)), timeout=LATE)
    assert (job.status, job.result, job.attempts, job.crashes, job.claims) == (
        COMPLETED,
        "second",
        2,
        0,
        2,
    )
    assert [entry["message"] for entry in job.errors] == [OWN_LIMIT]
    assert len([line for line in notes(record) if line.startswith("started")]) == 2


def test_a_stop_never_hits_the_next_job_of_the_same_worker(run_peasy, tmp_path):
    record, log = tmp_path / "record", tmp_path / "log"
    run_peasy(settings={**ALL, "PEASY_MAX_CANCELLED": None})
    finished(*[jobs.nothing() for _ in range(50)])
    late, todo = [], []
    for number in range(
        4
    ):  # all for one worker: before and after each that is stopped there is short work
        with transaction.atomic():
            todo += [jobs.short_work(str(record), 100 * number + n) for n in range(30)]
            late.append(jobs.limited(str(tmp_path / "never"), str(log)))
            todo += [jobs.short_work(str(record), 100 * number + n) for n in range(30, 60)]
    done = finished(*todo, *late, timeout=LATE)
    assert {(job.status, job.attempts, job.crashes, job.error) for job in done[: len(todo)]} == {
        (COMPLETED, 1, 0, "")
    }
    assert {(job.status, job.error) for job in done[len(todo) :]} == {(FAILED, OWN_LIMIT)}
    assert sorted(int(line.split()[0]) for line in notes(record)) == sorted(
        job.result for job in done[: len(todo)]
    )
    # Each was stopped in a worker of its own: one that was interrupted is replaced.
    assert len({line.split()[1] for line in notes(log) if "started" in line}) == len(late)


def test_a_job_that_ends_at_its_limit_is_never_both_and_no_other_is_hit(run_peasy, tmp_path):
    """Jobs of just about the limit: the request meets them in their last moment, and in the next job's first."""
    record = tmp_path / "record"
    run_peasy("--concurrency", "2", settings={**ALL, "PEASY_JOB_TIMEOUT": 0.1})
    with transaction.atomic():
        todo = []
        for number in range(40):
            todo.append(jobs.start_and_end(str(record), number, 0.095 + number % 10 / 1000))
            todo.append(jobs.start_and_end(str(record), 1000 + number, 0))
    done = finished(*todo, timeout=LATE)
    lines = notes(record)
    for job in done[1::2]:  # these are nowhere near their limit
        assert (job.status, job.attempts, job.crashes) == (COMPLETED, 1, 0), job.errors
    for number, job in enumerate(done[::2]):
        assert (job.attempts, job.crashes) == (1, 0)
        assert lines.count(f"started {number}") == 1
        if job.status == COMPLETED:
            assert (f"ended {number}" in lines, job.errors) == (True, [])
        else:
            assert (job.status, job.result, len(job.errors)) == (FAILED, None, 1)


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


def waits_for_its_worker(job: PeasyJobQueue, limit: float) -> None:
    """Wait until a job was handed out for longer than its limit, to a worker that does not take it."""
    since = running(job).started
    wait_until(lambda: as_field(database_now(connection)) - since > timedelta(seconds=limit + 0.5))
    assert row(job).status == ONGOING


def test_a_job_does_not_pay_for_a_worker_that_was_suspended_before_it_began(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy(settings={"PEASY_JOB_TIMEOUT": 0.5})
    finished(jobs.nothing())
    (worker,) = workers_of(command)
    worker.suspend()
    job = jobs.start_and_end(str(record), 1)
    waits_for_its_worker(job, 0.5)
    worker.resume()
    (job,) = finished(job)
    assert (job.status, job.error, job.attempts, notes(record)) == (
        COMPLETED,
        "",
        1,
        ["started 1", "ended 1"],
    )
    assert "is asked to stop" not in command.output()


def test_a_job_does_not_pay_for_a_worker_that_starts_slowly_and_is_stopped_at_its_own_limit(
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
        waits_for_its_worker(job, 0.5)
    free.touch()
    short, long = finished(short, long)
    assert (short.status, short.attempts) == (COMPLETED, 1)
    assert (long.status, long.error) == (FAILED, OWN_LIMIT)
    assert notes(record)[-1] == f"cleaned up: {OWN_LIMIT}"
    # Not as late as if its worker had never said that it began.
    assert (
        timedelta(seconds=0.4)
        < long.completed - long.started
        < timedelta(seconds=0.5 + BEGIN_TIMEOUT / 2)
    )


# What a job leaves to the next of its worker


@pytest.mark.parametrize("how", ["handlers", "ignored", "blocked"])
def test_a_job_that_took_over_the_signals_has_not_taken_them_from_the_next(
    run_peasy, tmp_path, how
):
    record = tmp_path / "record"
    run_peasy()
    (before,) = finished(jobs.seize_signals(how))
    job = jobs.clean_up(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    assert job.cancel() is True
    wait_until(lambda: row(job).completed)
    assert notes(record) == [f"started {before.result}", "cleaned up: It was cancelled."]
    assert (row(job).status, row(job).crashes) == (CANCELLED, 0)


def test_an_alarm_that_a_job_left_running_does_not_hit_the_next(run_peasy):
    run_peasy()
    before, after = finished(jobs.seize_signals("alarm"), jobs.alarm_left())
    assert after.result == [before.result, 0.0, 0.0]


# An async job


def test_an_async_job_that_is_cancelled_cleans_up_and_awaits_meanwhile(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = jobs.clean_up_later(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    assert job.cancel() is True
    wait_until(lambda: row(job).completed)
    assert notes(record)[1:] == ["cancelled", "cleaned up"]
    job = row(job)
    assert (job.status, job.errors, job.crashes, job.runner_id) == (CANCELLED, [], 0, None)
    assert "died" not in command.output()


def test_an_async_job_over_its_limit_cleans_up_and_has_failed(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.limited_later(str(tmp_path / "never"), str(record)), timeout=LATE)
    assert notes(record)[1:] == ["cancelled", "cleaned up"]
    assert (job.status, job.error, job.attempts, job.crashes) == (FAILED, OWN_LIMIT, 1, 0)
    assert "Traceback" in job.traceback  # its own: one that is killed has none
    assert "died" not in command.output()


# In a thread


def test_a_fork_that_comes_back_from_a_thread_runs_nothing_and_stays_nowhere(run_peasy, tmp_path):
    record = tmp_path / "record"
    env = {
        "PYTHONWARNINGS": "ignore::DeprecationWarning"
    }  # to fork beside threads is the job's own risk
    command = run_peasy("--worker-type", "thread", env=env)
    twice, after = finished(jobs.return_twice(str(record)), jobs.echo("after"))
    assert (twice.status, twice.result, twice.attempts, twice.crashes) == (
        COMPLETED,
        "the parent",
        1,
        0,
    )
    assert notes(record) == ["child", "parent"]
    assert after.result == "after"
    assert [process.pid for process in command.processes()] == [command.pid]


def test_a_thread_over_its_limit_keeps_its_slot_until_it_returns_and_has_then_failed(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy("--worker-type", "thread", settings={"PEASY_LEASE": 2})
    job, other = (
        jobs.slow_thread(str(tmp_path / "go"), str(record)),
        jobs.write_note(str(tmp_path / "other")),
    )
    command.wait_for_output(f"is asked to stop: {OWN_LIMIT}")
    heartbeats(3)  # the grace is over
    assert row(job).status == ONGOING
    assert row(other).status == PeasyJobQueue.ENQUEUED
    assert notes(record) == ["started"]
    Path(tmp_path, "go").touch()
    job, other = finished(job, other)
    assert notes(record) == ["started", "ended"]
    assert (job.status, job.error, job.result, job.attempts, job.crashes) == (
        FAILED,
        OWN_LIMIT,
        None,
        1,
        0,
    )
    assert other.status == COMPLETED
    assert job.completed <= other.started


def test_a_thread_over_its_limit_is_retried_after_it_returned_and_never_runs_twice_at_once(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy(
        "--worker-type", "thread", "--concurrency", "2", settings={"PEASY_LEASE": 2}
    )
    job = jobs.slow_thread_with_retry(str(tmp_path), str(record))
    command.wait_for_output(f"is asked to stop: {OWN_LIMIT}")
    (meanwhile,) = finished(jobs.echo("in the other thread"))
    assert meanwhile.result == "in the other thread"
    heartbeats(3)
    assert (row(job).status, row(job).claims, notes(record)) == (ONGOING, 1, ["started"])
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert notes(record) == ["started", "ended"] * 2
    assert (job.status, job.result, job.attempts, job.crashes) == (COMPLETED, "waited", 2, 0)
    assert [entry["message"] for entry in job.errors] == [OWN_LIMIT]


def test_a_thread_over_its_limit_stops_where_it_shows_its_progress(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy("--worker-type", "thread", settings={"PEASY_JOB_TIMEOUT": 0.4})
    (job,) = finished(jobs.track_for_ever(str(record)), timeout=LATE)
    reason = "The job took longer than its time limit of 0.4 s (PEASY_JOB_TIMEOUT)."
    assert notes(record) == ["started", f"noticed: {reason}"]
    assert (job.status, job.error) == (FAILED, reason)


# Recycling


def test_workers_are_replaced_after_so_many_jobs_and_none_is_lost(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings={**ALL, "PEASY_MAX_JOBS_PER_WORKER": 7})
    with transaction.atomic():
        todo = [jobs.short_work(str(record), number) for number in range(100)]
    done = finished(*todo, timeout=LATE)
    assert {(job.status, job.attempts, job.crashes) for job in done} == {(COMPLETED, 1, 0)}
    ran = [line.split() for line in notes(record)]
    assert sorted(int(number) for number, _ in ran) == list(range(100))
    by_pid: dict[str, int] = {}
    for _, pid in ran:
        by_pid[pid] = by_pid.get(pid, 0) + 1
    assert max(by_pid.values()) == 7
    assert len(by_pid) >= 15
    assert "died" not in command.output()
    wait_until(lambda: sum(not is_gone(int(pid)) for pid in by_pid) <= 2)


def test_without_a_number_a_worker_is_kept(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy(settings=ALL)
    finished(*[jobs.short_work(str(record), number) for number in range(50)], timeout=LATE)
    assert len({line.split()[1] for line in notes(record)}) == 1
    job = jobs.wait_for(str(tmp_path / "go"))
    running(job)
    Path(tmp_path, "go").touch()
    finished(job)
