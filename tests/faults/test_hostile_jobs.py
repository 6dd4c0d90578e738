"""A job that damages its worker process is charged for it, and no other job is affected."""

import pytest

from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.statuses import CANCELLED, COMPLETED, FAILED
from tests import jobs
from tests.jobs import notes
from tests.rows import finished, is_gone, row
from tests.waiting import wait_until


def started_pids(record) -> list[int]:
    """Return the process id of each run so far."""
    return [int(line.removeprefix("started ")) for line in notes(record)]


# What a job leaves behind


@pytest.mark.parametrize("how", ["closed", "None", "unflushable"])
def test_a_job_that_breaks_stdout_completes_and_the_next_job_can_print(run_peasy, tmp_path, how):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.break_stdout(how, str(record)))
    assert job.status == COMPLETED
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.error == ""
    assert notes(record) == ["ran"]
    (after,) = finished(jobs.print_line("heard"))
    assert after.status == COMPLETED
    assert after.attempts == 1
    assert after.crashes == 0
    assert after.error == ""
    command.wait_for_output("heard")
    assert "Traceback" not in command.output()


def test_a_runner_of_threads_survives_a_job_that_closes_stdout(run_peasy, tmp_path):
    todo = [jobs.break_stdout("closed", str(tmp_path / "record")), jobs.echo("after")]
    command = run_peasy("--worker-type", "thread", "--exit-on-empty")
    assert [(job.status, job.attempts) for job in finished(*todo)] == [(COMPLETED, 1)] * 2
    assert command.wait() == 0
    assert "Traceback" not in command.output()


@pytest.mark.parametrize("returns", [True, False])
def test_a_job_that_closes_the_job_socket_is_killed_and_fails_with_the_reason(
    run_peasy, tmp_path, returns
):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.close_descriptors(str(record), returns))
    reason = "its job closed the connection to the runner"
    assert job.status == FAILED
    assert job.error == f"The worker running this job died ({reason})."
    assert job.attempts == 2
    assert job.crashes == 2
    assert job.runner_id is None
    assert len(set(started_pids(record))) == 2
    assert all(is_gone(pid) for pid in started_pids(record))
    assert f"died ({reason}). It runs again." in command.output()
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    assert after.crashes == 0
    assert "Traceback" not in command.output()


# What a job does to its process group


both_ways = pytest.mark.parametrize("how", ["setpgid", "setsid"])


@both_ways
def test_a_cancelled_job_that_has_left_its_process_group_is_killed(run_peasy, tmp_path, how):
    record = tmp_path / "record"
    run_peasy()
    job = jobs.leave_group(how, str(record))
    wait_until(lambda: started_pids(record))
    assert peasy.cancel(job.pk)
    wait_until(lambda: row(job).runner_id is None)
    assert row(job).status == CANCELLED
    assert row(job).attempts == 1
    assert [is_gone(pid) for pid in started_pids(record)] == [True]
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


@both_ways
def test_a_job_that_has_left_its_process_group_does_not_outlive_its_runner(
    run_peasy, tmp_path, how
):
    record = tmp_path / "record"
    command = run_peasy()
    jobs.leave_group(how, str(record))
    wait_until(lambda: started_pids(record))
    command.kill()
    wait_until(lambda: not command.processes(), 1, lambda: f"Left: {command.processes()}")
