"""With DEBUG a runner restarts when the code changes."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from django.core.management import call_command

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.runner import autoreload, loop
from peasy_jobs.statuses import COMPLETED, ENQUEUED
from tests.jobs import notes
from tests.processes import REPOSITORY, Command, both_worker_types
from tests.rows import assert_gone, finished, row, with_app
from tests.waiting import wait_until

CODE = """
import os, time
from peasy_jobs.peasy_jobs import peasy

@peasy.job("sketch")
def sketch():
    with open("record", "a") as record:
        record.write("{version}\\n")
    while os.path.exists("hold"):
        time.sleep(0.01)
    return "{version}"
"""
MANAGE = """\
import sys
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
PROGRAMS = {
    "manage.py": ("manage.py",),
    "python -m django": ("-m", "django"),
    "django-admin": (str(Path(sys.executable).with_name("django-admin")),),
}


class Project:
    """An app in a directory of its own. Its only job returns the version of its code."""

    def __init__(self, directory: Path) -> None:
        self.jobs = directory / "sketch" / "jobs.py"
        self.directory, self.record, self.hold = directory, directory / "record", directory / "hold"
        self.jobs.parent.mkdir()
        Path(directory, "sketch", "__init__.py").touch()
        Path(directory, "manage.py").write_text(MANAGE)
        self.settings = {"DEBUG": True, **with_app("sketch")}
        self.write("one")

    def write(self, version: str) -> None:
        self.jobs.write_text(CODE.format(version=version))

    def change(self, command: Command, version: str = "", *, text: str = "") -> None:
        self.jobs.write_text(text or CODE.format(version=version))
        self.touch(command, self.jobs)

    def touch(self, command: Command, file: Path) -> None:
        """Touch a file until the runner reports it: its watcher may not have started yet."""
        line = f"{file.relative_to(self.directory)} changed: reloading."
        seen, again_at = command.output().count(line), 0.0

        def noticed() -> bool:
            nonlocal again_at
            if time.monotonic() > again_at:
                os.utime(file)
                again_at = time.monotonic() + 0.5
            return command.output().count(line) > seen

        wait_until(noticed, message=command.describe)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def enqueue() -> PeasyJobQueue:
    return PeasyJobQueue.objects.create(title="sketch", job_name="sketch.jobs.sketch")


def reloaded(command: Command, times: int = 1) -> list[str]:
    """Wait until the runner has restarted so often. Return the line about its workers each time."""
    last_line = "Ctrl-C stops it."
    wait_until(lambda: command.output().count(last_line) == 1 + times, message=command.describe)
    return [line for line in command.output().splitlines() if line.endswith(last_line)]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_after_a_change_the_next_job_runs_the_new_code(run_peasy, project, program):
    path = os.pathsep.join([str(REPOSITORY), str(project.directory)])
    command = run_peasy(
        "--concurrency", "2", settings=project.settings, program=program, env={"PYTHONPATH": path}
    )
    assert finished(enqueue())[0].result == "one"
    project.change(command, "number two")
    waiting = [enqueue() for _ in range(20)]
    said = reloaded(command)
    assert said[0].startswith("2 process workers")
    assert said[1] == said[0]
    done = finished(*waiting, enqueue())
    assert {(job.status, job.result, job.attempts, job.crashes) for job in done} == {
        (COMPLETED, "number two", 1, 0)
    }
    assert "sketch/jobs.py changed: reloading.\n" in command.output()
    assert PeasyRunner.objects.get().pid == command.pid
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert "Traceback" not in command.output()
    assert_gone(command)


def test_a_change_before_the_watcher_has_started_is_found(run_peasy, project):
    command = run_peasy(settings=project.settings, cwd=project.directory).ready()
    project.write("two")  # once
    reloaded(command)
    assert finished(enqueue())[0].result == "two"


def change_while_a_job_runs(run_peasy, project, worker_type, **settings):
    """Change the code while a job runs, which ends when `project.hold` is deleted."""
    project.hold.touch()
    command = run_peasy("--worker-type", worker_type, settings={**project.settings, **settings})
    job = enqueue()
    wait_until(lambda: notes(project.record))
    project.change(command, "number two")
    return command, job


@both_worker_types
def test_a_running_job_may_finish_with_the_old_code(run_peasy, project, worker_type):
    command, job = change_while_a_job_runs(run_peasy, project, worker_type)
    project.hold.unlink()
    reloaded(command)
    (job,) = finished(job)
    assert job.result == "one"
    assert job.attempts == 1
    assert job.crashes == 0


@both_worker_types
def test_a_job_that_runs_on_is_given_back_soon_and_runs_again_with_the_new_code(
    run_peasy, project, worker_type
):
    command, job = change_while_a_job_runs(
        run_peasy, project, worker_type, PEASY_SHUTDOWN_TIMEOUT=600, PEASY_LEASE=600
    )
    wait_until(lambda: len(notes(project.record)) == 2, message=command.describe)
    project.hold.unlink()
    (job,) = finished(job)
    assert job.result == "number two"
    assert job.attempts == 1
    assert job.crashes == 0
    assert notes(project.record) == ["one", "number two"]
    assert len(PeasyRunner.objects.all()) == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("def sketch(:\n", "SyntaxError"),
        ("from sketch.nowhere import anything\n", "ModuleNotFoundError"),
    ],
    ids=["syntax", "import"],
)
def test_the_runner_waits_for_the_next_change_if_the_code_cannot_be_loaded(
    run_peasy, project, broken, reason
):
    command = run_peasy(settings=project.settings)
    project.change(command, text=broken)
    command.wait_for_output("Waiting for the next change.")
    assert reason in command.output()
    assert "sketch/jobs.py" in command.output()
    job = enqueue()
    project.change(command, "number two")
    assert finished(job)[0].result == "number two"
    assert len(reloaded(command)) == 2


def test_the_runner_waits_for_the_next_change_if_the_settings_are_invalid(
    run_peasy, project, tmp_path
):
    site = tmp_path / "site_settings.py"
    site.write_text("from tests.settings import *\n")
    command = run_peasy(settings=project.settings, env={"DJANGO_SETTINGS_MODULE": "site_settings"})
    site.write_text("PEASY_CONCURRENCY = 0\nfrom tests.settings import *\n")
    project.change(command, "number two")
    command.wait_for_output("Waiting for the next change.")
    assert "peasy_jobs.E006" in command.output()
    site.write_text("PEASY_CONCURRENCY = 3\nfrom tests.settings import *\n")
    assert "3 process workers" in reloaded(command)[1]


@both_worker_types
def test_a_signal_ends_a_runner_at_once_that_waits_for_a_job_before_it_restarts(
    run_peasy, project, worker_type
):
    command, job = change_while_a_job_runs(run_peasy, project, worker_type)
    command.signal(signal.SIGINT, group=True)
    assert command.wait() == 0
    assert command.output().count("run_peasy serves") == 1
    assert row(job).status == ENQUEUED
    assert row(job).runner_id is None
    assert_gone(command)


def test_ctrl_c_ends_a_runner_that_waits_for_code_that_can_be_loaded(run_peasy, project):
    # Ignored and blocked, as a shell starts processes in the background.
    ignoring = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
    command = run_peasy(settings=project.settings, program=("-c", ignoring, "-m", "django"))
    project.change(command, text="def sketch(:\n")
    command.wait_for_output("Waiting for the next change.")
    command.signal(signal.SIGINT, group=True)
    assert command.wait() == 0
    assert "KeyboardInterrupt" not in command.output()
    assert_gone(command)


def test_a_change_after_ctrl_c_has_no_effect(run_peasy, project):
    project.hold.touch()
    command = run_peasy(settings=project.settings)
    enqueue()
    wait_until(lambda: notes(project.record))
    command.signal(signal.SIGINT)
    command.wait_for_output("Stopping")
    project.write("number two")
    ended = time.monotonic() + 2.5  # the watcher looks every second
    wait_until(lambda: time.monotonic() > ended)
    project.hold.unlink()
    assert command.wait() == 0
    assert "reloading" not in command.output()
    assert notes(project.record) == ["one"]


@both_worker_types
def test_a_restart_leaks_no_descriptor(run_peasy, project, worker_type):
    command = run_peasy("--worker-type", worker_type, settings=project.settings)

    def descriptors() -> int:
        finished(enqueue())
        return psutil.Process(command.pid).num_fds()

    before = min(descriptors() for _ in range(3))  # a thread may still have its connection open
    for times in (1, 2):
        project.change(command, f"version {times}")
        reloaded(command, times)
        wait_until(lambda: descriptors() <= before, message=command.describe)
    if worker_type == "process":
        assert len(psutil.Process(command.pid).children()) == 1


def test_a_runner_restarts_when_a_template_changes(run_peasy, project):
    # Jobs render templates too, and Django caches them in each process.
    template = project.jobs.parent / "templates" / "mail.txt"
    template.parent.mkdir()
    template.write_text("Hello")
    command = run_peasy(settings=project.settings)
    project.touch(command, template)
    reloaded(command)


@pytest.mark.parametrize(
    ("debug", "options", "expected"),
    [
        (True, [], True),
        (True, ["--noreload"], False),
        (True, ["--exit-on-empty"], False),
        (False, [], False),
    ],
)
def test_the_code_is_watched_only_with_debug_and_without_options_that_exclude_it(
    db, settings, monkeypatch, debug, options, expected
):
    watching = []
    settings.DEBUG = debug
    monkeypatch.setattr(loop.Runner, "run", lambda self: True)
    monkeypatch.setattr(autoreload.Reloader, "__init__", lambda self, *args: watching.append(self))
    monkeypatch.setattr(autoreload.Reloader, "restart", lambda self: None)
    call_command("run_peasy", *options)
    assert bool(watching) is expected
