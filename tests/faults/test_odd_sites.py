"""Unusual sites: connection pools, autocommit off, and apps with side effects when they load."""

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import COMPLETED, FAILED
from tests import jobs
from tests.processes import both_worker_types
from tests.rows import finished, row, running, with_app
from tests.waiting import wait_until

only_postgres = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only its driver has a pool"
)


def database(**changes: Any) -> dict[str, Any]:
    """Return settings for a runner that connects to the database of this test differently."""
    names = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    own = {name: connection.settings_dict[name] for name in names}
    return {"DATABASES": {"default": {**own, "NAME": str(own["NAME"]), **changes}}}


def app(directory: Path, name: str, code: str) -> dict[str, Any]:
    """Return settings for a runner in `directory`, with an app that has this module `jobs`."""
    package = directory / name
    package.mkdir()
    Path(package, "__init__.py").touch()
    Path(package, "jobs.py").write_text(code)
    return with_app(name)


# Connections


@only_postgres
def test_workers_do_not_share_connections_of_a_pool_used_before_the_fork(run_peasy, tmp_path):
    record = tmp_path / "record"
    asking = app(
        tmp_path,
        "asking",
        "from django.db import connection\nconnection.cursor().execute('SELECT 1')\n",
    )
    command = run_peasy(
        "--concurrency", "3", settings={**asking, **database(OPTIONS={"pool": True})}
    )
    done = finished(*[jobs.database_session(str(record), 3) for _ in range(3)])
    assert [job.error for job in done] == ["", "", ""]
    assert len({job.result for job in done}) == 3
    assert "Traceback" not in command.output()


@only_postgres
def test_the_runner_takes_no_connection_from_the_pool_of_its_jobs(run_peasy, tmp_path):
    pool = {"min_size": 1, "max_size": 1, "timeout": 3}
    run_peasy("--worker-type", "thread", settings=database(OPTIONS={"pool": pool}))
    (job,) = finished(jobs.database_session(str(tmp_path / "record"), 1))
    assert job.status == COMPLETED
    assert job.error == ""


@both_worker_types
def test_without_autocommit_the_runner_commits_what_it_writes(run_peasy, tmp_path, worker_type):
    run_peasy("--worker-type", worker_type, settings=database(AUTOCOMMIT=False))
    job = jobs.progress_then_wait(str(tmp_path / "go"))
    running(job)
    wait_until(lambda: row(job).status_msg == "half way")
    Path(tmp_path, "go").touch()
    done = finished(job, *[jobs.echo(number) for number in range(3)])
    assert {(job.status, job.attempts, job.crashes) for job in done} == {(COMPLETED, 1, 0)}


# Side effects of loading an app


@both_worker_types
def test_language_and_time_zone_activated_while_loading_do_not_reach_jobs(
    run_peasy, tmp_path, worker_type
):
    code = "from django.utils import timezone, translation as language\n"
    code += "language.activate('de')\ntimezone.activate('Asia/Tokyo')\n"
    run_peasy("--worker-type", worker_type, settings=app(tmp_path, "speaking", code))
    done = finished(jobs.language_and_zone(), jobs.language_and_zone())
    assert [job.result for job in done] == [[settings.LANGUAGE_CODE, settings.TIME_ZONE]] * 2


# Interpreter flags


def test_interpreter_flags_reach_the_workers(run_peasy):
    # In the locale C Python takes UTF-8 by itself.
    run_peasy(flags=("-O", "-X", "utf8"), env={"LC_ALL": "C.UTF-8"})
    (job,) = finished(jobs.interpreter_flags())
    assert job.result == [1, 1]


# Errors of an app


@both_worker_types
def test_a_module_that_calls_sys_exit_fails_only_the_jobs_of_its_app(
    run_peasy, tmp_path, worker_type
):
    settings = app(tmp_path, "leaving", "import sys\n\nsys.exit('no licence')\n")
    bad = PeasyJobQueue.objects.create(title="of that app", job_name="leaving.jobs.task")
    command = run_peasy("--worker-type", worker_type, settings=settings)
    bad, good = finished(bad, jobs.echo(1))
    assert good.status == COMPLETED
    assert good.attempts == 1
    assert good.crashes == 0
    assert bad.status == FAILED
    assert bad.attempts == 1
    assert bad.crashes == 0
    assert "sys.exit('no licence')" in bad.error
    assert str(tmp_path / "leaving" / "jobs.py") in bad.traceback
    assert command.output().count("Could not import leaving.jobs.") == 1
    assert command.process.poll() is None
