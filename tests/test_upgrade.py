"""A database of the published peasy-jobs 0.4.1 is upgraded where it is, by `migrate` alone."""

import io
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder

from peasy_jobs import payloads
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.payloads import PayloadRefused
from peasy_jobs.runner.healthcheck import unapplied_migrations
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING
from peasy_jobs.store.clock import as_field
from tests.jobs import note, notes

pytestmark = pytest.mark.django_db(transaction=True)

jobs = PeasyJobQueue.objects
THEN = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
PUBLISHED, SIGNED = "0002_peasyjobqueue_user", "0004_sign_pickles"
KEEP_ALL = {f"PEASY_MAX_{status}": None for status in ("COMPLETED", "FAILED", "CANCELLED")}

Insert = Callable[..., int]


def at(seconds: float) -> datetime:
    return as_field(THEN + timedelta(seconds=seconds))


def forget() -> None:
    with connection.cursor() as cursor:
        for model in apps.get_app_config("peasy_jobs").get_models():
            cursor.execute(f"DROP TABLE IF EXISTS {model._meta.db_table}")
    MigrationRecorder(connection).migration_qs.filter(app="peasy_jobs").delete()


def migrate(target: str | None = None) -> None:
    call_command("migrate", *filter(None, ["peasy_jobs", target]), verbosity=0)


@pytest.fixture
def insert(transactional_db: None) -> Iterator[Insert]:
    """Writes a row as 0.4.1 did, into the tables that it made."""
    forget()
    migrate(PUBLISHED)
    old = MigrationExecutor(connection).loader.project_state(("peasy_jobs", PUBLISHED)).apps
    model = old.get_model("peasy_jobs", "PeasyJobQueue")

    def insert(
        job_name: str, *args: Any, result: bytes | None = None, columns: Any = None, **kwargs: Any
    ) -> int:
        return model.objects.create(
            job_name=f"tests.jobs.{job_name}",
            title=f"title of {job_name}",
            pickled_args=pickle.dumps(args),
            pickled_kwargs=pickle.dumps(kwargs),
            result=result,
            **{"status_msg": "Enqueued", **(columns or {})},
        ).pk

    yield insert
    if unapplied_migrations(connection):
        forget()
        migrate()


def ongoing(**columns: Any) -> dict[str, Any]:
    return {"status": ONGOING, "status_msg": "Starting...", "started": at(1), **columns}


def completed(**columns: Any) -> dict[str, Any]:
    return {
        "status": COMPLETED,
        "status_msg": "Complete",
        "started": at(1),
        "completed": at(2),
        **columns,
    }


def run(run_peasy: Callable[..., Any], **settings: Any) -> str:
    """Run all that may run."""
    command = run_peasy("--exit-on-empty", settings={**KEEP_ALL, **settings})
    assert command.wait() == 0, command.describe()
    return command.output()


class Calls:
    """Pickles to a call of `note`: whoever loads it runs code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return note, (self.path, "loaded")


def test_the_upgrade_loses_no_stored_value(insert):
    user = get_user_model().objects.create(username="somebody")
    rows = [
        insert("echo", 1, columns={"user_id": user.pk, "extra": {"progress": 0}}),
        insert("echo", 2, columns=ongoing(extra={"progress": 50}, status_msg="half way")),
        insert("echo", 3, result=pickle.dumps(3), columns=completed(user_id=user.pk)),
        insert("boom", "no", columns=completed(status=FAILED, status_msg="Failed: no")),
        insert("echo", 5, columns={"status": CANCELLED, "status_msg": "Cancelled"}),
    ]
    kept = (
        "pk",
        "job_name",
        "title",
        "status",
        "status_msg",
        "extra",
        "user",
        "created",
        "started",
        "completed",
    )
    old = MigrationExecutor(connection).loader.project_state(("peasy_jobs", PUBLISHED)).apps
    before = list(old.get_model("peasy_jobs", "PeasyJobQueue").objects.order_by("pk").values(*kept))

    migrate()

    before[0]["status_msg"] = (
        ""  # the package's own "Enqueued", which a job that runs later would keep
    )
    assert list(jobs.order_by("pk").values(*kept)) == before
    assert [row["pk"] for row in before] == rows
    assert [(job.args, job.kwargs) for job in jobs.order_by("pk")] == [
        ((n,), {}) for n in (1, 2, 3, "no", 5)
    ]
    new = set(
        jobs.values_list(
            "queue_name", "priority", "run_after", "runner", "claims", "attempts", "crashes"
        )
    )
    assert new == {("default", 0, None, None, 0, 0, 0)}
    assert [job.errors for job in jobs.all()] == [[]] * 5
    user.delete()
    assert jobs.filter(user=None).count() == 5


def test_old_arguments_and_results_are_read_unchanged(insert):
    values = [
        None,
        "a text",
        (1, {"a": [date(2025, 1, 2), Decimal("1.10")]}, {3}),
        b"\x00\xff" * 1000,
        "x" * 400_000,
    ]
    protocols = (4, 5)  # the default of Python up to 3.13, and after it
    stored = {
        insert(
            "echo", value, result=pickle.dumps(value, protocol), columns=completed(), flag=value
        ): value
        for value in values
        for protocol in protocols
    }

    migrate()

    found = jobs.in_bulk()
    for pk, value in stored.items():
        assert found[pk].result == value
        assert found[pk].args == (value,)
        assert found[pk].kwargs == {"flag": value}


def test_a_result_that_can_no_longer_be_unpickled_affects_only_its_own_row(insert):
    gone = b"\x80\x04cno_such_module\nGone\n)\x81."
    pk = insert("echo", 1, result=gone, columns=completed())
    fine = insert("echo", 2, result=pickle.dumps(2), columns=completed())

    migrate()

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = jobs.get(pk=pk).result
    assert bytes(jobs.get(pk=pk).result_data).endswith(gone)
    assert jobs.get(pk=pk).args == (1,)
    assert jobs.get(pk=fine).result == 2


def test_waiting_jobs_run_after_the_upgrade_oldest_first(insert, run_peasy, tmp_path):
    record = str(tmp_path / "record")
    day = insert("echo", date(2025, 1, 2))
    own = insert("own_pk")
    mixed = insert("give_back", 1, user_pk=7)
    for name in ("first", "second"):
        insert("in_order", record, name=name)
    broken = insert("boom", "still broken")
    lost = insert("no_such_job")

    migrate()
    run(run_peasy, PEASY_CONCURRENCY=1)

    found = jobs.in_bulk()
    assert [found[pk].result for pk in (day, own, mixed)] == [
        date(2025, 1, 2),
        own,
        [[1], {"user_pk": 7}],
    ]
    assert notes(record) == ["first", "second"]
    assert found[broken].status == FAILED
    assert found[broken].error == "ValueError: still broken"
    assert not jobs.filter(status=ENQUEUED).exists()
    assert "tests.jobs.no_such_job" in found[lost].error


def test_jobs_that_were_running_before_the_upgrade_run_again(insert, run_peasy, tmp_path):
    record = tmp_path / "record"
    pk = insert("write_note", str(record), columns=ongoing())

    migrate()
    run(run_peasy)

    job = jobs.get(pk=pk)
    assert notes(record) == ["ran"]
    assert job.status == COMPLETED
    assert job.crashes == 1
    assert job.runner is None


def test_finished_jobs_do_not_run_again(insert, run_peasy, tmp_path):
    record = tmp_path / "record"
    waiting = {"status": CANCELLED, "status_msg": "Cancelled"}
    ends = [
        insert("write_note", str(record), columns=waiting),
        insert("write_note", str(record), columns={**waiting, "started": at(1)}),
        insert(
            "write_note",
            str(record),
            columns=completed(status=FAILED, status_msg="Failed: no luck"),
        ),
        insert("write_note", str(record), result=pickle.dumps(None), columns=completed()),
    ]

    migrate()
    run(run_peasy)

    assert notes(record) == []
    found = [jobs.get(pk=pk) for pk in ends]
    assert [job.status for job in found] == [CANCELLED, CANCELLED, FAILED, COMPLETED]
    assert [job.status_msg for job in found] == [
        "Cancelled",
        "Cancelled",
        "Failed: no luck",
        "Complete",
    ]
    assert [job.completed for job in found[2:]] == [at(2), at(2)]
    assert None not in [job.completed for job in found[:2]], (
        "a cancelled job that nobody runs is over"
    )


def test_the_migration_unpickles_nothing(insert, tmp_path):
    path = tmp_path / "loaded"
    trap = Calls(str(path))
    pk = insert("echo", trap, result=pickle.dumps(trap), columns=completed(), flag=trap)

    migrate()

    assert notes(path) == []
    _ = jobs.get(pk=pk).result  # of a row that this site has vouched for, and only now
    assert notes(path) == ["loaded"]


def test_an_unsigned_pickle_is_refused_after_the_upgrade(insert, run_peasy, tmp_path):
    insert("echo", 1)
    migrate()
    path, record = tmp_path / "loaded", tmp_path / "record"
    forged = {
        "args": {"args_data": pickle.dumps((Calls(str(path)),))},
        "kwargs": {"kwargs_data": pickle.dumps({"path": Calls(str(path))})},
        "marked": {"args_data": payloads.PICKLE + pickle.dumps((str(record),))},
    }
    pks = {
        name: jobs.create(title=name, job_name="tests.jobs.write_note", **columns).pk
        for name, columns in forged.items()
    }

    run(run_peasy)

    assert notes(path) == notes(record) == []
    for pk in pks.values():
        job = jobs.get(pk=pk)
        assert job.status == FAILED
        assert job.errors[-1]["exception"] == "peasy_jobs.payloads.PayloadRefused"
    with pytest.raises(PayloadRefused):
        _ = jobs.get(pk=pks["args"]).args


def test_a_pickle_with_a_forged_signature_is_not_signed_by_the_upgrade(insert, tmp_path):
    path = tmp_path / "loaded"
    pk = insert(
        "echo", result=payloads.PICKLE + pickle.dumps(Calls(str(path))), columns=completed()
    )

    migrate()

    with pytest.raises(PayloadRefused):
        _ = jobs.get(pk=pk).result
    assert notes(path) == []


def stored() -> list[tuple[Any, ...]]:
    rows = jobs.order_by("pk").values_list("args_data", "kwargs_data", "result_data")
    return [tuple(data and bytes(data) for data in row) for row in rows]


def insert_many(insert: Insert, count: int, result: bytes | None = None) -> None:
    insert("echo", 0, result=result, columns=completed())
    table = PeasyJobQueue._meta.db_table
    names = (
        "job_name, title, pickled_args, pickled_kwargs, result, status_msg, extra, status,"
        " created, completed"
    )
    with connection.cursor() as cursor:
        for number in range(1, count):
            if number & (number - 1) == 0:  # double what is there
                cursor.execute(
                    f"INSERT INTO {table} ({names})"
                    f" SELECT {names} FROM {table} LIMIT {count - number}"
                )


def test_signing_thousands_of_rows_a_second_time_changes_nothing(insert):
    insert_many(insert, 1203, result=pickle.dumps("a result"))

    migrate(SIGNED)

    assert jobs.count() == 1203
    assert {(job.args, job.result) for job in jobs.all()} == {((0,), "a result")}
    once = stored()
    MigrationRecorder(connection).record_unapplied("peasy_jobs", SIGNED)
    migrate()
    assert stored() == once


def test_an_interrupted_upgrade_continues_where_it_stopped(insert, monkeypatch):
    insert_many(insert, 1203)
    sign, signed = payloads.signed, []

    def interrupted(pickled: bytes, **where: str) -> bytes:
        signed.append(pickled)
        if len(signed) > 2000:  # two for each row
            raise KeyboardInterrupt
        return sign(pickled, **where)

    monkeypatch.setattr(payloads, "signed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        migrate()
    marks = [args[:1] for args, _, _ in stored()]
    assert {payloads.PICKLE, pickle.dumps(0)[:1]} == set(marks), "some of them"

    monkeypatch.setattr(payloads, "signed", sign)
    migrate()

    assert {job.args for job in jobs.all()} == {(0,)}


def test_many_large_results_are_signed_by_the_upgrade(insert):
    """Together more than MariaDB takes in one statement."""
    value = b"\0" * 400_000
    insert_many(insert, 48, result=pickle.dumps(value))

    migrate()

    assert {job.result for job in jobs.all()} == {value}


def test_the_models_match_the_migrations():
    output = io.StringIO()
    call_command("makemigrations", "peasy_jobs", check=True, dry_run=True, stdout=output)
    assert "No changes" in output.getvalue()
