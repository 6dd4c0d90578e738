"""Rows with values that peasy_jobs never writes, stored by hand or by another program."""

import logging
from datetime import timedelta
from time import monotonic
from typing import NamedTuple

import pytest
from django.conf import settings as site
from django.db import DatabaseError, connection, transaction
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peasy_jobs import conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import outcomes
from peasy_jobs.runner.lease import Lease
from peasy_jobs.runner.maintenance import Maintenance
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.statuses import COMPLETED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store import vendors
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock, as_field, database_now
from peasy_jobs.store.querysets import JobUpdate
from tests import jobs
from tests.concurrent_processes import TABLE
from tests.processes import Command
from tests.rows import finished
from tests.waiting import wait_until

SQLITE, POSTGRES, MARIADB = (
    site.TEST_DATABASE == name for name in ("sqlite", "postgres", "mariadb")
)
only_sqlite = pytest.mark.skipif(not SQLITE, reason="only SQLite lets a column hold anything")

LATE = 40
ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None, "PEASY_POLLING_INTERVAL": 0.3}
MAX_COUNTER = (
    2**63 - 1 if SQLITE else 2**31 - 1 if POSTGRES else 2**32 - 1
)  # the largest value of a counter
DAMAGED = "The row of this job is damaged: "
EXHAUSTED = (
    "The counter `claims` or `attempts` of this job has reached 2,147,483,647, the largest value"
    " of its"
    " column. Enqueue the job again."
)


class Odd(NamedTuple):
    """Values stored in a row, as SQL by column, and what becomes of the job."""

    columns: dict[str, str]
    status: str = COMPLETED
    error: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.columns.items())


def exhausted(name: str) -> Odd:
    error = f"{DAMAGED}{name} is {float(MAX_COUNTER + 1)!r}." if SQLITE else EXHAUSTED
    return Odd({name: str(MAX_COUNTER)}, FAILED, error)


EVERYWHERE = [
    Odd({"priority": "-32768"}),
    Odd({"priority": "32767"}),
    Odd({"status": "'S'", "run_after": "NULL"}),
    exhausted("claims"),
    exhausted("attempts"),
]
IN_POSTGRES = [
    Odd({"status": "'S'", "run_after": "'-infinity'"}),
    Odd({"status": "'S'", "run_after": "'infinity'"}, SCHEDULED),
    Odd({"status": "'S'", "run_after": "'20000-01-01'"}, SCHEDULED),
]
IN_SQLITE = [
    Odd({"status": "'S'", "run_after": "'2026-02-30 10:00:00'"}),
    Odd({"status": "'S'", "run_after": "''"}),
    Odd({"status": "'S'", "run_after": "5"}),
    Odd({"status": "'S'", "run_after": "'soon'"}, SCHEDULED),
    Odd({"status": "'S'", "run_after": "X'FF'"}, SCHEDULED),
    Odd({"timeout": "'long'"}, FAILED, f"{DAMAGED}timeout is 'long'."),
    Odd({"crashes": "'many'"}, FAILED, f"{DAMAGED}crashes is 'many'."),
    Odd({"crash_retries": "'few'"}, FAILED, f"{DAMAGED}crash_retries is 'few'."),
    Odd({"attempts": "'many'"}),  # SQLite takes it for 0 when it adds one
    Odd({"args_data": "5"}, FAILED, f"{DAMAGED}args is 5."),
    Odd({"kwargs_data": "'{}'"}, FAILED, f"{DAMAGED}kwargs is '{{}}'."),
    Odd({"title": "CAST(X'FF6E6F' AS TEXT)"}),
    Odd({"title": "X'FF6E6F'"}, FAILED, f"{DAMAGED}title is b'\\xffno'."),
]
ODD = EVERYWHERE + IN_POSTGRES * POSTGRES + IN_SQLITE * SQLITE


def write(job: PeasyJobQueue, odd: Odd) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET {odd} WHERE id = %s", [job.pk])


def outcome(job: PeasyJobQueue) -> tuple[str, str]:
    """Return status and error of a job. Its other columns may be unreadable."""
    status, errors = PeasyJobQueue.objects.values_list("status", "errors").get(pk=job.pk)
    return status, errors[-1]["message"] if errors else ""


def assert_lives(command: Command) -> None:
    (after,) = finished(jobs.echo("after"), timeout=LATE)
    assert after.result == "after"
    assert command.process.poll() is None
    assert "Traceback" not in command.output()
    assert "Cannot use the database" not in command.output()


@pytest.mark.parametrize("first", ["rows", "runner"])
def test_jobs_with_invalid_rows_fail_clearly_or_run_and_delay_no_other_job(run_peasy, first):
    odd, plain = [], []
    kinds = ODD
    if first == "runner":
        kinds = [
            kind for kind in ODD if "NULL" not in str(kind)
        ]  # such rows wait for the next maintenance
        command = run_peasy("--concurrency", "2", settings=ALL)
        finished(jobs.nothing())
    for kind in kinds:
        with transaction.atomic():
            odd.append(jobs.nothing())
            write(odd[-1], kind)
        plain += [
            jobs.echo(str(kind)),
            jobs.echo.using(run_after=timedelta(seconds=0.1))(str(kind)),
        ]
    if first == "rows":
        command = run_peasy("--concurrency", "2", settings=ALL)

    assert [job.result for job in finished(*plain, timeout=LATE)] == [
        str(kind) for kind in kinds for _ in range(2)
    ]
    expected = {str(kind): (kind.status, kind.error) for kind in kinds}

    def became() -> dict[str, tuple[str, str]]:
        return {str(kind): outcome(job) for kind, job in zip(kinds, odd, strict=True)}

    wait_until(lambda: became() == expected, message=lambda: f"{became()}\n{command.output()}")
    assert_lives(command)
    assert command.output().count("failed: ") == sum(
        kind.status == FAILED and kind.error != EXHAUSTED for kind in kinds
    )


@pytest.mark.parametrize("crashes", [str(MAX_COUNTER), "'many'"] if SQLITE else [str(MAX_COUNTER)])
def test_a_rescued_job_whose_crash_counter_is_exhausted_fails(run_peasy, crashes):
    odd, plain = jobs.nothing(), jobs.echo("plain")
    PeasyJobQueue.objects.filter(pk__in=[odd.pk, plain.pk]).update(
        status=ONGOING, runner=2**40, claims=1, attempts=1, started=plain.created
    )
    write(odd, Odd({"crashes": crashes}))
    command = run_peasy(settings=ALL)
    (plain,) = finished(plain, timeout=LATE)
    assert plain.result == "plain"
    assert plain.crashes == 1
    gone = "The runner of this job was presumed dead before it claimed the job."
    wait_until(lambda: outcome(odd) == (FAILED, gone), message=command.describe)
    assert_lives(command)


# Anything at all

ANYTHING = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(
        [
            "",
            "soon",
            "2026-02-30 10:00:00",
            "2026-06-01",
            "[]",
            "[1]",
            "{}",
            "null",
            "J[]",
            b"J[]",
            b"J{}",
        ]
    ),
)
COLUMNS = [field.column for field in PeasyJobQueue._meta.get_fields() if field.column != "id"]
STATUSES = ["Q", "S", "O", "C", "F", "X"]
ME, DEAD = 2**40, 2**41


@pytest.fixture
def own_connection(transactional_db: None):
    """A connection with the settings of a runner."""
    vendors.configure_session(connection, 0.5)
    yield
    connection.close()


def a_runner_works(recorder: Recorder, lease: Lease, house: Maintenance) -> None:
    """Do what a runner does to the table in one iteration. All jobs complete."""
    all_jobs, clock = recorder.jobs, recorder.clock
    lease.rescue_at = house.promote_at = house.prune_at = float("-inf")
    lease.looked_for_orphans = False
    lease.rescue()
    house.run_due(backlog=True)
    all_jobs.give_back_unknown(ME, [])
    for pk, claims in all_jobs.cancelled_of(ME):
        all_jobs.close_cancelled(ME, pk, claims, clock.at(monotonic()))
    for queues in ([], ["default"]):
        all_jobs.peek(queues)
        now = as_field(database_now(connection))
        for claim in all_jobs.claim(ClaimRequest(runner_id=ME, limit=10, queues=queues, now=now)):
            if why := claim.invalid_field():
                recorder.record(outcomes.invalid_row(claim, why, clock))
            else:
                claim.run()
                recorder.record(
                    JobUpdate(claim=claim, status=COMPLETED, result=b"J1", completed=now)
                )
    recorder.write(ME, urgent=True)
    assert not recorder.unwritten


@only_sqlite
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STATUSES),
    st.sampled_from([ME, DEAD]),
    st.dictionaries(st.sampled_from(COLUMNS), ANYTHING, min_size=1, max_size=4),
)
# Each of these once stopped or blocked a runner.
@example("Q", ME, {"runner_id": ""})
@example("O", DEAD, {"claims": "", "crashes": 9})
@example("O", ME, {"claims": ""})
@example("X", ME, {"claims": ""})
@example("O", ME, {"attempts": 0})
@example("S", ME, {"run_after": 5})
@example("S", ME, {"run_after": b"\xff"})
@example("C", ME, {"completed": 5})
@example("F", ME, {"completed": "soon"})
def test_any_value_in_a_row_leaves_the_other_jobs_running(
    own_connection, caplog, status, runner, odd
):
    caplog.set_level(logging.CRITICAL, "peasy_jobs")
    clock = Clock(connection)
    all_jobs = PeasyJobQueue.objects.all()
    site_conf = conf.Conf(max_completed=0, max_failed=0, max_cancelled=0, prune_grace=0)
    lease = Lease(all_jobs, clock, site_conf)
    lease.id = ME
    clock.sync()
    now = clock.at(monotonic())
    all_jobs.delete()
    pk = jobs.nothing().pk
    all_jobs.filter(pk=pk).update(
        status=status,
        started=now,
        completed=now if status in "CF" else None,
        runner=runner if status in "OX" else None,
    )
    try:
        with connection.cursor() as cursor:
            assignments = ", ".join(f"{column} = %s" for column in odd)
            cursor.execute(f"UPDATE {TABLE} SET {assignments} WHERE id = %s", [*odd.values(), pk])
    except DatabaseError:  # the column refuses the value
        return
    for _ in range(3):
        plain = [jobs.nothing(), jobs.nothing.using(run_after=timedelta(seconds=-1))()]
        for _ in range(2):  # scheduled jobs are promoted by the first iteration
            a_runner_works(
                Recorder(connection, all_jobs, clock),
                lease,
                Maintenance(all_jobs, clock, site_conf),
            )
        statuses = set(
            all_jobs.filter(pk__in=[job.pk for job in plain]).values_list("status", flat=True)
        )
        assert statuses <= {COMPLETED}, statuses  # some may have been pruned
