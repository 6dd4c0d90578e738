"""A job spoils the process that it runs in: it is charged for what it did, and no other job notices."""

import pytest

from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.statuses import CANCELLED, COMPLETED, FAILED
from tests import jobs
from tests.jobs import notes
from tests.rows import finished, is_gone, row
from tests.waiting import wait_until


def processes(record) -> list[int]:
    return [int(line.removeprefix("started ")) for line in notes(record)]


# What a job leaves behind


@pytest.mark.parametrize("how", ["closed", "None", "unflushable"])
def test_a_job_that_leaves_a_broken_stdout_has_completed_and_the_next_one_can_print(
    run_peasy, tmp_path, how
):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.break_stdout(how, str(record)))
    assert (job.status, job.attempts, job.crashes, job.error) == (COMPLETED, 1, 0, "")
    assert notes(record) == ["ran"]
    (after,) = finished(jobs.print_line("heard"))
    assert (after.status, after.attempts, after.crashes, after.error) == (COMPLETED, 1, 0, "")
    command.wait_for_output("heard")
    assert "Traceback" not in command.output()


def test_a_runner_whose_thread_has_closed_stdout_goes_on_and_ends_as_ever(run_peasy, tmp_path):
    todo = [jobs.break_stdout("closed", str(tmp_path / "record")), jobs.echo("after")]
    command = run_peasy("--worker-type", "thread", "--exit-on-empty")
    assert [(job.status, job.attempts) for job in finished(*todo)] == [(COMPLETED, 1)] * 2
    assert command.wait() == 0
    assert "Traceback" not in command.output()


@pytest.mark.parametrize("returns", [True, False])
def test_a_job_that_closes_the_connection_to_its_runner_is_ended_and_told_so(
    run_peasy, tmp_path, returns
):
    record = tmp_path / "record"
    command = run_peasy()
    (job,) = finished(jobs.close_descriptors(str(record), returns))
    reason = "its job closed the connection to the runner"
    assert (job.status, job.error) == (FAILED, f"The worker running this job died ({reason}).")
    assert (job.attempts, job.crashes, job.runner_id) == (2, 2, None)
    assert len(set(processes(record))) == 2
    assert all(is_gone(pid) for pid in processes(record))
    assert f"died ({reason}). It runs again." in command.output()
    (after,) = finished(jobs.echo("after"))
    assert (after.result, after.crashes) == ("after", 0)
    assert "Traceback" not in command.output()


# What a job does to its process group


both_ways = pytest.mark.parametrize("how", ["setpgid", "setsid"])


@both_ways
def test_a_job_that_has_left_its_process_group_is_killed_when_it_is_cancelled(
    run_peasy, tmp_path, how
):
    record = tmp_path / "record"
    run_peasy()
    job = jobs.leave_group(how, str(record))
    wait_until(lambda: processes(record))
    assert peasy.cancel(job.pk)
    wait_until(lambda: row(job).runner_id is None)
    assert (row(job).status, row(job).attempts) == (CANCELLED, 1)
    assert [is_gone(pid) for pid in processes(record)] == [True]
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


@both_ways
def test_a_job_that_has_left_its_process_group_does_not_outlive_its_runner(
    run_peasy, tmp_path, how
):
    record = tmp_path / "record"
    command = run_peasy()
    jobs.leave_group(how, str(record))
    wait_until(lambda: processes(record))
    command.kill()
    wait_until(lambda: not command.processes(), 1, lambda: f"Left: {command.processes()}")
