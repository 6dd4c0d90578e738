"""Tests of the documented API: what a site imports, decorates, calls and reads."""

import importlib
import inspect
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from peasy_jobs import conf, payloads, statuses
from peasy_jobs.job import Job
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.store import querysets, wakeup
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.values import Run
from peasy_jobs.workers import execution
from peasy_jobs.workers.protocol import Report
from tests import jobs

needs_database = pytest.mark.django_db
commits = pytest.mark.django_db(transaction=True)


@peasy.job("export data to s3")
def export(bucket: str, *, year: int = 2024) -> str:
    """Write the year's orders to a bucket."""
    return f"{bucket}/{year}"


@peasy.job("title", priority=5, queue_name="mail")
def mail(to: str) -> None:
    pass


@peasy.job("know oneself or not")
def maybe_pk(value: Any = None, job_pk: int | None = None) -> Any:
    return value, job_pk


def undecorated() -> None:
    pass


def run_next() -> PeasyJobQueue:
    """Claim the next job, run it in this process and write its outcome, as a runner does."""
    now = as_field(database_now(connection))
    [claim] = PeasyJobQueue.objects.claim(ClaimRequest(runner_id=1, limit=1, now=now))
    outcome = execution.run(claim.run(), lambda report: None)
    update = querysets.JobUpdate(
        claim=claim,
        status=statuses.FAILED if outcome.error else statuses.COMPLETED,
        result=outcome.result,
        error=outcome.error,
        started=now,
        completed=now,
    )
    assert PeasyJobQueue.objects.finish(1, [update], now) == []
    return PeasyJobQueue.objects.get(pk=claim.pk)


def from_another_connection(query: Callable[[], Any]) -> Any:
    """Return what `query` returns in another thread, which has a connection of its own."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(query())
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


# Enqueue


@needs_database
def test_calling_a_job_function_enqueues_the_call_and_returns_its_row() -> None:
    job = export("orders", year=2025)
    assert isinstance(job, PeasyJobQueue)
    job = PeasyJobQueue.objects.get(pk=job.pk)
    assert job.status == PeasyJobQueue.ENQUEUED
    assert job.title == "export data to s3"
    assert job.job_name == "tests.test_peasy_jobs.export"
    assert job.args == ("orders",)
    assert job.kwargs == {"year": 2025}
    assert job.user is None
    assert job.status_msg == ""
    assert job.extra is None
    assert job.result is None
    assert job.started is None
    assert job.completed is None
    assert job.attempts == 0
    assert job.error == ""
    assert job.traceback == ""
    assert job.priority == 0
    assert job.queue_name == "default"
    assert job.run_after is None
    assert abs(job.created - as_field(database_now(connection))) < timedelta(minutes=5)
    assert timezone.is_aware(job.created) == conf.uses_time_zones()


@needs_database
def test_a_call_without_arguments_has_none() -> None:
    job = PeasyJobQueue.objects.get(pk=jobs.nothing().pk)
    assert job.args == ()
    assert job.kwargs == {}


@needs_database
def test_the_job_runs_with_its_arguments_and_keeps_its_result() -> None:
    export("orders", year=2025)
    job = run_next()
    assert job.status == PeasyJobQueue.COMPLETED
    assert job.result == "orders/2025"
    assert job.attempts == 1
    assert job.started is not None
    assert job.completed is not None


@needs_database
def test_a_failed_job_keeps_its_error_and_traceback() -> None:
    jobs.boom("no such order")
    job = run_next()
    assert job.status == PeasyJobQueue.FAILED
    assert job.error == "ValueError: no such order"
    assert job.traceback.startswith("Traceback (most recent call last):")
    assert job.traceback.endswith("ValueError: no such order\n")
    assert job.result is None


@commits
def test_a_job_is_not_created_when_the_callers_transaction_is_rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        job = export("orders")
        assert PeasyJobQueue.objects.filter(pk=job.pk).exists()
        1 / 0  # noqa: B018
    assert not PeasyJobQueue.objects.exists()


@commits
def test_others_see_a_job_when_the_callers_transaction_is_committed() -> None:
    with transaction.atomic():
        user = User.objects.create(username="with it")
        job = export("orders")
        assert not from_another_connection(PeasyJobQueue.objects.exists)
    assert from_another_connection(lambda: PeasyJobQueue.objects.get().pk) == job.pk
    assert from_another_connection(lambda: User.objects.get().pk) == user.pk


@commits
def test_a_job_can_be_enqueued_without_autocommit() -> None:
    transaction.set_autocommit(False)
    try:
        job = export("orders")
        assert not from_another_connection(PeasyJobQueue.objects.exists)
        transaction.commit()
        assert from_another_connection(lambda: PeasyJobQueue.objects.get().pk) == job.pk
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def queries(call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        call()
    return [query["sql"] for query in captured.captured_queries]


@needs_database
@pytest.mark.parametrize(
    "call",
    [
        lambda: jobs.nothing(),
        lambda: export("orders", year=2025),
        lambda: export.using(user=AnonymousUser(), priority=3, queue_name="mail")("orders"),
        lambda: export.using(run_after=datetime(2100, 1, 1, tzinfo=UTC))("orders"),
    ],
    ids=["nothing", "arguments", "options", "later"],
)
def test_enqueueing_takes_one_query_in_a_transaction(call: Callable[[], Any]) -> None:
    [insert] = queries(call)
    assert insert.startswith("INSERT INTO")


@commits
def test_enqueueing_takes_one_query_outside_of_a_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wakeup, "_notified_at", float("-inf"))
    verbs = [[sql.partition(" ")[0] for sql in queries(jobs.nothing)] for _ in range(3)]
    # Idle runners are woken up after the commit, and not for every job.
    notify = {"postgresql": ["NOTIFY"]}.get(connection.vendor, [])
    assert verbs == [["INSERT", *notify], ["INSERT"], ["INSERT"]]


@needs_database
def test_map_enqueues_a_call_for_each_item_in_their_order() -> None:
    made = jobs.give_back.using(queue_name="mail", priority=3).map(
        item for item in [("a", 2), (), {"key": "b"}, {}, "c", None, [1, 2], 4]
    )
    stored = [PeasyJobQueue.objects.get(pk=job.pk) for job in made]
    assert [(job.args, job.kwargs) for job in stored] == [
        (("a", 2), {}),
        ((), {}),
        ((), {"key": "b"}),
        ((), {}),
        (("c",), {}),
        ((None,), {}),
        (([1, 2],), {}),
        ((4,), {}),
    ]
    assert sorted(job.pk for job in made) == [job.pk for job in made]
    for job in [*stored, *made]:
        assert job.status == PeasyJobQueue.ENQUEUED
        assert job.title == "give back"
        assert job.job_name == "tests.jobs.give_back"
        assert job.queue_name == "mail"
        assert job.priority == 3


@needs_database
def test_map_can_schedule_its_jobs_for_later() -> None:
    made = export.using(run_after=timedelta(hours=1)).map(["a", "b"])
    assert {job.status for job in PeasyJobQueue.objects.all()} == {PeasyJobQueue.SCHEDULED}
    assert made[0].run_after == made[1].run_after


@needs_database
@pytest.mark.parametrize(
    "wrong",
    [("too", "many", "of", "them"), {"nobody": 1}, {1: 2}, threading.Lock()],
    ids=["many", "name", "key", "lock"],
)
def test_map_enqueues_nothing_when_one_item_is_invalid(wrong: Any) -> None:
    with pytest.raises((TypeError, payloads.PayloadError), match="Cannot enqueue"):
        export.map(["orders", wrong])
    assert not PeasyJobQueue.objects.exists()
    assert export.map([]) == []


@needs_database
def test_map_inserts_up_to_a_thousand_rows_at_a_time_and_fewer_large_rows() -> None:
    many = queries(lambda: jobs.nothing.map([()] * 2001))
    large = queries(lambda: jobs.echo.map(["x" * 200_000] * 4))
    assert len(PeasyJobQueue.objects.values_list("pk")) == 2005
    if connection.vendor != "sqlite":  # where Django itself makes the statements smaller
        assert [sum(query.startswith("INSERT") for query in made) for made in (many, large)] == [
            3,
            4,
        ]


@needs_database
def test_map_returns_the_primary_keys_on_servers_that_return_only_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        type(connection.features), "can_return_rows_from_bulk_insert", False
    )  # MySQL
    made = jobs.echo.map([1, 2, 3])
    assert [PeasyJobQueue.objects.get(pk=job.pk).args for job in made] == [(1,), (2,), (3,)]


@commits
def test_map_wakes_runners_once_and_rolls_back_with_its_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced: list[str] = []
    monkeypatch.setattr(wakeup, "announce", announced.append)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        export.map(["a", "b"])
        1 / 0  # noqa: B018
    assert announced == ["default"]
    assert not PeasyJobQueue.objects.exists()


# Calling without the queue


def test_call_runs_the_function_without_the_queue() -> None:
    # This test may not use the database.
    assert export.call("orders", year=2025) == "orders/2025"
    assert jobs.own_pk.call() is None
    assert jobs.own_pk.call(job_pk=5) == 5
    with pytest.raises(ValueError, match="^boom$"):
        jobs.boom.call()


def test_call_accepts_arguments_that_cannot_be_stored() -> None:
    value = threading.Lock()
    assert jobs.echo.call(value) is value


# Options


@needs_database
def test_the_options_of_the_decorator_apply_to_every_call() -> None:
    job = mail("somebody")
    assert job.priority == 5
    assert job.queue_name == "mail"


@needs_database
def test_the_options_of_a_call_override_those_of_the_decorator() -> None:
    job = mail.using(priority=-7, queue_name="slow")("somebody")
    job.refresh_from_db()
    assert job.priority == -7
    assert job.queue_name == "slow"
    job = mail.using(priority=0)("somebody")
    assert job.priority == 0
    assert job.queue_name == "mail", "None leaves an option as it is, but 0 does not"


@needs_database
def test_all_options_of_a_call_have_the_names_that_django_tasks_gives_them(rf: Any) -> None:
    request, fn, args = rf.get("/"), export, ("orders",)
    request.user = User.objects.create(username="anna")
    job = fn.using(user=request.user, priority=5, queue_name="mail", run_after=timedelta(hours=1))(
        *args
    )
    job.refresh_from_db()
    assert job.user == request.user
    assert job.priority == 5
    assert job.queue_name == "mail"
    assert job.status == PeasyJobQueue.SCHEDULED
    assert job.args == ("orders",)
    assert job.run_after > job.created


@needs_database
def test_using_returns_a_changed_copy() -> None:
    urgent = mail.using(priority=100)
    slow = urgent.using(queue_name="slow")
    made = [fn("somebody") for fn in (mail, urgent, slow)]
    assert [(job.priority, job.queue_name) for job in made] == [
        (5, "mail"),
        (100, "mail"),
        (100, "slow"),
    ]
    assert {job.job_name for job in made} == {"tests.test_peasy_jobs.mail"}


def assert_refused_with(
    error: type[Exception], message: str, set_option: Callable[..., Any], **options: Any
) -> None:
    with pytest.raises(error) as caught:
        set_option(**options)
    assert str(caught.value) == message


def decorate(**options: Any) -> Job[..., Any]:
    return peasy.job("title", **options)(undecorated)


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_a_priority_from_minus_100_to_100_is_accepted(priority: int) -> None:
    assert mail.using(priority=priority).options.priority == priority
    assert decorate(priority=priority).options.priority == priority


@pytest.mark.parametrize("set_option", [mail.using, decorate], ids=["call", "decorator"])
@pytest.mark.parametrize("priority", [-101, 101, 1.0, "5", True, 10**9], ids=repr)
def test_any_other_priority_is_refused(set_option: Any, priority: Any) -> None:
    message = f"priority is {priority!r}. Give a whole number from -100 to 100."
    assert_refused_with(ValueError, message, set_option, priority=priority)


@pytest.mark.parametrize("set_option", [mail.using, decorate], ids=["call", "decorator"])
@pytest.mark.parametrize("name", ["", "x" * 65, 5, b"mail", "ma\0il", ["mail"]], ids=repr)
def test_a_queue_name_that_cannot_be_stored_is_refused(set_option: Any, name: Any) -> None:
    message = f"queue_name is {name!r}. Give a name of 1 to 64 characters."
    assert_refused_with(ValueError, message, set_option, queue_name=name)


@needs_database
def test_the_longest_queue_name_is_stored_completely() -> None:
    job = mail.using(queue_name="é" * 64)("somebody")
    job.refresh_from_db()
    assert job.queue_name == "é" * 64


def as_aware(moment: datetime) -> datetime:
    """Return a datetime of the site as an aware one, with and without `USE_TZ`."""
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


@needs_database
@pytest.mark.parametrize("zone", [UTC, timezone.get_fixed_timezone(330)], ids=str)
@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
def test_a_job_with_run_after_is_scheduled(settings: Any, zone: Any, aware: bool) -> None:
    settings.USE_TZ = aware
    due = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    job = export.using(run_after=due.astimezone(zone))("orders")
    job.refresh_from_db()
    assert job.status == PeasyJobQueue.SCHEDULED
    assert timezone.is_aware(job.run_after) == aware
    assert as_aware(job.run_after) == due


@needs_database
@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
def test_a_timedelta_as_run_after_counts_from_the_databases_now(settings: Any, aware: bool) -> None:
    settings.USE_TZ = aware
    before = database_now(connection)
    job = export.using(run_after=timedelta(hours=2))("orders")
    after = database_now(connection)
    job.refresh_from_db()
    assert job.status == PeasyJobQueue.SCHEDULED
    assert before <= as_aware(job.run_after) - timedelta(hours=2) <= after


@needs_database
def test_a_naive_run_after_is_accepted_without_use_tz(settings: Any) -> None:
    settings.USE_TZ = False
    job = export.using(run_after=datetime(2100, 1, 2, 3))("orders")
    job.refresh_from_db()
    assert job.run_after == datetime(2100, 1, 2, 3)


@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
def test_a_run_after_that_is_out_of_range_in_utc_is_refused(
    settings: Any, edge: datetime, aware: bool
) -> None:
    settings.USE_TZ = aware
    beyond = edge.replace(tzinfo=timezone.get_fixed_timezone(840 if edge.year == 1 else -720))
    assert_refused_with(
        ValueError,
        f"run_after is {beyond!r}, which is out of range. Give an earlier or later time.",
        export.using,
        run_after=beyond,
    )


def test_a_naive_run_after_is_refused_with_use_tz(settings: Any) -> None:
    settings.USE_TZ = True
    naive = datetime(2100, 1, 2, 3)
    message = (
        f"run_after is {naive!r}, which has no time zone. "
        "Give an aware datetime, or a timedelta from now."
    )
    assert_refused_with(ValueError, message, export.using, run_after=naive)


@pytest.mark.parametrize("value", ["tomorrow", 60, datetime(2100, 1, 2).date()], ids=repr)
def test_any_other_run_after_is_refused(value: Any) -> None:
    message = f"run_after is {value!r}. Give a datetime, or a timedelta from now."
    assert_refused_with(TypeError, message, export.using, run_after=value)


@needs_database
def test_the_user_of_a_job_is_stored() -> None:
    user = User.objects.create(username="anna")
    assert PeasyJobQueue.objects.get(pk=export.using(user=user)("orders").pk).user == user
    lazy = SimpleLazyObject(lambda: user)  # what request.user is
    assert PeasyJobQueue.objects.get(pk=export.using(user=lazy)("orders").pk).user == user


@needs_database
@pytest.mark.parametrize(
    "user",
    [AnonymousUser(), SimpleLazyObject(AnonymousUser), None],
    ids=["anonymous", "lazy", "none"],
)
def test_an_anonymous_user_is_stored_as_no_user(user: Any) -> None:
    job = export.using(user=user)("orders")
    job.refresh_from_db()
    assert job.user is None


@pytest.mark.parametrize(
    "user", ["anna", 5, PeasyJobQueue(pk=5)], ids=["name", "primary key", "another row"]
)
def test_a_user_that_is_no_user_is_refused(user: Any) -> None:
    assert_refused_with(
        TypeError, f"user is {user!r}. Give a user, such as request.user.", export.using, user=user
    )


@needs_database
def test_a_job_remains_when_its_user_is_deleted() -> None:
    user = User.objects.create(username="anna")
    job = export.using(user=user)("orders")
    user.delete()
    job.refresh_from_db()
    assert job.user is None
    assert job.status == PeasyJobQueue.ENQUEUED


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        mail.using(colour="red")


# Arguments

OWN_PK = "own pk"  # stands for the primary key of the job


@needs_database
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, [None, OWN_PK]),
        ((1,), {}, [1, OWN_PK]),
        ((1, -2), {}, [1, -2]),  # the primary key of no row
        ((1,), {"job_pk": -3}, [1, -3]),
        ((1,), {"job_pk": None}, [1, None]),
        ((), {"value": 1}, [1, OWN_PK]),
    ],
    ids=repr,
)
def test_job_pk_is_injected_when_the_caller_passes_none(
    args: Any, kwargs: Any, expected: Any
) -> None:
    job = maybe_pk(*args, **kwargs)
    assert job.kwargs == kwargs, "it is injected when the job runs, not when it is enqueued"
    assert list(run_next().result) == [job.pk if value == OWN_PK else value for value in expected]


@needs_database
def test_a_required_job_pk_need_not_be_passed() -> None:
    job = jobs.own_pk()
    assert run_next().result == job.pk


@needs_database
def test_job_pk_is_not_injected_into_a_function_without_that_parameter() -> None:
    jobs.give_back()  # takes any keyword
    assert run_next().result == [[], {}]


@needs_database
@pytest.mark.parametrize("fits", [False, True], ids=["first call", "after one that fits"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: export(), "missing a required argument: 'bucket'"),
        (lambda: export("orders", 2025), "too many positional arguments"),
        (lambda: export("orders", month=5), "got an unexpected keyword argument 'month'"),
        (lambda: export("orders", bucket="orders"), "multiple values for argument 'bucket'"),
        (lambda: export("orders", job_pk=5), "got an unexpected keyword argument 'job_pk'"),
    ],
    ids=range(5),
)
def test_wrong_arguments_are_refused_at_the_caller(
    call: Callable[[], Any], message: str, fits: bool
) -> None:
    export.known_counts.clear()
    if fits:
        export("orders")
    with pytest.raises(TypeError) as refused:
        call()
    assert str(refused.value) == f'Cannot enqueue "export data to s3": {message}.'


def test_a_function_without_parameters_refuses_an_argument() -> None:
    with pytest.raises(
        TypeError, match='^Cannot enqueue "do nothing": too many positional arguments.$'
    ):
        jobs.nothing(1)


# Status


@needs_database
def test_update_status_stores_what_is_given_and_leaves_the_rest() -> None:
    job = export("orders")
    job_pk = job.pk
    peasy.update_status(job_pk, status_msg="…", extra={"progress": 50})
    job.refresh_from_db()
    assert job.status_msg == "…"
    assert job.extra == {"progress": 50}
    peasy.update_status(job_pk, status_msg="more")
    job.refresh_from_db()
    assert job.status_msg == "more"
    assert job.extra == {"progress": 50}
    peasy.update_status(job_pk, extra={"rows": 7})
    job.refresh_from_db()
    assert job.status_msg == "more"
    assert job.extra == {"rows": 7}, "extra replaces the stored dictionary"
    peasy.update_status(job_pk, status_msg="", extra={})
    job.refresh_from_db()
    assert job.status_msg == ""
    assert job.extra == {}, "empty values are stored too"
    assert queries(lambda: peasy.update_status(job_pk)) == []


@needs_database
def test_update_status_changes_only_one_job() -> None:
    job, other = export("orders"), export("orders")
    peasy.update_status(job.pk, "mine")
    other.refresh_from_db()
    assert other.status_msg == ""
    assert other.status == PeasyJobQueue.ENQUEUED


@needs_database
def test_long_messages_are_cut_and_unstorable_characters_replaced() -> None:
    job = export("orders")
    peasy.update_status(job.pk, "é" * 300)
    job.refresh_from_db()
    assert job.status_msg == "é" * 255
    peasy.update_status(job.pk, "a\0b\ud800c\U0001f600", {"k\0ey": ["\0", {"deep": "\udfff"}]})
    job.refresh_from_db()
    assert job.status_msg == "a\ufffdb\ufffdc\U0001f600"
    assert job.extra == {"k\ufffdey": ["\ufffd", {"deep": "\ufffd"}]}
    peasy.update_status(job.pk, 5)
    job.refresh_from_db()
    assert job.status_msg == "5"


looped: dict[str, Any] = {}
looped["itself"] = looped


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"when": datetime(2024, 1, 1)}, TypeError),
        ({"rows": {1, 2}}, TypeError),
        ({"progress": float("nan")}, ValueError),
        ({"progress": [float("inf")]}, ValueError),
        ({("a", "tuple"): 1}, TypeError),
        ({b"bytes": 1}, TypeError),
        (looped, ValueError),
        ([1], TypeError),
        ("text", TypeError),
        (5, TypeError),
    ],
    ids=lambda value: str(value)[:30],
)
def test_extra_that_is_not_a_dictionary_of_json_raises_at_the_caller(
    extra: Any, error: type[Exception]
) -> None:
    # This test may not use the database, so nothing is written.
    with pytest.raises(
        error,
        match=r"^extra (is|cannot be stored as JSON: ).*\. Give a dictionary of JSON values\.$",
    ):
        peasy.update_status(5, "message", extra)


def test_update_status_and_track_do_nothing_without_a_job() -> None:
    # This test may not use the database.
    peasy.update_status(None, status_msg="…", extra={"progress": 50})
    assert list(peasy.track(None, [1, 2, 3], "Importing rows")) == [1, 2, 3]
    assert jobs.track_rows.call(4) == 6


@needs_database
def test_update_status_of_a_job_that_does_not_exist_does_nothing() -> None:
    peasy.update_status(123456, "message", {"progress": 1})
    assert list(peasy.track(123456, [1, 2], "Importing rows")) == [1, 2]
    assert not PeasyJobQueue.objects.exists()


def reports_of(job: Job[..., Any], *args: Any) -> list[tuple[str | None, str | None]]:
    sent: list[Report] = []
    name = job.job_name
    data = payloads.dumps(
        list(args), job_name=name, column=payloads.ARGS, max_bytes=1000, serializer="json"
    )
    outcome = execution.run(Run(-1, 1, name, data, None, 1), sent.append)  # the pk of no row
    assert outcome.error is None, outcome.error
    return [(report.status_msg, report.extra) for report in sent]


def test_a_running_job_and_its_threads_report_to_their_runner() -> None:
    # This test may not use the database.
    assert reports_of(jobs.progress_from_thread) == [("from a thread", '{"progress": 30}')]


@commits
def test_a_process_forked_by_a_job_writes_its_progress_to_the_database() -> None:
    job = jobs.progress_from_fork()
    name = jobs.progress_from_fork.job_name
    sent: list[Any] = []
    assert execution.run(Run(job.pk, 1, name, None, None, 1), sent.append).error is None
    assert sent == []
    job.refresh_from_db()
    assert job.status_msg == "from a fork"
    assert job.extra == {"progress": 40}


@needs_database
def test_a_job_can_update_the_status_of_another_job() -> None:
    other = export("orders")
    assert reports_of(jobs.progress_of, other.pk) == []
    other.refresh_from_db()
    assert other.status_msg == "from afar"
    assert other.extra == {"progress": 60}


# Track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock of `track`: seconds in a list, which only the test changes."""
    now = [0.0]
    monkeypatch.setattr("peasy_jobs.peasy_jobs.monotonic", lambda: now[0])
    yield now


@needs_database
def test_track_yields_every_item_and_shows_the_progress(clock: list[float]) -> None:
    job_pk, rows, seen = export("orders").pk, ["a", "b", "c", "d"], []
    for row in peasy.track(job_pk, rows, "Importing rows"):
        job = PeasyJobQueue.objects.get(pk=job_pk)
        seen.append((row, job.status_msg, job.extra))
        clock[0] += 1
    assert seen == [
        ("a", "Importing rows: 0 of 4", {"progress": 0}),
        ("b", "Importing rows: 1 of 4", {"progress": 25}),
        ("c", "Importing rows: 2 of 4", {"progress": 50}),
        ("d", "Importing rows: 3 of 4", {"progress": 75}),
    ]
    job = PeasyJobQueue.objects.get(pk=job_pk)
    assert job.status_msg == "Importing rows: 4 of 4"
    assert job.extra == {"progress": 100}


@needs_database
def test_track_keeps_the_rest_of_extra() -> None:
    job = export("orders")
    peasy.update_status(job.pk, extra={"file": "a.csv", "progress": 1})
    list(peasy.track(job.pk, range(3)))
    job.refresh_from_db()
    assert job.extra == {"file": "a.csv", "progress": 100}
    assert job.status_msg == "3 of 3"


@needs_database
def test_track_keeps_extra_that_the_runner_has_not_written_yet() -> None:
    assert reports_of(set_extra_then_track)[-1] == ("3 of 3", '{"file": "b.csv", "progress": 100}')


@peasy.job("set extra, then track")
def set_extra_then_track(job_pk: int) -> None:
    peasy.update_status(job_pk, extra={"file": "b.csv"})  # not written yet
    list(peasy.track(job_pk, range(3)))


def updates(call: Callable[[], Any]) -> list[str]:
    return [sql for sql in queries(call) if sql.startswith("UPDATE")]


@needs_database
def test_track_writes_at_most_ten_times_a_second(clock: list[float]) -> None:
    job = export("orders")

    def go() -> None:
        for _ in peasy.track(job.pk, range(1024)):
            clock[0] += 1 / 1024

    assert 8 <= len(updates(go)) <= 12, "about ten in this second"
    clock[0] += 1
    first_and_last = updates(lambda: list(peasy.track(job.pk, range(10_000))))
    assert len(first_and_last) == 2


@needs_database
def test_track_shows_only_the_count_when_the_total_is_unknown() -> None:
    job = export("orders")
    peasy.update_status(job.pk, extra={"file": "a.csv"})
    assert list(peasy.track(job.pk, (n for n in range(1234)), "Importing rows")) == list(
        range(1234)
    )
    job.refresh_from_db()
    assert job.status_msg == "Importing rows: 1,234"
    assert job.extra == {"file": "a.csv"}


@needs_database
def test_track_uses_the_given_total(clock: list[float]) -> None:
    job, seen = export("orders"), []
    for _ in peasy.track(job.pk, iter("abc"), "Importing rows", total=2):
        job.refresh_from_db()
        seen.append(job.extra["progress"])
        clock[0] += 1
    job.refresh_from_db()
    assert [*seen, job.extra["progress"]] == [0, 50, 100, 100], "never more than 100"
    assert job.status_msg == "Importing rows: 3 of 2"


@needs_database
@pytest.mark.parametrize(
    "rows", [[], {}, range(0), PeasyJobQueue.objects.none()], ids=["list", "dict", "range", "rows"]
)
def test_track_of_no_items_shows_100_percent(rows: Any) -> None:
    job = export("orders")
    assert list(peasy.track(job.pk, rows, "Importing rows")) == []
    job.refresh_from_db()
    assert job.status_msg == "Importing rows: 0 of 0"
    assert job.extra == {"progress": 100}


class Interrupted(Exception):
    """Raised in the middle of `track`."""


def four_items() -> Iterator[int]:
    yield from range(4)


def two_items_and_an_exception() -> Iterator[int]:
    yield from range(2)
    raise Interrupted


def leave_with_break(tracked: Iterator[int], clock: list[float]) -> None:
    for number in tracked:
        clock[0] += 1
        if number == 2:
            break


def leave_with_exception(tracked: Iterator[int], clock: list[float]) -> None:
    with pytest.raises(Interrupted):
        for number in tracked:
            clock[0] += 1
            if number == 2:
                raise Interrupted


@needs_database
@pytest.mark.parametrize(
    ("items", "leave", "status_msg", "progress"),
    [
        (four_items, leave_with_break, "Importing rows: 2 of 4", 50),
        (four_items, leave_with_exception, "Importing rows: 2 of 4", 50),
        (two_items_and_an_exception, leave_with_exception, "Importing rows: 1 of 4", 25),
    ],
    ids=["break", "exception", "exception of the iterable"],
)
def test_a_loop_that_leaves_track_early_does_not_show_100_percent(
    clock: list[float],
    items: Callable[[], Iterator[int]],
    leave: Callable[[Iterator[int], list[float]], None],
    status_msg: str,
    progress: int,
) -> None:
    job = export("orders")
    leave(peasy.track(job.pk, items(), "Importing rows", total=4), clock)
    job.refresh_from_db()
    assert job.status_msg == status_msg
    assert job.extra == {"progress": progress}


def test_track_is_lazy() -> None:
    taken: list[int] = []
    rows = (taken.append(number) or number for number in range(9))
    tracked = peasy.track(None, rows)
    assert taken == []
    assert [next(tracked), next(tracked)] == [0, 1]
    assert taken == [0, 1]


# The row


@needs_database
def test_a_job_that_is_cancelled_before_it_is_claimed_never_runs() -> None:
    pk, other = export("orders").pk, export("orders").pk
    assert PeasyJobQueue.objects.filter(pk=pk).update(status=PeasyJobQueue.CANCELLED) == 1
    now = as_field(database_now(connection))
    assert [
        claim.pk
        for claim in PeasyJobQueue.objects.claim(ClaimRequest(runner_id=1, limit=10, now=now))
    ] == [other]
    assert PeasyJobQueue.objects.get(pk=pk).status == PeasyJobQueue.CANCELLED


@needs_database
def test_saving_an_outdated_copy_of_a_row_writes_only_the_fields_of_the_user() -> None:
    old = export("orders")
    PeasyJobQueue.objects.filter(pk=old.pk).update(
        status=PeasyJobQueue.CANCELLED,
        claims=4,
        attempts=2,
        runner=9,
        priority=7,
        result_data=b"J1",
    )
    user = User.objects.create(username="anna")
    old.title, old.status_msg, old.extra, old.user = (
        "new title",
        "new message",
        {"progress": 5},
        user,
    )
    old.save()
    row = PeasyJobQueue.objects.get(pk=old.pk)
    assert row.status == PeasyJobQueue.CANCELLED
    assert row.claims == 4
    assert row.attempts == 2
    assert row.runner_id == 9
    assert row.priority == 7
    assert row.result == 1
    assert row.title == "new title"
    assert row.status_msg == "new message"
    assert row.extra == {"progress": 5}
    assert row.user == user


@needs_database
def test_saving_with_update_fields_writes_only_these_fields() -> None:
    old = export("orders")
    old.priority, old.title = 9, "not this"
    old.save(update_fields=["priority"])
    row = PeasyJobQueue.objects.get(pk=old.pk)
    assert row.priority == 9
    assert row.title == "export data to s3"


@needs_database
def test_a_copy_of_a_row_can_be_saved_as_a_new_row() -> None:
    job = export("orders")
    job.pk, job._state.adding, job.priority = None, True, 9
    job.save()
    assert sorted(PeasyJobQueue.objects.values_list("priority", flat=True)) == [0, 9]


def test_every_status_has_its_own_letter_and_word() -> None:
    names = ("ENQUEUED", "SCHEDULED", "ONGOING", "COMPLETED", "FAILED", "CANCELLED")
    letters = [getattr(PeasyJobQueue, name) for name in names]
    assert "".join(letters) == "QSOCFX"
    assert dict(PeasyJobQueue.STATUS_CHOICES) == dict(
        zip(letters, map(str.capitalize, names), strict=True)
    )


def test_error_and_traceback_are_those_of_the_last_failed_attempt() -> None:
    errors = [{"message": f"error {n}", "traceback": f"traceback {n}"} for n in (1, 2)]
    job = PeasyJobQueue(errors=errors)
    assert job.error == "error 2"
    assert job.traceback == "traceback 2"
    assert PeasyJobQueue().error == ""
    assert PeasyJobQueue().traceback == ""
    assert str(PeasyJobQueue(title="export", pk=5)) == "export (job 5)"


# The decorator


def test_a_job_function_has_the_name_docstring_and_signature_of_the_function() -> None:
    assert export.__name__ == "export"
    assert export.__qualname__ == "export"
    assert export.__module__ == __name__
    assert export.__doc__ == "Write the year's orders to a bucket."
    assert inspect.signature(export) == inspect.signature(export.function)
    assert export.__wrapped__ is export.function


def test_an_attribute_of_the_function_does_not_replace_one_of_the_job_function() -> None:
    def decorated() -> None:
        pass

    decorated.__qualname__ = "decorated"
    decorated.title, decorated.options, decorated.of_the_function = "another", 5, "kept"
    job = peasy.job("title")(decorated)
    assert job.title == "title"
    assert job.options.priority == 0
    assert job.of_the_function == "kept"


@needs_database
def test_an_async_function_can_be_a_job() -> None:
    jobs.asynchronous(41)
    assert run_next().result == 42


def test_call_of_an_async_job_returns_a_coroutine() -> None:
    coroutine = jobs.asynchronous.call(41)
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    assert returned.value.value == 42


@pytest.fixture
def load_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Return a function that writes a module "shop", which imports `peasy`, and loads it."""
    monkeypatch.syspath_prepend(tmp_path)
    # Two versions within a second have the same time stamp, so that the first would be cached.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load_module(source: str) -> Any:
        (tmp_path / "shop.py").write_text(f"from peasy_jobs.peasy_jobs import peasy\n{source}")
        importlib.invalidate_caches()
        module = sys.modules.get("shop")
        return importlib.reload(module) if module else importlib.import_module("shop")

    yield load_module
    sys.modules.pop("shop", None)


EXPORT = '@peasy.job("export data")\ndef export():\n    return {}\n'
IMPORT_BY_NAME = "the runner has to import it by name."

MISTAKES: dict[str, tuple[str, type[Exception], str]] = {
    "no title": (
        "@peasy.job\ndef export(): pass",
        TypeError,
        '@peasy.job needs a title: write @peasy.job("export data"), not @peasy.job.',
    ),
    "an empty title": (
        "@peasy.job('')\ndef export(): pass",
        TypeError,
        "@peasy.job needs a title of 1 to 255 characters, not ''.",
    ),
    "a title that is not text": (
        "@peasy.job(5)\ndef export(): pass",
        TypeError,
        "@peasy.job needs a title of 1 to 255 characters, not 5.",
    ),
    "a long title": (
        "@peasy.job('x' * 256)\ndef export(): pass",
        TypeError,
        f"@peasy.job needs a title of 1 to 255 characters, not '{'x' * 256}'.",
    ),
    "a nested function": (
        "def view():\n  @peasy.job('export data')\n  def export(): pass\nview()",
        ValueError,
        f"@peasy.job cannot decorate 'view.<locals>.export': {IMPORT_BY_NAME} "
        "Define it at the top level of a module.",
    ),
    "a lambda": (
        "export = peasy.job('export data')(lambda: 1)",
        ValueError,
        f"@peasy.job cannot decorate '<lambda>': {IMPORT_BY_NAME} "
        "Define it at the top level of a module.",
    ),
    "a method": (
        "class Shop:\n  @peasy.job('export data')\n  def export(self): pass",
        ValueError,
        f"@peasy.job cannot decorate 'Shop.export': {IMPORT_BY_NAME} "
        "Define it at the top level of a module.",
    ),
    "a class": (
        "@peasy.job('export data')\nclass Export: pass",
        TypeError,
        "@peasy.job cannot decorate <class 'shop.Export'>: it is not a function.",
    ),
    "a built-in function": (
        "peasy.job('export data')(len)",
        TypeError,
        "@peasy.job cannot decorate <built-in function len>: it is not a function.",
    ),
    "a long name": (
        f"@peasy.job('export data')\ndef e{'x' * 250}(): pass",
        ValueError,
        f"@peasy.job cannot decorate shop.e{'x' * 250}: its dotted name has 256 characters. "
        "Shorten it to 255 or fewer.",
    ),
    "two of the same name": (
        EXPORT.format(1) + EXPORT.format(2),
        ValueError,
        "Two jobs are named shop.export, so the runner could run the wrong one. Rename one.",
    ),
    "two of the same name behind another decorator": (
        "from functools import wraps\n"
        "def logged(function):\n"
        "  @wraps(function)\n"
        "  def wrapper(): return function()\n"
        "  return wrapper\n"
        "@peasy.job('one')\n@logged\ndef export(): return 1\n"
        "@peasy.job('two')\n@logged\ndef export(): return 2\n",
        ValueError,
        "Two jobs are named shop.export, so the runner could run the wrong one. Rename one.",
    ),
}


@pytest.mark.parametrize(("source", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_function_that_cannot_be_a_job_is_refused(
    load_shop: Any, source: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        load_shop(source)
    assert str(refused.value) == message


def test_a_job_function_cannot_be_decorated_again() -> None:
    with pytest.raises(TypeError, match="^@peasy.job cannot decorate .*: it is not a function.$"):
        peasy.job("twice")(export)


def test_a_job_in_a_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from peasy_jobs.peasy_jobs import peasy\n{EXPORT.format(1)}")
    with pytest.raises(ValueError) as refused:
        runpy.run_path(str(script), run_name="__main__")
    assert (
        str(refused.value)
        == f"@peasy.job cannot decorate 'export' in a script: {IMPORT_BY_NAME} Move it to a module."
    )


def test_a_module_may_be_loaded_again(load_shop: Any) -> None:
    assert load_shop(EXPORT.format(1)).export.call() == 1
    assert load_shop(EXPORT.format(2)).export.call() == 2


def test_a_module_may_be_loaded_again_after_its_lines_have_moved(load_shop: Any) -> None:
    assert load_shop(EXPORT.format(1)).export.call() == 1
    assert load_shop("\n\n" + EXPORT.format(2)).export.call() == 2


def test_a_module_may_import_jobs_of_another_module(load_shop: Any) -> None:
    assert load_shop("from tests.jobs import nothing\n" + EXPORT.format(1)).export.call() == 1


@needs_database
def test_a_job_behind_another_decorator_runs(load_shop: Any) -> None:
    source = MISTAKES["two of the same name behind another decorator"][0]
    load_shop(source.partition("@peasy.job('two')")[0]).export()
    assert run_next().result == 1
