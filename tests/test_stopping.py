"""On a signal a runner exits with 0, whatever it is doing, and no job and no process is left."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.db import transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import COMPLETED, ENQUEUED, ONGOING
from tests import jobs
from tests.jobs import notes
from tests.processes import REPOSITORY, both_worker_types
from tests.rows import assert_gone, finished, heartbeats, is_gone, row, with_app, workers_of
from tests.waiting import wait_until

PROMPT = 5  # seconds; an idle machine needs a tenth of one
LONG_TIMEOUT = {"PEASY_SHUTDOWN_TIMEOUT": 600}
SHORT_TIMEOUT = {"PEASY_SHUTDOWN_TIMEOUT": 0.3}

both_signals = pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"]
)


def assert_given_back(job: PeasyJobQueue, claims: int = 1) -> None:
    """Check that a job is as if it had never been claimed, except for its fencing token."""
    job = row(job)
    assert job.status == ENQUEUED
    assert job.runner_id is None
    assert job.started is None
    assert job.completed is None
    assert job.attempts == 0
    assert job.crashes == 0
    assert job.claims == claims
    assert job.errors == []


# Idle


@both_worker_types
@both_signals
def test_an_idle_runner_exits_at_once_on_a_signal(run_peasy, worker_type, signum):
    command = run_peasy("--worker-type", worker_type, settings=LONG_TIMEOUT)
    finished(jobs.nothing())
    command.signal(signum)
    assert command.wait(PROMPT) == 0
    assert_gone(command)


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
def test_a_signal_during_start_up_ends_the_runner_without_a_traceback(run_peasy, group):
    command = run_peasy("--concurrency", "2")
    command.signal(signal.SIGINT, group=group)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    assert "Traceback" not in command.output()
    assert "died" not in command.output()


def test_a_signal_during_interpreter_shutdown_does_not_change_the_exit_code(run_peasy):
    command = run_peasy(settings=with_app("tests.fault_apps.SignalAtInterpreterExit"))
    finished(jobs.nothing())
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert "Traceback" not in command.output()


def test_a_signal_ends_a_runner_whose_fork_server_is_still_loading_the_project(run_peasy, tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    Path(slow, "__init__.py").touch()
    Path(slow, "jobs.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'loading').touch()\n"
        f"while not pathlib.Path({str(tmp_path)!r}, 'never').exists(): time.sleep(0.01)\n"
    )
    command = run_peasy(
        settings=with_app("slow"),
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
    )
    wait_until(Path(tmp_path, "loading").exists)
    command.signal(signal.SIGTERM)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    assert "Traceback" not in command.output()


# Busy


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@both_signals
def test_after_a_signal_a_runner_claims_nothing_and_lets_its_job_finish(
    run_peasy, tmp_path, signum, group
):
    # systemd, Docker, and Ctrl-C in a terminal signal the whole process group.
    go, record = tmp_path / "go", tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings={**LONG_TIMEOUT, "PEASY_LEASE": 2})
    job = jobs.last_words(str(go), str(record))
    wait_until(lambda: notes(record))
    command.signal(signum, group=group)
    command.wait_for_output("Stopping: claiming no more jobs, 1 still running.")
    late = jobs.write_note(str(record), "too late")
    heartbeats(2)  # it still renews its lease
    assert command.process.poll() is None
    assert row(job).status == ONGOING
    go.touch()
    assert command.wait() == 0
    job = row(job)
    assert job.status == COMPLETED
    assert job.result == "said"
    assert job.status_msg == "last words"
    assert job.extra == {"progress": 99}
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.runner_id is None
    assert_given_back(late, claims=0)
    assert len(notes(record)) == 1
    assert_gone(command)


def test_after_a_signal_a_runner_of_threads_claims_nothing_and_lets_its_job_finish(
    run_peasy, tmp_path
):
    go, record = tmp_path / "go", tmp_path / "record"
    command = run_peasy(
        "--worker-type", "thread", "--concurrency", "2", settings={**LONG_TIMEOUT, "PEASY_LEASE": 2}
    )
    job = jobs.last_words(str(go), str(record))
    wait_until(lambda: notes(record))
    command.signal(signal.SIGTERM, group=True)
    command.wait_for_output("Stopping: claiming no more jobs, 1 still running.")
    late = jobs.write_note(str(record), "too late")
    heartbeats(2)
    go.touch()
    assert command.wait() == 0
    job = row(job)
    assert job.status == COMPLETED
    assert job.result == "said"
    assert job.status_msg == "last words"
    assert job.attempts == 1
    assert_given_back(late, claims=0)
    assert_gone(command)


def test_outcomes_are_written_while_a_stopping_runner_waits_for_other_jobs(run_peasy, tmp_path):
    command = run_peasy("--concurrency", "2", settings=LONG_TIMEOUT)
    first = jobs.last_words(str(tmp_path / "first"), str(tmp_path / "record"))
    second = jobs.wait_for(str(tmp_path / "second"), str(tmp_path / "record"))
    wait_until(lambda: len(notes(tmp_path / "record")) == 2)
    command.signal(signal.SIGTERM)
    command.wait_for_output("Stopping")
    Path(tmp_path, "first").touch()
    finished(first)
    assert row(second).status == ONGOING
    Path(tmp_path, "second").touch()
    assert command.wait() == 0
    assert row(second).result == "waited"


# Jobs that do not end in time


@both_signals
def test_a_job_over_the_shutdown_timeout_is_killed_with_its_program_and_runs_again(
    run_peasy, tmp_path, signum
):
    go, record = tmp_path / "go", tmp_path / "record"
    job = jobs.program_and_wait(str(go), str(record))
    command = run_peasy(settings=SHORT_TIMEOUT)
    wait_until(lambda: notes(record))
    worker, program = map(int, notes(record)[0].split())
    assert not is_gone(worker)
    assert not is_gone(program)
    command.signal(signum)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    wait_until(lambda: is_gone(worker) and is_gone(program), 2)
    assert_given_back(job)
    assert command.output().count("Stopping 1 unfinished job; it will run again.") == 1

    go.touch()
    assert run_peasy("--exit-on-empty").wait() == 0
    job = row(job)
    assert job.status == COMPLETED
    assert job.result == "waited"
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.claims == 2
    assert len(notes(record)) == 2


def test_a_thread_over_the_shutdown_timeout_ends_with_its_process_and_runs_again(
    run_peasy, tmp_path
):
    go, record = tmp_path / "go", tmp_path / "record"
    job = jobs.wait_for(str(go), str(record))
    command = run_peasy("--worker-type", "thread", settings=SHORT_TIMEOUT)
    wait_until(lambda: notes(record))
    command.signal(signal.SIGTERM)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    assert_given_back(job)

    go.touch()
    assert run_peasy("--exit-on-empty", "--worker-type", "thread").wait() == 0
    job = row(job)
    assert job.status == COMPLETED
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.claims == 2
    assert len([line for line in notes(record) if "started" in line]) == 2


@both_worker_types
@both_signals
def test_a_second_signal_stops_the_jobs_at_once(run_peasy, tmp_path, worker_type, signum):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "never"), str(record))
    command = run_peasy("--worker-type", worker_type, settings=LONG_TIMEOUT)
    wait_until(lambda: notes(record))
    command.signal(signum)
    command.wait_for_output("Stopping")
    command.signal(signum)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    assert_given_back(job)


def test_jobs_that_have_not_started_are_given_back_as_soon_as_the_signal_arrives(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy(settings={**LONG_TIMEOUT, "PEASY_MAX_COMPLETED": None})
    # The runner sees that jobs are short, so it assigns many to a worker at once.
    finished(*[jobs.nothing() for _ in range(100)])
    with transaction.atomic():
        # The job sends the signal, earlier than the runner recalls the others because it is long.
        long = jobs.signal_runner(command.pid, str(tmp_path / "go"), str(record))
        short = [jobs.write_note(str(record), "too late") for _ in range(50)]
    wait_until(lambda: notes(record))
    pks = [job.pk for job in short]
    wait_until(
        lambda: (
            PeasyJobQueue.objects.filter(
                pk__in=pks, status=ENQUEUED, runner=None, attempts=0
            ).count()
            == 50
        )
    )
    assert row(long).status == ONGOING
    Path(tmp_path, "go").touch()
    assert command.wait() == 0
    assert row(long).status == COMPLETED
    assert len(notes(record)) == 1
    assert_gone(command)

    assert run_peasy("--exit-on-empty", settings={"PEASY_MAX_COMPLETED": None}).wait() == 0
    assert {row(job).status for job in short} == {COMPLETED}
    assert notes(record)[1:] == ["too late"] * 50


# Stopped workers


@pytest.mark.parametrize("size", [1, 5_000_000])
def test_a_suspended_worker_does_not_block_its_runner(run_peasy, size):
    command = run_peasy(
        "--concurrency", "2", settings={"PEASY_LEASE": 2, "PEASY_MAX_COMPLETED": None}
    )
    suspended, _ = workers_of(command)
    suspended.suspend()
    # One for each worker. The large job is more than the socket of the suspended worker holds.
    text = "x" * size
    with transaction.atomic():
        big = [jobs.echo(text), jobs.echo(text)]
    wait_until(lambda: PeasyJobQueue.objects.filter(status=COMPLETED).count() == 1)
    finished(*[jobs.nothing() for _ in range(20)])
    heartbeats(3)
    assert sorted(row(job).status for job in big) == [COMPLETED, ONGOING]
    suspended.resume()
    assert {len(job.result) for job in finished(*big)} == {size}
    command.signal(signal.SIGTERM)
    assert command.wait(PROMPT) == 0
    assert_gone(command)


def test_a_suspended_worker_is_killed_at_shutdown_and_its_job_given_back(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy(settings=SHORT_TIMEOUT)
    job = jobs.wait_for(str(tmp_path / "never"), str(record))
    wait_until(lambda: notes(record))
    (worker,) = workers_of(command)
    worker.suspend()
    command.signal(signal.SIGTERM)
    assert command.wait(PROMPT) == 0
    assert_gone(command)
    assert_given_back(job)


def test_a_runner_suspended_while_it_stops_still_writes_the_outcomes_it_has(run_peasy, tmp_path):
    go, record = tmp_path / "go", tmp_path / "record"
    timeout = 2
    settings = {**with_app("tests.fault_apps.NoPatience"), "PEASY_SHUTDOWN_TIMEOUT": timeout}
    command = run_peasy(settings=settings)
    job = jobs.wait_for(str(go), str(record))
    wait_until(lambda: notes(record))
    command.signal(signal.SIGTERM)
    command.wait_for_output("Stopping")
    command.signal(signal.SIGSTOP)
    go.touch()
    wait_until(lambda: "ended" in notes(record))
    time.sleep(timeout + 0.5)
    command.signal(signal.SIGCONT)
    assert command.wait(PROMPT) == 0
    job = row(job)
    assert job.status == COMPLETED
    assert job.runner_id is None
    assert_gone(command)
