"""One `run_peasy` at work, as a user would start it: what it says, what it runs, when and in which order."""

import itertools
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic

import psutil
import pytest
from django.db import connection, transaction

from peasy_jobs import conf
from peasy_jobs.exceptions import JobFunctionNotFound
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.runner.loop import Runner
from peasy_jobs.statuses import COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import wakeup
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.querysets import BATCH, JobQuerySet
from tests import jobs
from tests.jobs import notes
from tests.processes import Command, both_worker_types
from tests.rows import finished, heartbeats, row, runner, running, with_app
from tests.waiting import wait_until

WOKEN = {
    "sqlite": "by every commit and every 2 s",
    "postgresql": "by NOTIFY and every 2 s",
    "mysql": "by a look every 0.1 s",
}
LONG_POLL = {"PEASY_POLLING_INTERVAL": 60, "PEASY_LEASE": 2}
SOON = timedelta(seconds=10)  # far below the interval, far above what a busy machine needs


def stop(command: Command) -> str:
    """Let it end what it runs, and return all that it printed."""
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    return command.output()


# What it says


def test_two_lines_say_what_is_served_by_which_workers_and_how_they_are_woken(run_peasy):
    command = run_peasy("--queue", "mail", "--queue", "reports", "--concurrency", "2")
    lines = command.wait_for_output("Ctrl-C stops it.").splitlines()
    database = f"{connection.vendor} database {connection.settings_dict['NAME']}"
    assert lines == [
        f"run_peasy serves queues mail, reports of {database} as runner {runner().pk}.",
        f"2 process workers, woken {WOKEN[connection.vendor]}. Ctrl-C stops it.",
    ]


def test_each_finished_job_has_one_line_in_the_log_and_a_start_has_none(run_peasy):
    good, bad = jobs.echo(1), jobs.boom("no luck")
    command = run_peasy()
    finished(good, bad)
    lines = [line for line in stop(command).splitlines() if "(job " in line]
    assert [
        line.partition(" return a ")[0].split()[-1] for line in lines if f"(job {good.pk})" in line
    ] == ["INFO"]
    assert [
        line
        for line in lines
        if f"(job {bad.pk}) failed: ValueError: no luck" in line and "ERROR" in line
    ]
    assert len(lines) == 2


def test_verbosity_3_also_shows_starts(run_peasy):
    job = jobs.nothing()
    command = run_peasy("-v", "3")
    finished(job)
    assert f"DEBUG do nothing (job {job.pk}) starts." in stop(command)


def test_verbosity_0_shows_only_what_is_wrong(run_peasy):
    good, bad = jobs.nothing(), jobs.boom("no luck")
    command = run_peasy("-v", "0")
    finished(good, bad)
    (line,) = [line for line in stop(command).splitlines() if "(job " in line]
    assert f"(job {bad.pk}) failed: ValueError: no luck" in line


@both_worker_types
def test_a_project_that_configures_logging_itself_loses_no_line_and_gets_none_twice(
    run_peasy, tmp_path, worker_type
):
    log = tmp_path / "site.log"
    handlers = {"file": {"class": "logging.FileHandler", "filename": str(log)}}
    # As most projects write it: what exists before is disabled unless `disable_existing_loggers` says otherwise.
    site = {
        "LOGGING": {
            "version": 1,
            "handlers": handlers,
            "root": {"handlers": ["file"], "level": "INFO"},
        }
    }
    left_open, done = jobs.open_transaction(), jobs.echo(1)
    command = run_peasy("--worker-type", worker_type, settings=site)
    finished(left_open, done)
    assert "INFO" not in stop(command)
    lines = log.read_text().splitlines()
    assert len([line for line in lines if f"(job {done.pk}) completed" in line]) == 1
    assert (
        len([line for line in lines if "A job left a transaction open" in line]) == 1
    )  # said by the worker itself


# --exit-on-empty


def test_exit_on_empty_runs_what_may_run_and_says_how_many_wait_for_later(run_peasy, tmp_path):
    record = tmp_path / "record"
    for number in range(3):
        jobs.write_note(str(record), number)
    jobs.write_note.using(run_after=timedelta(seconds=-1))(str(record), "was due")
    later = [
        jobs.write_note.using(run_after=timedelta(hours=1))(str(record), "too early")
        for _ in range(2)
    ]
    command = run_peasy("--exit-on-empty")
    assert command.wait() == 0
    assert sorted(notes(record)) == ["0", "1", "2", "was due"]
    assert "Nothing to run now; 2 jobs wait for later." in command.output()
    assert [row(job).status for job in later] == [SCHEDULED, SCHEDULED]
    assert not PeasyRunner.objects.exists()


@both_worker_types
def test_exit_on_empty_also_runs_what_the_jobs_enqueue(run_peasy, tmp_path, worker_type):
    jobs.enqueue_notes(str(tmp_path / "record"), 3)
    assert run_peasy("--exit-on-empty", "--worker-type", worker_type).wait() == 0
    assert sorted(notes(tmp_path / "record")) == ["child 0", "child 1", "child 2"]


def test_exit_on_empty_prunes_to_the_maxima_on_its_way_out_whatever_the_grace(run_peasy):
    kept = {
        "PEASY_MAX_COMPLETED": 2,
        "PEASY_MAX_FAILED": 1,
        "PEASY_MAX_CANCELLED": 0,
        "PEASY_PRUNE_GRACE": 3600,
    }
    cancelled = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=cancelled.pk).update(status=PeasyJobQueue.CANCELLED)
    good, bad = [jobs.nothing() for _ in range(5)], [jobs.boom() for _ in range(3)]
    assert run_peasy("--exit-on-empty", settings=kept).wait() == 0
    left = set(PeasyJobQueue.objects.values_list("pk", flat=True))
    assert left == {good[-1].pk, good[-2].pk, bad[-1].pk}


def test_exit_on_empty_prunes_a_batch_in_each_turn(transactional_db, monkeypatch):
    # A turn that takes a third of the lease counts as a database that is silent, and is cut off.
    monkeypatch.setattr("peasy_jobs.store.querysets.BATCH", 2)
    jobs.nothing.map([()] * 7)
    PeasyJobQueue.objects.update(status=COMPLETED, completed=as_field(database_now(connection)))
    left, tick = [7], Runner.tick

    def counted(self):
        tick(self)
        left.append(PeasyJobQueue.objects.count())

    monkeypatch.setattr(Runner, "tick", counted)
    settings = replace(conf.get(), worker_type="thread", max_completed=0, prune_grace=3600)
    try:
        assert Runner(settings, lambda text: None, exit_on_empty=True).run()
    finally:
        connection.close()  # set up as a runner's own
    assert left[-1] == 0
    assert max(before - after for before, after in itertools.pairwise(left)) == 2


def test_exit_on_empty_does_not_wait_for_what_other_runners_run(run_peasy, tmp_path):
    long = jobs.wait_for(str(tmp_path / "go"))
    other = run_peasy()
    running(long)
    assert run_peasy("--exit-on-empty").wait() == 0
    assert row(long).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(long)
    stop(other)


# Options and settings


def test_only_the_queues_that_are_named_are_served(run_peasy, tmp_path):
    record = str(tmp_path / "record")
    other = jobs.write_note.using(priority=100)(record, "default")
    for name in ("mail", "reports"):
        jobs.write_note.using(queue_name=name)(record, name)
    late = jobs.write_note.using(run_after=timedelta(hours=1))(record, "later")
    command = run_peasy("--queue", "mail", "--queue", "reports", "--exit-on-empty")
    assert command.wait() == 0
    assert sorted(notes(record)) == ["mail", "reports"]
    assert [row(other).status, row(late).status] == [ENQUEUED, SCHEDULED]
    assert "0 jobs wait for later" in command.output()


@both_worker_types
def test_as_many_jobs_run_at_once_as_concurrency_says(run_peasy, tmp_path, worker_type):
    waiting = [jobs.wait_for(str(tmp_path / "go"), str(tmp_path / "record")) for _ in range(4)]
    command = run_peasy(
        "--concurrency", "3", "--worker-type", worker_type, settings={"PEASY_LEASE": 2}
    )
    wait_until(lambda: len(notes(tmp_path / "record")) >= 3)
    heartbeats(2)
    started = notes(tmp_path / "record")
    assert len(started) == 3
    assert len(set(started)) == (3 if worker_type == "process" else 1)
    assert (f"started {command.pid}" in started) == (worker_type == "thread")
    Path(tmp_path, "go").touch()
    finished(*waiting)


def test_the_settings_say_how_many_workers_of_which_type_there_are(run_peasy):
    command = run_peasy(settings={"PEASY_CONCURRENCY": 3, "PEASY_WORKER_TYPE": "thread"})
    assert "3 thread workers" in command.wait_for_output("Ctrl-C stops it.")
    assert (runner().concurrency, runner().worker_type) == (3, "thread")
    assert [process.pid for process in command.processes()] == [command.pid]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "0"], "'0' is not a number of workers: give a whole number, 1 or more."),
        (
            ["--concurrency", "two"],
            "'two' is not a number of workers: give a whole number, 1 or more.",
        ),
        (
            ["--worker-type", "greenlet"],
            "invalid choice: 'greenlet' (choose from 'process', 'thread')",
        ),
        (["--queue"], "argument --queue: expected one argument"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run_peasy, arguments, message):
    command = run_peasy(*arguments, ready=False)
    assert command.wait() == 2
    assert message in command.output()
    assert "Traceback" not in command.output()
    assert not PeasyRunner.objects.exists()


@pytest.mark.parametrize(
    ("name", "value", "id", "hint"),
    [
        (
            "PEASY_CONCURRENCY",
            0,
            "E006",
            "Set it to a whole number of workers, 1 or more.",
        ),
        ("PEASY_WORKER_TYPE", "greenlet", "E007", 'Set it to "process" or "thread".'),
        ("PEASY_POLLING_INTERVAL", "2", "E005", "Set it to a number of seconds, 0.01 or more."),
    ],
)
def test_a_runner_refuses_to_start_on_a_wrong_setting(run_peasy, name, value, id, hint):
    job = jobs.nothing()
    command = run_peasy(settings={name: value}, ready=False)
    assert command.wait() == 1
    assert f"(peasy_jobs.{id}) {name} is {value!r}." in command.output()
    assert hint in command.output()
    assert "Traceback" not in command.output()
    assert row(job).status == ENQUEUED


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite has databases in memory")
def test_a_runner_refuses_a_database_in_memory(run_peasy):
    command = run_peasy(env={"PEASY_TEST_DB_NAME": ":memory:"}, ready=False)
    assert command.wait() == 1
    assert "CommandError: The jobs are in an in-memory database ('default')" in command.output()
    assert "Traceback" not in command.output()


def test_a_runner_works_from_any_directory(run_peasy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_peasy(cwd=elsewhere)
    (job,) = finished(jobs.echo(1))
    assert job.result == 1


# How it learns of new work


def test_an_idle_runner_wakes_at_once_for_a_new_job(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    for _ in range(2):
        heartbeats(2)  # idle for longer than it looks around after work
        (job,) = finished(jobs.nothing())
        assert job.started - job.created < SOON


@pytest.mark.skipif(
    connection.vendor == "sqlite",
    reason="SQLite has one writer: the runner could not renew its lease",
)
def test_an_idle_runner_wakes_when_the_transaction_of_a_job_commits(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    with transaction.atomic():
        job = jobs.nothing()
        heartbeats(3)  # all that it does for a hint is over by the commit
    committed = as_field(database_now(connection))
    (done,) = finished(job)
    assert done.started - committed < SOON


def test_a_burst_of_jobs_by_one_process_is_all_found_at_once(run_peasy):
    # On PostgreSQL only the first of them is announced.
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    heartbeats(2)
    for job in finished(*[jobs.nothing() for _ in range(20)]):
        assert job.started - job.created < SOON


def test_polling_alone_finds_jobs_that_nobody_announced(run_peasy):
    # By SQL, which sends no NOTIFY.
    run_peasy(settings={"PEASY_POLLING_INTERVAL": 0.5, "PEASY_LEASE": 2})
    (pattern,) = finished(jobs.echo(1))
    heartbeats(2)
    table = connection.ops.quote_name(PeasyJobQueue._meta.db_table)
    columns = [field.column for field in PeasyJobQueue._meta.fields if field.column != "id"]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE id = %s", [pattern.pk])
        values = dict(zip(columns, cursor.fetchone(), strict=True))
        values |= {
            "status": ENQUEUED,
            "started": None,
            "completed": None,
            "result_data": None,
            "title": "by hand",
        }
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
            [values[column] for column in columns],
        )
    (job,) = finished(PeasyJobQueue.objects.get(title="by hand"))
    assert job.result == 1


def test_polling_alone_is_sufficient_when_no_hint_ever_comes(run_peasy):
    no_wakeups = with_app("tests.fault_apps.NoWakeups")
    command = run_peasy(settings={"PEASY_POLLING_INTERVAL": 0.5, "PEASY_LEASE": 2, **no_wakeups})
    command.wait_for_output("woken by nothing")
    finished(jobs.nothing())
    heartbeats(2)
    finished(jobs.nothing())


def test_a_scheduled_job_runs_when_it_is_due_without_waiting_for_the_poll(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    heartbeats(2)
    job = jobs.nothing.using(run_after=timedelta(seconds=1))()
    (done,) = finished(job)
    assert timedelta(0) <= done.started - job.run_after < SOON


def test_more_jobs_than_one_round_promotes_run_without_waiting_for_the_poll(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    finished(*jobs.nothing.using(run_after=timedelta(seconds=1)).map([()] * (2 * BATCH + 1)))


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL notifies")
def test_a_runner_that_is_told_of_jobs_all_the_time_runs_what_is_due(run_peasy):
    # A hint leads to a claim without a look, and only a look finds what is due.
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    job = jobs.nothing.using(run_after=timedelta(seconds=1))()
    with connection.cursor() as cursor:
        wait_until(
            lambda: [
                cursor.execute(f"NOTIFY {wakeup.CHANNEL}"),
                PeasyJobQueue.objects.get(pk=job.pk).status == COMPLETED,
            ][1]
        )


def test_due_is_what_the_clock_of_the_database_says(run_peasy):
    # The runner's own clock is two hours ahead.
    run_peasy(
        settings={"PEASY_POLLING_INTERVAL": 0.2, **with_app("tests.fault_apps.ClockTwoHoursAhead")}
    )
    early = jobs.nothing.using(run_after=timedelta(hours=1))()
    job = jobs.nothing.using(run_after=timedelta(seconds=1))()
    (done,) = finished(job)
    assert timedelta(0) <= done.started - job.run_after < SOON
    assert timedelta(0) <= done.completed - done.started < SOON
    assert row(early).status == SCHEDULED


# In which order, how often


@both_worker_types
def test_one_worker_runs_the_higher_priority_first_and_then_the_oldest(
    run_peasy, tmp_path, worker_type
):
    record = str(tmp_path / "record")
    for name, priority in [("a", 0), ("b", -5), ("c", 100), ("d", 0), ("e", 100), ("f", -100)]:
        jobs.in_order.using(priority=priority)(record, name)
    assert run_peasy("--exit-on-empty", "--worker-type", worker_type).wait() == 0
    assert notes(record) == ["c", "e", "a", "d", "b", "f"]


def test_three_runners_run_five_hundred_jobs_each_once(run_peasy, tmp_path):
    record = str(tmp_path / "record")
    runners = [run_peasy("--concurrency", "2") for _ in range(3)]
    with transaction.atomic():
        todo = [jobs.write_note(record, number) for number in range(500)]
    done = finished(*todo, timeout=30)
    assert sorted(map(int, notes(record))) == list(range(500))
    assert {(job.status, job.attempts, job.claims) for job in done} <= {
        (COMPLETED, 1, n) for n in range(1, 20)
    }
    for command in runners:
        stop(command)


def test_short_jobs_behind_a_long_one_are_run_by_the_idle_worker(run_peasy, tmp_path):
    command = run_peasy("--concurrency", "2", settings={"PEASY_MAX_COMPLETED": None})
    finished(
        *[jobs.nothing() for _ in range(100)]
    )  # seen to be short, so that many are given to a worker at once
    record = str(tmp_path / "record")
    with transaction.atomic():
        long = jobs.wait_for(str(tmp_path / "go"))
        short = [jobs.write_note(record, number) for number in range(300)]
    done = finished(*short)
    assert row(long).status == ONGOING
    assert sorted(map(int, notes(record))) == list(range(300))
    assert {(job.status, job.attempts) for job in done} == {(COMPLETED, 1)}
    assert max(job.completed for job in done) - row(long).started < SOON
    Path(tmp_path, "go").touch()
    finished(long)
    stop(command)


def test_short_jobs_behind_a_long_one_wait_without_keeping_the_runner_busy_and_run_later(
    run_peasy, tmp_path
):
    command = run_peasy(settings={"PEASY_MAX_COMPLETED": None, "PEASY_LEASE": 5})
    finished(*[jobs.nothing() for _ in range(100)])
    record = str(tmp_path / "record")
    with transaction.atomic():
        long = jobs.wait_for(str(tmp_path / "go"))
        short = [jobs.write_note(record, number) for number in range(300)]
    running(long)
    process = psutil.Process(command.pid)
    heartbeats(1)
    before = process.cpu_times().user + process.cpu_times().system
    heartbeats(1)
    assert process.cpu_times().user + process.cpu_times().system - before < 0.4  # in about a second
    # Another runner may have them at once: they do not wait for the worker that cannot run them.
    other = run_peasy()
    finished(*short[:200])
    assert row(long).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(long, *short)
    assert sorted(map(int, notes(record))) == list(range(300))
    stop(other)
    stop(command)


def test_a_runner_that_was_held_up_by_a_long_job_runs_what_it_had_given_back(run_peasy, tmp_path):
    run_peasy(settings={"PEASY_MAX_COMPLETED": None})
    finished(*[jobs.nothing() for _ in range(100)])
    record = str(tmp_path / "record")
    with transaction.atomic():
        long = jobs.wait_for(str(tmp_path / "go"))
        short = [jobs.write_note(record, number) for number in range(20)]
    running(long)
    wait_until(lambda: PeasyJobQueue.objects.filter(status=ONGOING).count() == 1)
    Path(tmp_path, "go").touch()
    done = finished(long, *short)
    assert sorted(map(int, notes(record))) == list(range(20))
    assert {(job.status, job.attempts) for job in done} == {(COMPLETED, 1)}


# What a running job shows


@both_worker_types
def test_progress_is_seen_while_the_job_runs_and_stays_when_it_has_ended(
    run_peasy, tmp_path, worker_type
):
    run_peasy("--worker-type", worker_type)
    job = jobs.progress_then_wait(str(tmp_path / "go"))
    wait_until(lambda: row(job).status_msg)
    seen = row(job)
    assert (seen.status, seen.status_msg, seen.extra) == (ONGOING, "half way", {"progress": 50})
    Path(tmp_path, "go").touch()
    (done,) = finished(job)
    assert (done.status, done.status_msg, done.extra) == (COMPLETED, "half way", {"progress": 50})


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer: it shows when the job commits"
)
def test_progress_inside_a_transaction_is_seen_before_it_commits(run_peasy, tmp_path):
    run_peasy()
    job = jobs.progress_in_transaction(str(tmp_path / "go"))
    wait_until(lambda: row(job).status_msg == "inside")
    assert row(job).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(job)


def test_progress_arrives_from_a_thread_a_fork_and_another_job(run_peasy, tmp_path):
    target = jobs.nothing.using(queue_name="nobody serves this")()
    thread, fork, afar = (
        jobs.progress_from_thread(),
        jobs.progress_from_fork(),
        jobs.progress_of(target.pk),
    )
    run_peasy()
    thread, fork, afar = finished(thread, fork, afar)
    assert (thread.status_msg, thread.extra) == ("from a thread", {"progress": 30})
    assert (fork.status_msg, fork.extra) == ("from a fork", {"progress": 40})
    assert (row(target).status_msg, row(target).extra) == ("from afar", {"progress": 60})
    assert afar.status_msg == ""
    assert {thread.status, fork.status, afar.status} == {COMPLETED}


def test_the_last_progress_comes_with_the_end_of_the_job(run_peasy):
    # Too short for any write in between.
    run_peasy()
    (job,) = finished(jobs.track_rows(1234))
    assert (job.status_msg, job.extra) == ("Importing rows: 1,234 of 1,234", {"progress": 100})
    assert job.result == sum(range(1234))


def test_what_a_job_prints_is_seen_at_once(run_peasy):
    command = run_peasy(env={"PYTHONUNBUFFERED": ""})
    jobs.print_line("hello from a job")
    command.wait_for_output("hello from a job")


# Whatever a job does


@both_worker_types
def test_arguments_results_and_the_own_key_arrive(run_peasy, worker_type):
    todo = [
        jobs.give_back(1, "zwei", three=(3, {"vier"})),
        jobs.own_pk(),
        jobs.own_pk(77),
        jobs.asynchronous(4),
    ]
    run_peasy("--worker-type", worker_type)
    done = finished(*todo)
    assert [job.result for job in done] == [
        [[1, "zwei"], {"three": (3, {"vier"})}],
        todo[1].pk,
        77,
        5,
    ]
    assert {(job.status, job.attempts, job.claims, job.crashes, job.error) for job in done} == {
        (COMPLETED, 1, 1, 0, "")
    }
    assert all(job.created <= job.started <= job.completed for job in done)
    assert {job.runner_id for job in done} == {None}


@both_worker_types
def test_a_runner_lives_on_whatever_its_jobs_and_rows_are(run_peasy, worker_type):
    forged = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=forged.pk).update(job_name="os.system", args_data=b"J[]")
    foreign = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=foreign.pk).update(job_name="antigravity.fly")
    unsigned = jobs.echo(1)
    PeasyJobQueue.objects.filter(pk=unsigned.pk).update(args_data=b"cos\nsystem\n(S'exit 1'\ntR.")
    moved = jobs.give_back({1})
    PeasyJobQueue.objects.filter(pk=moved.pk).update(job_name="tests.jobs.echo")
    no_job = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=no_job.pk).update(job_name="tests.jobs.no_job")
    unknown = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=unknown.pk).update(job_name="tests.jobs.renamed_since")
    bad = [
        forged,
        foreign,
        unsigned,
        moved,
        no_job,
        jobs.boom(),
        jobs.leave(3),
        jobs.generator(),
        jobs.lots(1001),
    ]
    good = jobs.echo("still here")
    command = run_peasy("--worker-type", worker_type, settings={"PEASY_MAX_PAYLOAD": 1000})
    *bad, good = finished(*bad, good)
    errors = [
        "os.system is not decorated with @peasy.job, so the runner will not call it.",
        "antigravity.fly is not inside an installed app, so the runner will not import it.",
        "The stored arguments of this job are not in a format that peasy_jobs writes.",
        "The stored arguments of this job were not signed by this site for tests.jobs.echo",
        "tests.jobs.no_job is not decorated with @peasy.job",
        "ValueError: boom",
        "The job called sys.exit(3).",
        "its result (generator) cannot be stored",
        "its result (str) cannot be stored: 1,004 bytes are more than PEASY_MAX_PAYLOAD, which is 1,000",
    ]
    for job, error in zip(bad, errors, strict=True):
        assert error in job.error
        assert (job.status, job.attempts, job.crashes) == (FAILED, 1, 0)
    assert good.result == "still here"
    unknown.refresh_from_db()  # put back for a minute: it may be yesterday's runner that meets today's job
    assert unknown.error == str(JobFunctionNotFound("tests.jobs.renamed_since"))
    assert (unknown.status, unknown.attempts) == (PeasyJobQueue.SCHEDULED, 0)
    assert stop(command).count("Traceback") == 0


def test_megabytes_go_in_and_come_out(run_peasy):
    text = "0123456789" * 500_000
    jobs_ = [jobs.echo(text) for _ in range(3)]
    run_peasy("--concurrency", "2")
    for job in finished(*jobs_, timeout=30):
        assert job.result == text


@both_worker_types
def test_a_transaction_that_a_job_leaves_open_is_rolled_back_before_the_next_job(
    run_peasy, worker_type
):
    target = jobs.nothing.using(queue_name="nobody serves this")()
    left_open, after = jobs.leave_write_open(target.pk), jobs.progress_of(target.pk)
    command = run_peasy("--worker-type", worker_type)
    finished(left_open, after)
    assert (row(target).title, row(target).status_msg) == ("do nothing", "from afar")
    command.wait_for_output(
        "A job left a transaction open on database 'default'. It was rolled back."
    )


def test_a_fork_that_comes_back_from_the_job_runs_nothing_and_reports_nothing(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    twice, after = jobs.return_twice(str(record)), jobs.echo("after")
    twice, after = finished(twice, after)
    assert (twice.status, twice.result, twice.error) == (COMPLETED, "the parent", "")
    assert notes(record) == ["child", "parent"]
    assert after.result == "after"


# How little there is to it


@pytest.fixture
def claimed(monkeypatch):
    """Of each claim its limit, and how many jobs are claimed and not written then."""
    claims, claim = [], JobQuerySet.claim

    def counted(self, runner_id, limit, *args):
        found = claim(self, runner_id, limit, *args)
        claims.append((limit, PeasyJobQueue.objects.filter(status=ONGOING).count()))
        return found

    monkeypatch.setattr(JobQuerySet, "claim", counted)
    return claims


def run_all(todo, **settings):
    settings = replace(conf.get(), worker_type="thread", max_completed=None, **settings)
    try:
        assert Runner(settings, lambda text: None, exit_on_empty=True).run()
    finally:
        connection.close()  # set up as a runner's own
    assert {job.status for job in finished(*todo)} == {COMPLETED}


def test_of_jobs_with_large_arguments_few_are_claimed_ahead(transactional_db, monkeypatch, claimed):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD_BYTES", 10_000)
    run_all(jobs.echo.map(["x" * 3000] * 40))
    assert 1 < max(limit for limit, _ in claimed) <= 4


def test_jobs_are_claimed_in_small_portions_and_not_faster_than_their_outcomes_are_written(
    transactional_db, monkeypatch, claimed
):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD_JOBS", 10)
    monkeypatch.setattr("peasy_jobs.runner.recorder.WRITE_AT_ONCE", 10)
    monkeypatch.setattr("peasy_jobs.runner.recorder.WRITE_EVERY", 0.0)
    workers = 4
    run_all(jobs.nothing.map([()] * 400), concurrency=workers)
    assert 1 < max(limit for limit, _ in claimed) <= 10
    assert max(ongoing for _, ongoing in claimed) <= 10 * (workers + 2)


def test_a_claim_that_takes_long_does_not_make_workers_look_held_up(transactional_db, monkeypatch):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD", 0.02)
    claim = JobQuerySet.claim

    def slow(self, *args):
        found = claim(self, *args)
        until = monotonic() + 0.05
        wait_until(lambda: monotonic() > until)
        return found

    monkeypatch.setattr(JobQuerySet, "claim", slow)
    todo = jobs.nothing.map([()] * 5000)
    run_all(todo)
    assert set(PeasyJobQueue.objects.values_list("claims", flat=True)) == {1}
