"""`run_peasy` as a user would start it: what it prints, and which jobs it runs when."""

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
from peasy_jobs.store.querysets import MAINTENANCE_BATCH, JobQuerySet
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
SOON = timedelta(seconds=10)  # far below LONG_POLL, far above what a busy machine needs


def stop(command: Command) -> str:
    """Stop a runner when its jobs have finished. Return all that it has printed."""
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    return command.output()


# What it prints


def test_a_runner_that_starts_prints_its_queues_its_workers_and_its_wakeup(run_peasy):
    command = run_peasy("--queue", "mail", "--queue", "reports", "--concurrency", "2")
    lines = command.wait_for_output("Ctrl-C stops it.").splitlines()
    database = f"{connection.vendor} database {connection.settings_dict['NAME']}"
    assert lines == [
        f"run_peasy serves queues mail, reports of {database} as runner {runner().pk}.",
        f"2 process workers, woken {WOKEN[connection.vendor]}. Ctrl-C stops it.",
    ]


def test_each_job_has_one_log_line_which_is_written_when_it_has_finished(run_peasy):
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


def test_verbosity_3_also_logs_the_start_of_jobs(run_peasy):
    job = jobs.nothing()
    command = run_peasy("-v", "3")
    finished(job)
    assert f"DEBUG do nothing (job {job.pk}) starts." in stop(command)


def test_verbosity_0_logs_only_failures(run_peasy):
    good, bad = jobs.nothing(), jobs.boom("no luck")
    command = run_peasy("-v", "0")
    finished(good, bad)
    (line,) = [line for line in stop(command).splitlines() if "(job " in line]
    assert f"(job {bad.pk}) failed: ValueError: no luck" in line


@both_worker_types
def test_a_project_with_its_own_logging_gets_every_line_once(run_peasy, tmp_path, worker_type):
    log = tmp_path / "site.log"
    handlers = {"file": {"class": "logging.FileHandler", "filename": str(log)}}
    # As most projects write it, without `disable_existing_loggers`: existing loggers are disabled.
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


def test_exit_on_empty_runs_what_may_run_now_and_prints_how_many_jobs_wait_for_later(
    run_peasy, tmp_path
):
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
def test_exit_on_empty_also_runs_the_jobs_that_jobs_enqueue(run_peasy, tmp_path, worker_type):
    jobs.enqueue_notes(str(tmp_path / "record"), 3)
    assert run_peasy("--exit-on-empty", "--worker-type", worker_type).wait() == 0
    assert sorted(notes(tmp_path / "record")) == ["child 0", "child 1", "child 2"]


def test_exit_on_empty_prunes_to_the_maxima_at_the_end_without_the_grace(run_peasy):
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


def test_exit_on_empty_prunes_one_batch_in_each_iteration(transactional_db, monkeypatch):
    # The watchdog aborts an iteration that takes a third of the lease.
    monkeypatch.setattr("peasy_jobs.store.querysets.MAINTENANCE_BATCH", 2)
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


def test_exit_on_empty_does_not_wait_for_jobs_of_other_runners(run_peasy, tmp_path):
    long = jobs.wait_for(str(tmp_path / "go"))
    other = run_peasy()
    running(long)
    assert run_peasy("--exit-on-empty").wait() == 0
    assert row(long).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(long)
    stop(other)


# Options and settings


def test_a_runner_with_queue_options_runs_jobs_of_these_queues_only(run_peasy, tmp_path):
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
def test_concurrency_is_the_number_of_jobs_that_run_at_once(run_peasy, tmp_path, worker_type):
    waiting = [jobs.wait_for(str(tmp_path / "go"), str(tmp_path / "record")) for _ in range(4)]
    command = run_peasy(
        "--concurrency", "3", "--worker-type", worker_type, settings={"PEASY_LEASE": 2}
    )
    wait_until(lambda: len(notes(tmp_path / "record")) >= 3)
    heartbeats(2)
    started = notes(tmp_path / "record")
    assert len(started) == 3
    pids = {int(line.split()[1]) for line in started}
    if worker_type == "process":
        assert len(pids) == 3
        assert command.pid not in pids
    else:
        assert pids == {command.pid}
    Path(tmp_path, "go").touch()
    finished(*waiting)


def test_number_and_type_of_workers_may_come_from_the_settings(run_peasy):
    command = run_peasy(settings={"PEASY_CONCURRENCY": 3, "PEASY_WORKER_TYPE": "thread"})
    assert "3 thread workers" in command.wait_for_output("Ctrl-C stops it.")
    assert runner().concurrency == 3
    assert runner().worker_type == "thread"
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
def test_an_invalid_option_is_a_usage_error(run_peasy, arguments, message):
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
def test_a_runner_refuses_to_start_with_an_invalid_setting(run_peasy, name, value, id, hint):
    job = jobs.nothing()
    command = run_peasy(settings={name: value}, ready=False)
    assert command.wait() == 1
    assert f"(peasy_jobs.{id}) {name} is {value!r}." in command.output()
    assert hint in command.output()
    assert "Traceback" not in command.output()
    assert row(job).status == ENQUEUED


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite has databases in memory")
def test_a_runner_refuses_an_in_memory_database(run_peasy):
    command = run_peasy(env={"PEASY_TEST_DB_NAME": ":memory:"}, ready=False)
    assert command.wait() == 1
    assert "CommandError: The jobs are in an in-memory database ('default')" in command.output()
    assert "Traceback" not in command.output()


def test_a_runner_may_be_started_in_any_directory(run_peasy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_peasy(cwd=elsewhere)
    (job,) = finished(jobs.echo(1))
    assert job.result == 1


# How it learns of new jobs


def test_an_idle_runner_starts_a_new_job_at_once(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    for _ in range(2):
        heartbeats(2)  # idle for longer than all recheck delays
        (job,) = finished(jobs.nothing())
        assert job.started - job.created < SOON


@pytest.mark.skipif(
    connection.vendor == "sqlite",
    reason="SQLite has one writer: the runner could not renew its lease",
)
def test_an_idle_runner_starts_a_job_when_its_transaction_commits(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    with transaction.atomic():
        job = jobs.nothing()
        heartbeats(3)  # all rechecks are over before the commit
    committed = as_field(database_now(connection))
    (done,) = finished(job)
    assert done.started - committed < SOON


def test_all_jobs_of_a_burst_start_at_once(run_peasy):
    # On PostgreSQL NOTIFY is sent for the first of them only.
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    heartbeats(2)
    for job in finished(*[jobs.nothing() for _ in range(20)]):
        assert job.started - job.created < SOON


def test_polling_finds_jobs_that_plain_sql_has_inserted(run_peasy):
    # No NOTIFY is sent for them.
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
            f"INSERT INTO {table} ({', '.join(columns)}) "
            f"VALUES ({', '.join(['%s'] * len(columns))})",
            [values[column] for column in columns],
        )
    (job,) = finished(PeasyJobQueue.objects.get(title="by hand"))
    assert job.result == 1


def test_polling_is_sufficient_without_any_wakeup(run_peasy):
    no_wakeups = with_app("tests.fault_apps.NoWakeups")
    command = run_peasy(settings={"PEASY_POLLING_INTERVAL": 0.5, "PEASY_LEASE": 2, **no_wakeups})
    command.wait_for_output("woken by nothing")
    finished(jobs.nothing())
    heartbeats(2)
    finished(jobs.nothing())


def test_a_scheduled_job_runs_when_it_is_due_and_not_at_the_next_poll(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    heartbeats(2)
    job = jobs.nothing.using(run_after=timedelta(seconds=1))()
    (done,) = finished(job)
    assert timedelta(0) <= done.started - job.run_after < SOON


def test_scheduled_jobs_of_several_batches_all_run_when_they_are_due(run_peasy):
    run_peasy(settings=LONG_POLL)
    finished(jobs.nothing())
    finished(
        *jobs.nothing.using(run_after=timedelta(seconds=1)).map([()] * (2 * MAINTENANCE_BATCH + 1))
    )


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL notifies")
def test_a_scheduled_job_runs_although_notifications_arrive_without_a_pause(run_peasy):
    # A notification leads to a claim without a look, and only a look promotes scheduled jobs.
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


def test_a_scheduled_job_is_due_by_the_clock_of_the_database(run_peasy):
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
def test_jobs_run_by_priority_and_then_in_the_order_of_their_ids(run_peasy, tmp_path, worker_type):
    record = str(tmp_path / "record")
    for name, priority in [("a", 0), ("b", -5), ("c", 100), ("d", 0), ("e", 100), ("f", -100)]:
        jobs.in_order.using(priority=priority)(record, name)
    assert run_peasy("--exit-on-empty", "--worker-type", worker_type).wait() == 0
    assert notes(record) == ["c", "e", "a", "d", "b", "f"]


def test_three_runners_run_each_of_five_hundred_jobs_once(run_peasy, tmp_path):
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


def test_an_idle_worker_runs_the_short_jobs_that_waited_behind_a_long_one(run_peasy, tmp_path):
    command = run_peasy("--concurrency", "2", settings={"PEASY_MAX_COMPLETED": None})
    finished(
        *[jobs.nothing() for _ in range(100)]
    )  # known to be short from now on: a worker gets many at once
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


def test_short_jobs_behind_a_long_one_cost_no_time_and_another_runner_may_run_them(
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
    # They were given back, and do not wait for the worker that is busy.
    other = run_peasy()
    finished(*short[:200])
    assert row(long).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(long, *short)
    assert sorted(map(int, notes(record))) == list(range(300))
    stop(other)
    stop(command)


def test_a_runner_claims_the_jobs_again_that_it_gave_back_behind_a_long_one(run_peasy, tmp_path):
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


# Progress


@both_worker_types
def test_progress_is_visible_while_the_job_runs_and_afterwards(run_peasy, tmp_path, worker_type):
    run_peasy("--worker-type", worker_type)
    job = jobs.progress_then_wait(str(tmp_path / "go"))
    wait_until(lambda: row(job).status_msg)
    seen = row(job)
    assert seen.status == ONGOING
    assert seen.status_msg == "half way"
    assert seen.extra == {"progress": 50}
    Path(tmp_path, "go").touch()
    (done,) = finished(job)
    assert done.status == COMPLETED
    assert done.status_msg == "half way"
    assert done.extra == {"progress": 50}


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer: it shows when the job commits"
)
def test_progress_inside_a_transaction_is_visible_before_it_commits(run_peasy, tmp_path):
    run_peasy()
    job = jobs.progress_in_transaction(str(tmp_path / "go"))
    wait_until(lambda: row(job).status_msg == "inside")
    assert row(job).status == ONGOING
    Path(tmp_path, "go").touch()
    finished(job)


def test_progress_may_be_reported_by_a_thread_a_fork_and_another_job(run_peasy, tmp_path):
    target = jobs.nothing.using(queue_name="nobody serves this")()
    thread, fork, afar = (
        jobs.progress_from_thread(),
        jobs.progress_from_fork(),
        jobs.progress_of(target.pk),
    )
    run_peasy()
    thread, fork, afar = finished(thread, fork, afar)
    assert thread.status_msg == "from a thread"
    assert thread.extra == {"progress": 30}
    assert fork.status_msg == "from a fork"
    assert fork.extra == {"progress": 40}
    assert row(target).status_msg == "from afar"
    assert row(target).extra == {"progress": 60}
    assert afar.status_msg == ""
    assert {thread.status, fork.status, afar.status} == {COMPLETED}


def test_the_last_progress_of_a_short_job_is_stored(run_peasy):
    # It ends before the first write of its progress.
    run_peasy()
    (job,) = finished(jobs.track_rows(1234))
    assert job.status_msg == "Importing rows: 1,234 of 1,234"
    assert job.extra == {"progress": 100}
    assert job.result == sum(range(1234))


def test_the_output_of_a_job_is_not_buffered(run_peasy):
    command = run_peasy(env={"PYTHONUNBUFFERED": ""})
    jobs.print_line("hello from a job")
    command.wait_for_output("hello from a job")


# What jobs may do


@both_worker_types
def test_arguments_results_and_job_pk_arrive_unchanged(run_peasy, worker_type):
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


def with_columns(job, **columns):
    """Overwrite columns of a job's row, and return the job."""
    PeasyJobQueue.objects.filter(pk=job.pk).update(**columns)
    return job


def failing_jobs():
    """Enqueue jobs that fail. Return the text that each error has to contain."""
    return {
        with_columns(jobs.nothing(), job_name="os.system", args_data=b"J[]"): (
            "os.system is not decorated with @peasy.job, so the runner will not call it."
        ),
        with_columns(jobs.nothing(), job_name="antigravity.fly"): (
            "antigravity.fly is not inside an installed app, so the runner will not import it."
        ),
        with_columns(jobs.echo(1), args_data=b"cos\nsystem\n(S'exit 1'\ntR."): (
            "The stored arguments of this job are not in a format that peasy_jobs writes."
        ),
        with_columns(jobs.give_back({1}), job_name="tests.jobs.echo"): (
            "The stored arguments of this job were not signed by this site for tests.jobs.echo"
        ),
        with_columns(jobs.nothing(), job_name="tests.jobs.no_job"): (
            "tests.jobs.no_job is not decorated with @peasy.job"
        ),
        jobs.boom(): "ValueError: boom",
        jobs.leave(3): "The job called sys.exit(3).",
        jobs.generator(): "its result (generator) cannot be stored",
        jobs.lots(1001): (
            "its result (str) cannot be stored: "
            "1,004 bytes are more than PEASY_MAX_PAYLOAD, which is 1,000"
        ),
    }


@both_worker_types
def test_a_runner_survives_invalid_rows_and_failing_jobs(run_peasy, worker_type):
    errors = failing_jobs()
    missing = with_columns(jobs.nothing(), job_name="tests.jobs.renamed_since")
    good = jobs.echo("still here")
    command = run_peasy("--worker-type", worker_type, settings={"PEASY_MAX_PAYLOAD": 1000})
    good, *failed = finished(good, *errors)
    for job, error in zip(failed, errors.values(), strict=True):
        assert error in job.error
        assert job.status == FAILED
        assert job.attempts == 1
        assert job.crashes == 0
    assert good.result == "still here"
    missing = row(missing)  # tried again in a minute: the runner may be older than the job
    assert missing.error == str(JobFunctionNotFound("tests.jobs.renamed_since"))
    assert missing.status == SCHEDULED
    assert missing.attempts == 0
    assert stop(command).count("Traceback") == 0


def test_arguments_and_results_may_have_megabytes(run_peasy):
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
    assert row(target).title == "do nothing"
    assert row(target).status_msg == "from afar"
    command.wait_for_output(
        "A job left a transaction open on database 'default'. It was rolled back."
    )


def test_a_fork_that_returns_from_its_job_function_runs_no_job_and_reports_nothing(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    run_peasy()
    twice, after = jobs.return_twice(str(record)), jobs.echo("after")
    twice, after = finished(twice, after)
    assert twice.status == COMPLETED
    assert twice.result == "the parent"
    assert twice.error == ""
    assert notes(record) == ["child", "parent"]
    assert after.result == "after"


# How much is claimed at once


@pytest.fixture
def claimed(monkeypatch):
    """Of each claim: its limit, and how many jobs are ONGOING after it."""
    claims, claim = [], JobQuerySet.claim

    def counted(self, request):
        found = claim(self, request)
        claims.append((request.limit, PeasyJobQueue.objects.filter(status=ONGOING).count()))
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


def test_few_jobs_with_large_arguments_are_claimed_ahead(transactional_db, monkeypatch, claimed):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD_BYTES", 10_000)
    run_all(jobs.echo.map(["x" * 3000] * 40))
    assert 1 < max(limit for limit, _ in claimed) <= 4


def test_jobs_are_claimed_in_portions_and_not_faster_than_outcomes_are_written(
    transactional_db, monkeypatch, claimed
):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD_JOBS", 10)
    monkeypatch.setattr("peasy_jobs.runner.recorder.BATCH_SIZE", 10)
    monkeypatch.setattr("peasy_jobs.runner.recorder.WRITE_INTERVAL", 0.0)
    workers = 4
    run_all(jobs.nothing.map([()] * 400), concurrency=workers)
    assert 1 < max(limit for limit, _ in claimed) <= 10
    assert max(ongoing for _, ongoing in claimed) <= 10 * (workers + 2)


def test_workers_do_not_count_as_held_up_because_a_claim_takes_long(transactional_db, monkeypatch):
    monkeypatch.setattr("peasy_jobs.runner.capacity.LOOK_AHEAD", 0.2)
    claim = JobQuerySet.claim

    def slow(self, request):
        found = claim(self, request)
        until = monotonic() + 0.3
        wait_until(lambda: monotonic() > until)
        return found

    monkeypatch.setattr(JobQuerySet, "claim", slow)
    todo = jobs.nothing.map([()] * 5000)
    run_all(todo)
    assert set(PeasyJobQueue.objects.values_list("claims", flat=True)) == {1}
