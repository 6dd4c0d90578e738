"""Tests of a database that is away, silent, locked, full or not migrated.

The runner waits and reports it once; no job is lost or runs twice.
"""

import contextlib
import json
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import COMPLETED, ENQUEUED, ONGOING
from peasy_jobs.store.clock import database_now
from tests import jobs
from tests.concurrent_processes import TABLE, locked, second_connection
from tests.jobs import notes
from tests.processes import Command
from tests.rows import finished, heartbeats, row, running
from tests.torture.proxy import Proxy
from tests.waiting import wait_until

LATE = 60
LEASE = 3
SHORT_LEASE = {"PEASY_LEASE": LEASE, "PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}
PORTS = {"postgresql": 5432, "mysql": 3306}

only_sqlite = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="only SQLite has one writer, and one file"
)
only_servers = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has no server, and no row locks"
)


def lasts(seconds: float) -> None:
    """A fault goes on for so long."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 10)


def assert_one_episode(command: Command) -> None:
    """It said that there was trouble, and that there is none any more: once."""
    command.wait_for_output("The database works again after ")
    output = command.output()
    assert output.count("Cannot use the database (") == 1, output
    assert output.count("The database works again after ") == 1, output
    assert "Traceback" not in output


def assert_each_ran_once(record: Path, numbers: Any) -> None:
    expected = sorted([f"{what} {number}" for number in numbers for what in ("started", "ended")])
    assert sorted(notes(record)) == expected


# Connections that are cut


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    own = connection.settings_dict
    between = Proxy((own["HOST"] or "127.0.0.1", int(own["PORT"] or PORTS[connection.vendor])))
    yield between
    between.silent = between.refusing = False
    between.close()


def through(proxy: Proxy) -> dict[str, Any]:
    """The settings of a runner that reaches the server over this proxy."""
    own = {
        name: connection.settings_dict[name]
        for name in ("ENGINE", "NAME", "USER", "PASSWORD", "OPTIONS")
    }
    return {"DATABASES": {"default": {**own, "HOST": "127.0.0.1", "PORT": str(proxy.port)}}}


def cut_connections() -> int:
    """End every connection to the database but our own. Return how many there were."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return len(cursor.fetchall())
        cursor.execute(
            "SELECT id FROM information_schema.processlist"
            " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        )
        count = 0
        for (number,) in cursor.fetchall():
            with contextlib.suppress(Exception):  # it has just gone by itself
                cursor.execute(f"KILL {number}")
                count += 1
        return count


@only_servers
def test_dropped_connections_under_load_lose_no_job_and_run_none_twice(run_peasy, tmp_path):
    record = tmp_path / "record"
    runners = [run_peasy("--concurrency", "2", settings=SHORT_LEASE) for _ in range(2)]
    with transaction.atomic():
        todo = [jobs.start_and_end(str(record), number) for number in range(300)]
    pks, cut = [job.pk for job in todo], 0
    left = PeasyJobQueue.objects.filter(pk__in=pks, status__in=(ENQUEUED, ONGOING))
    while left.exists():
        before = left.count()
        cut += cut_connections()
        wait_until(lambda before=before: left.count() < before or not left.exists(), LATE)
    done = finished(*todo, timeout=LATE)
    assert cut >= 10
    assert_each_ran_once(record, range(300))
    assert {(job.status, job.attempts, job.crashes) for job in done} == {(COMPLETED, 1, 0)}
    for command in runners:
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert "Traceback" not in command.output()


@only_servers
@pytest.mark.parametrize("fault", ["silence", "refusal", "resets"])
def test_jobs_keep_their_claim_while_the_server_is_away_for_two_leases(
    run_peasy, tmp_path, proxy, fault
):
    records = [tmp_path / f"record {number}" for number in range(4)]
    settings = {**SHORT_LEASE, **through(proxy)}
    runners = [run_peasy("--concurrency", "2", settings=settings) for _ in range(2)]
    before = set(PeasyRunner.objects.values_list("pk", flat=True))
    # Two end while the server is away, and two after.
    todo = [
        jobs.wait_for(str(tmp_path / f"go {number % 2}"), str(record))
        for number, record in enumerate(records)
    ]
    wait_until(lambda: all(notes(record) for record in records))
    claimed = [running(job) for job in todo]
    if fault == "silence":
        proxy.silent = True
    elif fault == "refusal":
        proxy.refusing = True
    lasts_until = time.monotonic() + 2 * LEASE + 0.5
    Path(tmp_path, "go 0").touch()
    while time.monotonic() < lasts_until:
        if fault == "resets":
            proxy.drop()
        lasts(0.05)
    if fault != "resets":
        for command in runners:  # or the machine slept, and the fault was none
            command.wait_for_output("Cannot use the database (")
    assert all(
        lease < _now() for lease in PeasyRunner.objects.values_list("lease_until", flat=True)
    ) or (
        fault == "resets"  # which lets something through now and then
    )
    proxy.silent = proxy.refusing = False
    finished(todo[0], todo[2], timeout=LATE)
    # Long enough for each of them to take the other for dead, if it would.
    heartbeats_of_each(before)
    for job, was in zip(todo[1::2], claimed[1::2], strict=True):
        assert row(job).status == ONGOING
        assert row(job).claims == was.claims
        assert row(job).runner_id == was.runner_id
    Path(tmp_path, "go 1").touch()
    done = finished(*todo, timeout=LATE)
    assert {(job.status, job.result, job.attempts, job.crashes, job.claims) for job in done} == {
        (COMPLETED, "waited", 1, 0, 1)
    }
    assert [len(notes(record)) for record in records] == [2, 2, 2, 2]
    (after,) = finished(jobs.echo("after"), timeout=LATE)
    assert after.result == "after"
    for command in runners:
        assert command.process.poll() is None
        if fault != "resets":
            assert_one_episode(command)
        assert "lease was revoked" not in command.output()


def _now() -> float:
    return database_now(connection).timestamp()


def heartbeats_of_each(pks: set[int]) -> None:
    """Each of these runners has renewed its lease for longer than that is."""
    since = _now()
    wait_until(
        lambda: all(
            runner.lease_until > since + 2 * LEASE + 1.5
            for runner in PeasyRunner.objects.filter(pk__in=pks)
        ),
        LATE,
    )
    assert set(PeasyRunner.objects.values_list("pk", flat=True)) == pks


@only_servers
def test_a_runner_starts_once_an_unresponsive_server_answers(run_peasy, proxy):
    proxy.silent = True
    command = run_peasy(settings={**SHORT_LEASE, **through(proxy)}, ready=False)
    command.wait_for_output("Cannot use the database (", LATE)
    job = jobs.echo(1)
    proxy.silent = False
    (job,) = finished(job, timeout=LATE)
    assert job.status == COMPLETED
    assert_one_episode(command)


@only_servers
@pytest.mark.parametrize("fault", ["silent", "refusing"])
def test_a_runner_stops_on_a_signal_while_the_server_is_away(run_peasy, proxy, fault):
    command = run_peasy(settings={**SHORT_LEASE, **through(proxy)})
    setattr(proxy, fault, True)
    command.wait_for_output("Cannot use the database (", LATE)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0


# Locks


@only_sqlite
def test_jobs_keep_their_claim_while_one_holds_the_write_lock_for_three_leases(run_peasy, tmp_path):
    records = [tmp_path / name for name in ("lock", "one", "two")]
    runners = [run_peasy("--concurrency", "2", settings=SHORT_LEASE) for _ in range(2)]
    before = set(PeasyRunner.objects.values_list("pk", flat=True))
    others = [jobs.wait_for(str(tmp_path / "end"), str(record)) for record in records[1:]]
    wait_until(lambda: all(notes(record) for record in records[1:]))
    holder = jobs.hold_write_lock(str(tmp_path / "go"), str(records[0]))
    wait_until(lambda: notes(records[0]))
    lasts(3 * LEASE + 0.5)
    assert all(
        lease < _now() for lease in PeasyRunner.objects.values_list("lease_until", flat=True)
    )
    Path(tmp_path, "go").touch()
    (holder,) = finished(holder, timeout=LATE)
    heartbeats_of_each(before)
    Path(tmp_path, "end").touch()
    done = finished(holder, *others, timeout=LATE)
    assert {(job.status, job.attempts, job.crashes, job.claims) for job in done} == {
        (COMPLETED, 1, 0, 1)
    }
    assert [len(notes(record)) for record in records] == [2, 2, 2]
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    for command in runners:
        assert_one_episode(command)
        assert "(database is locked)" in command.output()


@only_sqlite
def test_a_stopping_runner_removes_its_row_despite_a_lock(run_peasy):
    command = run_peasy()
    with locked(-1):
        command.signal(signal.SIGTERM)
        wait_until(lambda: len(command.processes()) == 1)  # its workers are gone
        lasts(1.2)
        assert command.process.poll() is None
    assert command.wait() == 0
    assert not PeasyRunner.objects.exists()


@only_sqlite
def test_a_lock_of_one_second_is_not_logged(run_peasy, tmp_path):
    command = run_peasy(settings=SHORT_LEASE)
    with locked(-1):
        since = time.monotonic()
        lasts(1.2)
        held = time.monotonic() - since
    (job,) = finished(jobs.echo(1))
    heartbeats(1)
    assert job.status == COMPLETED
    if held < 2:  # as long as it was meant to be: the machine may be busy
        assert "database" not in command.output().partition("Ctrl-C stops it.")[2]


@only_servers
def test_a_lock_on_the_row_of_an_ending_job_delays_only_that_job(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings=SHORT_LEASE)
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    running(job)
    with locked(job.pk):
        Path(tmp_path, "go").touch()
        wait_until(lambda: len(notes(record)) == 2)
        finished(*[jobs.echo(number) for number in range(6)], timeout=LATE)
        heartbeats(6)  # more than a lease
        assert row(job).status == ONGOING
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.result == "waited"
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.claims == 1
    assert len(notes(record)) == 2
    assert "Traceback" not in command.output()


@only_servers
def test_a_job_that_locks_its_own_row_for_longer_than_a_lease_loses_nothing(run_peasy, tmp_path):
    record = tmp_path / "record"
    commands = [run_peasy("--concurrency", "2", settings=SHORT_LEASE) for _ in range(2)]
    job = jobs.hold_own_row(str(tmp_path / "go"), str(record))
    wait_until(lambda: notes(record))
    before = set(PeasyRunner.objects.values_list("pk", flat=True))
    heartbeats_of_each(before)
    finished(*[jobs.echo(number) for number in range(10)], timeout=LATE)
    assert row(job).status == ONGOING
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.result == "let go"
    assert job.title == "held"
    assert job.attempts == 1
    assert job.claims == 1
    assert notes(record) == ["started", "ended"]
    for command in commands:
        assert "Traceback" not in command.output()


@only_servers
def test_a_lock_on_a_waiting_job_delays_only_that_job(run_peasy, tmp_path):
    job = jobs.echo("first")
    with locked(job.pk):
        run_peasy(settings=SHORT_LEASE)
        finished(*[jobs.echo(number) for number in range(20)], timeout=LATE)
        assert row(job).status == ENQUEUED
    (job,) = finished(job)
    assert job.result == "first"
    assert job.attempts == 1


# A disk that takes nothing


@only_sqlite
@pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="only Linux can limit the files of another process"
)
def test_a_runner_waits_until_a_full_disk_has_space_again(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy(settings=SHORT_LEASE)
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    wait_until(lambda: notes(record))
    database = connection.settings_dict["NAME"]
    with second_connection() as reader, reader.cursor() as cursor:
        # A reader prevents the write-ahead log from restarting, so each write exceeds the limit.
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        reader.connection.execute("BEGIN DEFERRED")
        reader.connection.execute(f"SELECT count(*) FROM {TABLE}").fetchall()
        while os.path.getsize(f"{database}-wal") < 300_000:
            PeasyJobQueue.objects.filter(pk=-1).update(title="x")
            jobs.echo.using(queue_name="nobody serves this")("x" * 10_000)
        soft, hard = resource.prlimit(command.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (200_000, hard))
        command.wait_for_output("Cannot use the database (", LATE)
        Path(tmp_path, "go").touch()
        wait_until(lambda: len(notes(record)) == 2)
        lasts(2 * LEASE)
        assert row(job).status == ONGOING
        resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (soft, hard))
        (job,) = finished(job, timeout=LATE)
        reader.connection.execute("ROLLBACK")
    assert job.status == COMPLETED
    assert job.result == "waited"
    assert job.attempts == 1
    assert job.crashes == 0
    assert job.claims == 1
    assert len(notes(record)) == 2
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    assert_one_episode(command)


@only_sqlite
def test_a_read_only_database_is_logged_and_does_not_stop_the_runner(run_peasy):
    own = connection.settings_dict
    options = {**own["OPTIONS"], "init_command": "PRAGMA query_only=1"}
    database = {"ENGINE": own["ENGINE"], "NAME": str(own["NAME"]), "OPTIONS": options}
    job = jobs.echo(1)
    command = run_peasy(settings={**SHORT_LEASE, "DATABASES": {"default": database}}, ready=False)
    command.wait_for_output("Cannot use the database (attempt to write a readonly database)", LATE)
    lasts(2)
    assert command.output().count("Cannot use the database (") == 1
    assert "Traceback" not in command.output()
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    run_peasy(settings=SHORT_LEASE)
    assert finished(job)[0].status == COMPLETED


# A site of its own, on SQLite


@pytest.fixture
def django(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start a management command of a site with a new database file and Django's defaults."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "site.sqlite3")}
    settings = {"DATABASES": {"default": database}, **SHORT_LEASE}

    def start(*args: str) -> Command:
        command = Command(args, tmp_path, tmp_path, settings, {})
        commands.callback(command.clean_up)
        return command

    with ExitStack() as commands:
        yield start


def ask(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path / "site.sqlite3", timeout=20)) as database:
        return database.execute(query).fetchall()


@only_sqlite
def test_sqlite_works_with_default_options_and_a_check_recommends_better_ones(django, tmp_path):
    check = django("check")
    assert check.wait() == 0
    assert "(peasy_jobs.W003)" in check.output()
    assert "'transaction_mode': 'IMMEDIATE'" in check.output()
    assert django("migrate", "-v", "0").wait() == 0
    assert ask(tmp_path, "PRAGMA journal_mode") == [("delete",)]
    record = tmp_path / "record"
    runners = [django("run_peasy", "--concurrency", "2").ready() for _ in range(2)]
    code = f"from tests import jobs\nfor n in range(150): jobs.start_and_end({str(record)!r}, n)"
    enqueuer = django("shell", "--no-imports", "-c", code)
    assert enqueuer.wait(LATE) == 0
    query = f"SELECT status, attempts, crashes, count(*) FROM {TABLE} GROUP BY 1, 2, 3"
    wait_until(
        lambda: ask(tmp_path, query) == [("C", 1, 0, 150)], LATE, lambda: f"{ask(tmp_path, query)}"
    )
    assert_each_ran_once(record, range(150))
    for command in runners:
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert "Traceback" not in command.output()


@only_sqlite
def test_a_runner_started_before_migrate_logs_that_it_waits(django, tmp_path):
    command = django("run_peasy")
    command.wait_for_output("Cannot use the database (migrations are missing, 0001_initial, ")
    command.wait_for_output("run manage.py migrate). Trying until it works again.")
    lasts(2)
    assert command.process.poll() is None
    assert django("migrate", "-v", "0").wait(LATE) == 0
    command.ready(LATE)
    assert (
        django("shell", "--no-imports", "-c", "from tests import jobs; jobs.echo(1)").wait(LATE)
        == 0
    )
    wait_until(lambda: ask(tmp_path, f"SELECT status FROM {TABLE}") == [("C",)])
    assert_one_episode(command)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0


@only_sqlite
@pytest.mark.parametrize("made", ["before the runner came", "while the job ran"])
def test_a_runner_continues_with_a_backup_moved_over_the_database_file(django, tmp_path, made):
    record, go, site, backup = (
        tmp_path / name for name in ("record", "go", "site.sqlite3", "backup.sqlite3")
    )
    enqueue = f"from tests import jobs; jobs.wait_for({str(go)!r}, {str(record)!r})"
    assert django("migrate", "-v", "0").wait(LATE) == 0
    ask(tmp_path, "PRAGMA journal_mode = WAL")  # in which SQLite itself does not notice
    assert django("shell", "--no-imports", "-c", enqueue).wait(LATE) == 0
    if made == "before the runner came":
        ask(tmp_path, f"VACUUM INTO '{backup}'")
    command = django("run_peasy").ready()
    wait_until(lambda: notes(record))
    if made == "while the job ran":
        wait_until(lambda: ask(tmp_path, f"SELECT status FROM {TABLE}") == [("O",)])
        ask(tmp_path, f"VACUUM INTO '{backup}'")
    go.touch()
    done = f"SELECT status, attempts, crashes FROM {TABLE}"
    wait_until(lambda: ask(tmp_path, done) == [("C", 1, 0)])
    backup.rename(site)
    for name in ("site.sqlite3-wal", "site.sqlite3-shm"):
        Path(tmp_path, name).unlink()
    wait_until(lambda: ask(tmp_path, done) == [("C", 1, 0)], LATE, command.describe)
    assert [line.split()[0] for line in notes(record)] == ["started", "ended"] * 2
    assert django("shell", "--no-imports", "-c", enqueue).wait(LATE) == 0
    wait_until(lambda: ask(tmp_path, done) == [("C", 1, 0)] * 2)
    assert f"Cannot use the database ({site} was replaced by another file)" in command.output()
    assert_one_episode(command)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    assert ask(tmp_path, f"SELECT * FROM {PeasyRunner._meta.db_table}") == []


# Migrations, and what a probe is told, on every database


@contextlib.contextmanager
def newest_migration_missing() -> Iterator[str]:
    """As if the newest migration of ours had not been applied yet."""
    applied = MigrationRecorder(connection).migration_qs.filter(app="peasy_jobs")
    newest = applied.order_by("-name").first()
    assert newest is not None
    newest.delete()
    try:
        yield newest.name
    finally:
        MigrationRecorder(connection).record_applied("peasy_jobs", newest.name)


def check(run_peasy: Callable[..., Command], *args: str, **options: Any) -> tuple[int, str]:
    command = run_peasy("--check", *args, ready=False, **options)
    code = command.wait(LATE)
    assert "Traceback" not in command.output()
    return code, command.output()


def test_a_runner_waits_for_a_missing_migration(run_peasy):
    with newest_migration_missing() as name:
        command = run_peasy(ready=False)
        command.wait_for_output(
            f"Cannot use the database (migrations are missing, {name}: run manage.py migrate)."
        )
        job = jobs.echo(1)
        assert PeasyRunner.objects.count() == 0
    command.ready()
    assert finished(job)[0].status == COMPLETED
    assert_one_episode(command)


def test_check_reports_missing_migrations(run_peasy, transactional_db):
    with newest_migration_missing() as name:
        code, output = check(run_peasy)
    assert code == 1
    assert output == f"CommandError: Migrations are missing ({name}): run manage.py migrate.\n"


def test_check_reports_that_the_database_is_away(run_peasy, tmp_path):
    own = {
        name: connection.settings_dict[name]
        for name in ("ENGINE", "NAME", "USER", "PASSWORD", "OPTIONS")
    }
    where = (
        {"NAME": str(tmp_path / "nowhere" / "site.sqlite3")}
        if connection.vendor == "sqlite"
        else {}
    )
    away = {"default": {**own, "HOST": "127.0.0.1", "PORT": "1", **where}}
    code, output = check(
        run_peasy, settings=json.loads(json.dumps({"DATABASES": away}, default=str))
    )
    assert code == 1
    assert output.startswith("CommandError: The database cannot be used: ")


def test_check_succeeds_on_an_idle_site_with_or_without_a_runner(run_peasy):
    assert check(run_peasy) == (0, "Runners alive: 0.\n")
    run_peasy()
    assert check(run_peasy) == (0, "Runners alive: 1.\n")


def test_check_reports_each_queue_with_waiting_jobs_and_no_runner(run_peasy, tmp_path):
    jobs.nothing()
    for _ in range(2):
        jobs.nothing.using(queue_name="mail")()
    code, output = check(run_peasy)
    assert code == 1
    assert "Queue default: 1 waiting, the oldest for " in output
    assert "Queue mail: 2 waiting, the oldest for " in output
    assert "No runner is alive for queue default: start one with manage.py run_peasy.\n" in output
    assert (
        "No runner is alive for queue mail: start one with manage.py run_peasy --queue mail.\n"
        in output
    )

    long = jobs.wait_for.using(queue_name="mail", priority=9)(str(tmp_path / "go"))
    run_peasy("--queue", "mail")
    running(long)
    code, output = check(run_peasy)
    assert code == 1
    assert "No runner is alive for queue default" in output
    assert "queue mail:" not in output
    assert "Queue mail: 2 waiting" in output

    run_peasy()
    wait_until(lambda: not PeasyJobQueue.objects.filter(status=ENQUEUED).exists())
    assert check(run_peasy) == (0, "Runners alive: 2.\n")
    Path(tmp_path, "go").touch()
    finished(long)


def test_check_of_named_queues_reports_missing_runners_even_if_nothing_waits(run_peasy):
    jobs.nothing()
    code, output = check(run_peasy, "--queue", "mail")
    assert code == 1
    assert output.splitlines()[0] == "Runners alive: 0."
    assert output.splitlines()[1:] == [
        "CommandError: No runner is alive for queue mail:"
        " start one with manage.py run_peasy --queue mail."
    ]
    run_peasy("--queue", "mail")
    assert check(run_peasy, "--queue", "mail") == (0, "Runners alive: 1.\n")
    code, output = check(run_peasy, "--queue", "mail", "--queue", "default")
    assert code == 1
    assert "Queue default: 1 waiting" in output
    assert "No runner is alive for queue default" in output


def test_check_does_not_count_a_runner_whose_lease_has_expired(run_peasy):
    command = run_peasy(settings={"PEASY_LEASE": 2})
    command.kill()
    jobs.nothing()
    wait_until(lambda: PeasyRunner.objects.get().lease_until < _now())
    code, output = check(run_peasy)
    assert code == 1
    assert "Runners alive: 0." in output
    assert "No runner is alive for queue default" in output
