"""The documented API: what a site imports, decorates, calls and reads, with exactly the code of the documentation."""

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
    """Claim the next job, run it here, and write what came of it: what a runner does."""
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


def elsewhere(ask: Callable[[], Any]) -> Any:
    """What another connection sees."""
    answers: list[Any] = []

    def look() -> None:
        try:
            answers.append(ask())
        finally:
            connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return answers[0]


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
    assert (job.user, job.status_msg, job.extra, job.result) == (None, "", None, None)
    assert (job.started, job.completed, job.attempts) == (None, None, 0)
    assert (job.error, job.traceback) == ("", "")
    assert (job.priority, job.queue_name, job.run_after) == (0, "default", None)
    assert abs(job.created - as_field(database_now(connection))) < timedelta(minutes=5)
    assert timezone.is_aware(job.created) == conf.uses_time_zones()


@needs_database
def test_a_call_without_arguments_has_none() -> None:
    job = PeasyJobQueue.objects.get(pk=jobs.nothing().pk)
    assert (job.args, job.kwargs) == ((), {})


@needs_database
def test_the_job_runs_with_its_arguments_and_keeps_its_result() -> None:
    export("orders", year=2025)
    job = run_next()
    assert job.status == PeasyJobQueue.COMPLETED
    assert job.result == "orders/2025"
    assert job.attempts == 1
    assert job.started and job.completed


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
def test_a_job_is_not_there_when_the_transaction_of_the_caller_is_rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        job = export("orders")
        assert PeasyJobQueue.objects.filter(pk=job.pk).exists()
        1 / 0  # noqa: B018
    assert not PeasyJobQueue.objects.exists()


@commits
def test_a_job_is_there_for_others_once_the_transaction_of_the_caller_is_committed() -> None:
    with transaction.atomic():
        user = User.objects.create(username="with it")
        job = export("orders")
        assert not elsewhere(PeasyJobQueue.objects.exists)
    assert elsewhere(lambda: PeasyJobQueue.objects.get().pk) == job.pk
    assert elsewhere(lambda: User.objects.get().pk) == user.pk


@commits
def test_a_job_can_be_enqueued_where_the_caller_manages_transactions_by_hand() -> None:
    transaction.set_autocommit(False)
    try:
        job = export("orders")
        assert not elsewhere(PeasyJobQueue.objects.exists)
        transaction.commit()
        assert elsewhere(lambda: PeasyJobQueue.objects.get().pk) == job.pk
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
    jobs_made = [queries(jobs.nothing) for _ in range(3)]
    assert [made[0].partition(" ")[0] for made in jobs_made] == ["INSERT"] * 3
    # The wake-up of idle runners comes after the commit, and not for every job.
    announced = (
        [["NOTIFY peasy_jobs"], [], []] if connection.vendor == "postgresql" else [[], [], []]
    )
    assert [made[1:] for made in jobs_made] == announced


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
    assert {
        (job.status, job.title, job.job_name, job.queue_name, job.priority) for job in stored
    } == {("Q", "give back", "tests.jobs.give_back", "mail", 3)}
    assert [job.status for job in made] == ["Q"] * 8


@needs_database
def test_map_can_have_its_jobs_wait() -> None:
    made = export.using(run_after=timedelta(hours=1)).map(["a", "b"])
    assert {job.status for job in PeasyJobQueue.objects.all()} == {PeasyJobQueue.SCHEDULED}
    assert len({job.run_after for job in made}) == 1


@needs_database
@pytest.mark.parametrize(
    "wrong",
    [("too", "many", "of", "them"), {"nobody": 1}, {1: 2}, threading.Lock()],
    ids=["many", "name", "key", "lock"],
)
def test_map_enqueues_nothing_when_one_item_is_wrong(wrong: Any) -> None:
    with pytest.raises((TypeError, payloads.PayloadError), match="Cannot enqueue"):
        export.map(["orders", wrong])
    assert not PeasyJobQueue.objects.exists()
    assert export.map([]) == []


@needs_database
def test_map_inserts_a_thousand_rows_at_a_time_and_fewer_large_ones() -> None:
    many = queries(lambda: jobs.nothing.map([()] * 2001))
    large = queries(lambda: jobs.echo.map(["x" * 200_000] * 4))
    assert len(PeasyJobQueue.objects.values_list("pk")) == 2005
    if connection.vendor != "sqlite":  # where Django itself makes the statements smaller
        assert [sum(query.startswith("INSERT") for query in made) for made in (many, large)] == [
            3,
            4,
        ]


@needs_database
def test_map_knows_the_keys_where_a_server_tells_only_the_last_one(
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


# Here and now


def test_call_runs_the_function_here_and_now_without_the_queue() -> None:
    # The database is out of bounds for this test.
    assert export.call("orders", year=2025) == "orders/2025"
    assert jobs.own_pk.call() is None
    assert jobs.own_pk.call(job_pk=5) == 5
    with pytest.raises(ValueError, match="^boom$"):
        jobs.boom.call()


def test_an_argument_that_cannot_be_stored_can_be_passed_here_and_now() -> None:
    value = threading.Lock()
    assert jobs.echo.call(value) is value


# Options


@needs_database
def test_options_of_the_job_hold_for_its_calls() -> None:
    job = mail("somebody")
    assert (job.priority, job.queue_name) == (5, "mail")


@needs_database
def test_options_of_a_call_go_before_those_of_the_job() -> None:
    job = mail.using(priority=-7, queue_name="slow")("somebody")
    job.refresh_from_db()
    assert (job.priority, job.queue_name) == (-7, "slow")
    job = mail.using(priority=0)("somebody")
    assert (job.priority, job.queue_name) == (0, "mail"), "what is not given stays, and 0 is given"


@needs_database
def test_all_options_of_a_call_have_the_names_that_django_tasks_gives_them(rf: Any) -> None:
    request, fn, args = rf.get("/"), export, ("orders",)
    request.user = User.objects.create(username="anna")
    job = fn.using(user=request.user, priority=5, queue_name="mail", run_after=timedelta(hours=1))(
        *args
    )
    job.refresh_from_db()
    assert (job.user, job.priority, job.queue_name) == (request.user, 5, "mail")
    assert (job.status, job.args) == (PeasyJobQueue.SCHEDULED, ("orders",))
    assert job.run_after > job.created


@needs_database
def test_using_changes_a_copy() -> None:
    urgent = mail.using(priority=100)
    elsewhere_too = urgent.using(queue_name="slow")
    made = [fn("somebody") for fn in (mail, urgent, elsewhere_too)]
    assert [(job.priority, job.queue_name) for job in made] == [
        (5, "mail"),
        (100, "mail"),
        (100, "slow"),
    ]
    assert {job.job_name for job in made} == {"tests.test_peasy_jobs.mail"}


def refused(error: type[Exception], message: str, give: Callable[..., Any], **options: Any) -> None:
    with pytest.raises(error) as caught:
        give(**options)
    assert str(caught.value) == message


def decorate(**options: Any) -> Job[..., Any]:
    return peasy.job("title", **options)(undecorated)


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_priorities_from_minus_100_to_100_are_taken(priority: int) -> None:
    assert mail.using(priority=priority).options.priority == priority
    assert decorate(priority=priority).options.priority == priority


@pytest.mark.parametrize("give", [mail.using, decorate], ids=["call", "decorator"])
@pytest.mark.parametrize("priority", [-101, 101, 1.0, "5", True, 10**9], ids=repr)
def test_another_priority_is_refused(give: Any, priority: Any) -> None:
    message = f"priority is {priority!r}. Give a whole number from -100 to 100."
    refused(ValueError, message, give, priority=priority)


@pytest.mark.parametrize("give", [mail.using, decorate], ids=["call", "decorator"])
@pytest.mark.parametrize("name", ["", "x" * 65, 5, b"mail", "ma\0il", ["mail"]], ids=repr)
def test_a_queue_name_that_cannot_be_stored_is_refused(give: Any, name: Any) -> None:
    message = f"queue_name is {name!r}. Give a name of 1 to 64 characters."
    refused(ValueError, message, give, queue_name=name)


@needs_database
def test_the_longest_queue_name_is_stored_whole() -> None:
    job = mail.using(queue_name="é" * 64)("somebody")
    job.refresh_from_db()
    assert job.queue_name == "é" * 64


@needs_database
@pytest.mark.parametrize("zone", [UTC, timezone.get_fixed_timezone(330)], ids=str)
@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
def test_run_after_makes_a_job_wait_as_scheduled(settings: Any, zone: Any, aware: bool) -> None:
    settings.USE_TZ = aware
    due = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    job = export.using(run_after=due.astimezone(zone))("orders")
    job.refresh_from_db()
    assert job.status == PeasyJobQueue.SCHEDULED
    assert timezone.is_aware(job.run_after) == aware
    assert (job.run_after if aware else timezone.make_aware(job.run_after)) == due


@needs_database
@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
def test_run_after_may_be_a_time_from_now_by_the_clock_of_the_database(
    settings: Any, aware: bool
) -> None:
    settings.USE_TZ = aware
    before = database_now(connection)
    job = export.using(run_after=timedelta(hours=2))("orders")
    after = database_now(connection)
    job.refresh_from_db()
    assert job.status == PeasyJobQueue.SCHEDULED
    due = job.run_after if aware else timezone.make_aware(job.run_after)
    assert before <= due - timedelta(hours=2) <= after


@needs_database
def test_a_naive_run_after_is_the_time_of_the_site_without_use_tz(settings: Any) -> None:
    settings.USE_TZ = False
    job = export.using(run_after=datetime(2100, 1, 2, 3))("orders")
    job.refresh_from_db()
    assert job.run_after == datetime(2100, 1, 2, 3)


@pytest.mark.parametrize("aware", [True, False], ids=["USE_TZ", "no USE_TZ"])
@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
def test_a_run_after_that_is_no_date_in_utc_is_refused(
    settings: Any, edge: datetime, aware: bool
) -> None:
    settings.USE_TZ = aware
    beyond = edge.replace(tzinfo=timezone.get_fixed_timezone(840 if edge.year == 1 else -720))
    refused(
        ValueError,
        f"run_after is {beyond!r}, which is out of range. Give an earlier or later time.",
        export.using,
        run_after=beyond,
    )


def test_a_naive_run_after_is_refused_with_use_tz(settings: Any) -> None:
    settings.USE_TZ = True
    naive = datetime(2100, 1, 2, 3)
    message = f"run_after is {naive!r}, which has no time zone. Give an aware datetime, or a timedelta from now."
    refused(ValueError, message, export.using, run_after=naive)


@pytest.mark.parametrize("value", ["tomorrow", 60, datetime(2100, 1, 2).date()], ids=repr)
def test_another_run_after_is_refused(value: Any) -> None:
    message = f"run_after is {value!r}. Give a datetime, or a timedelta from now."
    refused(TypeError, message, export.using, run_after=value)


@needs_database
def test_a_job_remembers_the_user_who_asked_for_it() -> None:
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
def test_an_anonymous_user_counts_as_none(user: Any) -> None:
    job = export.using(user=user)("orders")
    job.refresh_from_db()
    assert job.user is None


@pytest.mark.parametrize(
    "user", ["anna", 5, PeasyJobQueue(pk=5)], ids=["name", "primary key", "another row"]
)
def test_what_is_no_user_is_refused(user: Any) -> None:
    refused(
        TypeError, f"user is {user!r}. Give a user, such as request.user.", export.using, user=user
    )


@needs_database
def test_a_job_survives_the_deletion_of_its_user() -> None:
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


@needs_database
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, (None, "own")),
        ((1,), {}, (1, "own")),
        ((1, -2), {}, (1, -2)),  # the pk of no row
        ((1,), {"job_pk": -3}, (1, -3)),
        ((1,), {"job_pk": None}, (1, None)),
        ((), {"value": 1}, (1, "own")),
    ],
    ids=repr,
)
def test_job_pk_is_injected_when_the_caller_gave_none(
    args: Any, kwargs: Any, expected: Any
) -> None:
    job = maybe_pk(*args, **kwargs)
    assert "job_pk" not in job.kwargs or "job_pk" in kwargs, "it is injected when the job runs"
    value, pk = run_next().result
    assert (value, "own" if pk == job.pk else pk) == expected


@needs_database
def test_a_required_job_pk_need_not_be_given() -> None:
    job = jobs.own_pk()
    assert run_next().result == job.pk


@needs_database
def test_job_pk_is_not_injected_into_a_function_that_does_not_ask_for_it() -> None:
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


def test_a_call_without_arguments_of_a_function_without_parameters_that_gets_one_is_refused() -> (
    None
):
    with pytest.raises(
        TypeError, match='^Cannot enqueue "do nothing": too many positional arguments.$'
    ):
        jobs.nothing(1)


# Status


@needs_database
def test_update_status_shows_a_message_and_extra() -> None:
    job = export("orders")
    job_pk = job.pk
    peasy.update_status(job_pk, status_msg="…", extra={"progress": 50})
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("…", {"progress": 50})
    peasy.update_status(job_pk, status_msg="more")
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("more", {"progress": 50})
    peasy.update_status(job_pk, extra={"rows": 7})
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("more", {"rows": 7}), (
        "extra replaces the stored dictionary"
    )
    peasy.update_status(job_pk, status_msg="", extra={})
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("", {}), "empty is not left out"
    assert queries(lambda: peasy.update_status(job_pk)) == []


@needs_database
def test_update_status_is_for_one_job() -> None:
    job, other = export("orders"), export("orders")
    peasy.update_status(job.pk, "mine")
    other.refresh_from_db()
    assert other.status_msg == ""
    assert other.status == PeasyJobQueue.ENQUEUED


@needs_database
def test_messages_are_cut_and_cleaned() -> None:
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
    # The database is out of bounds for this test: nothing is written.
    with pytest.raises(
        error,
        match=r"^extra (is|cannot be stored as JSON: ).*\. Give a dictionary of JSON values\.$",
    ):
        peasy.update_status(5, "message", extra)


def test_update_status_and_track_do_nothing_without_a_job() -> None:
    # The database is out of bounds for this test.
    peasy.update_status(None, status_msg="…", extra={"progress": 50})
    assert list(peasy.track(None, [1, 2, 3], "Importing rows")) == [1, 2, 3]
    assert jobs.track_rows.call(4) == 6


@needs_database
def test_update_status_of_a_job_that_does_not_exist_does_nothing() -> None:
    peasy.update_status(123456, "message", {"progress": 1})
    assert list(peasy.track(123456, [1, 2], "Importing rows")) == [1, 2]
    assert not PeasyJobQueue.objects.exists()


def reports(job: Job[..., Any], *args: Any) -> list[tuple[str | None, str | None]]:
    sent: list[Report] = []
    name = job.job_name
    data = payloads.dumps(
        list(args), job_name=name, column=payloads.ARGS, max_bytes=1000, serializer="json"
    )
    outcome = execution.run(Run(-1, 1, name, data, None, 1), sent.append)  # the pk of no row
    assert outcome.error is None, outcome.error
    return [(report.status_msg, report.extra) for report in sent]


def test_a_running_job_and_its_threads_tell_their_runner() -> None:
    # The database is out of bounds for this test.
    assert reports(jobs.progress_from_thread) == [("from a thread", '{"progress": 30}')]


@commits
def test_a_process_that_the_job_forked_writes_its_progress_itself() -> None:
    job = jobs.progress_from_fork()
    name = jobs.progress_from_fork.job_name
    sent: list[Any] = []
    assert execution.run(Run(job.pk, 1, name, None, None, 1), sent.append).error is None
    assert sent == []
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("from a fork", {"progress": 40})


@needs_database
def test_a_job_can_show_the_progress_of_another() -> None:
    other = export("orders")
    assert reports(jobs.progress_of, other.pk) == []
    other.refresh_from_db()
    assert (other.status_msg, other.extra) == ("from afar", {"progress": 60})


# Track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time that passes only when a test says so."""
    now = [0.0]
    monkeypatch.setattr("peasy_jobs.peasy_jobs.monotonic", lambda: now[0])
    yield now


@needs_database
def test_track_goes_through_all_and_shows_how_far_it_is(clock: list[float]) -> None:
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
    assert (job.status_msg, job.extra) == ("Importing rows: 4 of 4", {"progress": 100})


@needs_database
def test_track_merges_into_extra() -> None:
    job = export("orders")
    peasy.update_status(job.pk, extra={"file": "a.csv", "progress": 1})
    list(peasy.track(job.pk, range(3)))
    job.refresh_from_db()
    assert job.extra == {"file": "a.csv", "progress": 100}
    assert job.status_msg == "3 of 3"


@needs_database
def test_track_merges_into_what_the_running_job_has_told_its_runner() -> None:
    assert reports(set_extra_then_track)[-1] == ("3 of 3", '{"file": "b.csv", "progress": 100}')


@peasy.job("set extra, then track")
def set_extra_then_track(job_pk: int) -> None:
    peasy.update_status(job_pk, extra={"file": "b.csv"})  # not written yet
    list(peasy.track(job_pk, range(3)))


@needs_database
def test_track_writes_a_few_times_a_second_however_many_rows_there_are(clock: list[float]) -> None:
    job = export("orders")

    def go() -> None:
        for _ in peasy.track(job.pk, range(1024)):
            clock[0] += 1 / 1024

    updates = [sql for sql in queries(go) if sql.startswith("UPDATE")]
    assert 8 <= len(updates) <= 12, "ten in this second"
    clock[0] += 1
    assert (
        len(
            [
                sql
                for sql in queries(lambda: list(peasy.track(job.pk, range(10_000))))
                if "UPDATE" in sql
            ]
        )
        == 2
    )


@needs_database
def test_track_shows_the_count_alone_where_nobody_knows_how_many_there_are() -> None:
    job = export("orders")
    peasy.update_status(job.pk, extra={"file": "a.csv"})
    assert list(peasy.track(job.pk, (n for n in range(1234)), "Importing rows")) == list(
        range(1234)
    )
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("Importing rows: 1,234", {"file": "a.csv"})


@needs_database
def test_track_can_be_told_how_many_there_are(clock: list[float]) -> None:
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
def test_track_of_nothing_is_done_at_once(rows: Any) -> None:
    job = export("orders")
    assert list(peasy.track(job.pk, rows, "Importing rows")) == []
    job.refresh_from_db()
    assert (job.status_msg, job.extra) == ("Importing rows: 0 of 0", {"progress": 100})


@needs_database
@pytest.mark.parametrize("leave", ["break", "raise", "iterable raises"])
def test_track_that_is_left_half_way_does_not_claim_to_be_done(
    clock: list[float], leave: str
) -> None:
    def rows() -> Iterator[int]:
        yield from range(2)
        if leave == "iterable raises":
            raise ZeroDivisionError
        yield from range(2)

    def go() -> None:
        for number, _ in enumerate(peasy.track(job.pk, rows(), "Importing rows", total=4)):
            clock[0] += 1
            if number == 2 and leave == "break":
                break
            if number == 2 and leave == "raise":
                raise ZeroDivisionError

    job = export("orders")
    if leave == "break":
        go()
    else:
        with pytest.raises(ZeroDivisionError):
            go()
    job.refresh_from_db()
    expected = (
        ("Importing rows: 2 of 4", 50)
        if leave != "iterable raises"
        else ("Importing rows: 1 of 4", 25)
    )
    assert (job.status_msg, job.extra["progress"]) == expected


def test_track_asks_for_the_next_row_only_when_it_is_wanted() -> None:
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
def test_saving_an_old_copy_of_a_row_does_not_undo_what_happened_since() -> None:
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
    assert (row.status, row.claims, row.attempts, row.runner_id) == (
        PeasyJobQueue.CANCELLED,
        4,
        2,
        9,
    )
    assert (row.priority, row.result) == (7, 1)
    assert (row.title, row.status_msg, row.extra, row.user) == (
        "new title",
        "new message",
        {"progress": 5},
        user,
    )


@needs_database
def test_saving_with_update_fields_writes_what_they_say() -> None:
    old = export("orders")
    old.priority, old.title = 9, "not this"
    old.save(update_fields=["priority"])
    row = PeasyJobQueue.objects.get(pk=old.pk)
    assert (row.priority, row.title) == (9, "export data to s3")


@needs_database
def test_a_row_can_be_saved_as_a_new_one() -> None:
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
    assert (job.error, job.traceback) == ("error 2", "traceback 2")
    assert (PeasyJobQueue().error, PeasyJobQueue().traceback) == ("", "")
    assert str(PeasyJobQueue(title="export", pk=5)) == "export (job 5)"


# The decorator


def test_a_job_function_still_looks_like_the_function() -> None:
    assert export.__name__ == "export"
    assert export.__qualname__ == "export"
    assert export.__module__ == __name__
    assert export.__doc__ == "Write the year's orders to a bucket."
    assert inspect.signature(export) == inspect.signature(export.function)
    assert export.__wrapped__ is export.function


def test_an_attribute_of_the_function_does_not_get_in_the_way_of_the_job() -> None:
    def decorated() -> None:
        pass

    decorated.__qualname__ = "decorated"
    decorated.title, decorated.options, decorated.mine = "another", 5, "kept"
    job = peasy.job("title")(decorated)
    assert (job.title, job.options.priority, job.mine) == ("title", 0, "kept")


@needs_database
def test_an_async_function_can_be_a_job() -> None:
    jobs.asynchronous(41)
    assert run_next().result == 42


def test_an_async_job_is_awaited_by_who_calls_it_here_and_now() -> None:
    coroutine = jobs.asynchronous.call(41)
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    assert returned.value.value == 42


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Writes a module "shop" that starts by importing `peasy`, and imports it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # two versions within a second have the same time stamp

    def load_module(source: str) -> Any:
        (tmp_path / "shop.py").write_text(f"from peasy_jobs.peasy_jobs import peasy\n{source}")
        importlib.invalidate_caches()
        module = sys.modules.get("shop")
        return importlib.reload(module) if module else importlib.import_module("shop")

    yield load_module
    sys.modules.pop("shop", None)


EXPORT = '@peasy.job("export data")\ndef export():\n    return {}\n'
MANUAL = "the runner has to import it by name."

MISTAKES: dict[str, tuple[str, type[Exception], str]] = {
    "without a title": (
        "@peasy.job\ndef export(): pass",
        TypeError,
        '@peasy.job needs a title: write @peasy.job("export data"), not @peasy.job.',
    ),
    "an empty title": (
        "@peasy.job('')\ndef export(): pass",
        TypeError,
        "@peasy.job needs a title of 1 to 255 characters, not ''.",
    ),
    "a title that is no text": (
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
        f"@peasy.job cannot decorate 'view.<locals>.export': {MANUAL} Define it at the top level of a module.",
    ),
    "a lambda": (
        "export = peasy.job('export data')(lambda: 1)",
        ValueError,
        f"@peasy.job cannot decorate '<lambda>': {MANUAL} Define it at the top level of a module.",
    ),
    "a method": (
        "class Shop:\n  @peasy.job('export data')\n  def export(self): pass",
        ValueError,
        f"@peasy.job cannot decorate 'Shop.export': {MANUAL} Define it at the top level of a module.",
    ),
    "a class": (
        "@peasy.job('export data')\nclass Export: pass",
        TypeError,
        "@peasy.job cannot decorate <class 'shop.Export'>: it is not a function.",
    ),
    "a function of C": (
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
    "two of one name": (
        EXPORT.format(1) + EXPORT.format(2),
        ValueError,
        "Two jobs are named shop.export, so the runner could run the wrong one. Rename one.",
    ),
    "two of one name behind another decorator": (
        "from functools import wraps\n"
        "def logged(function):\n  @wraps(function)\n  def wrapper(): return function()\n  return wrapper\n"
        "@peasy.job('one')\n@logged\ndef export(): return 1\n"
        "@peasy.job('two')\n@logged\ndef export(): return 2\n",
        ValueError,
        "Two jobs are named shop.export, so the runner could run the wrong one. Rename one.",
    ),
}


@pytest.mark.parametrize(("source", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_function_that_cannot_be_a_job_is_refused(
    load: Any, source: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        load(source)
    assert str(refused.value) == message


def test_a_job_is_refused_as_a_job() -> None:
    with pytest.raises(TypeError, match="^@peasy.job cannot decorate .*: it is not a function.$"):
        peasy.job("twice")(export)


def test_a_job_in_a_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from peasy_jobs.peasy_jobs import peasy\n{EXPORT.format(1)}")
    with pytest.raises(ValueError) as refused:
        runpy.run_path(str(script), run_name="__main__")
    assert (
        str(refused.value)
        == f"@peasy.job cannot decorate 'export' in a script: {MANUAL} Move it to a module."
    )


def test_a_module_may_be_loaded_again(load: Any) -> None:
    assert load(EXPORT.format(1)).export.call() == 1
    assert load(EXPORT.format(2)).export.call() == 2


def test_a_module_may_be_loaded_again_after_its_lines_have_moved(load: Any) -> None:
    assert load(EXPORT.format(1)).export.call() == 1
    assert load("\n\n" + EXPORT.format(2)).export.call() == 2


def test_a_decorated_module_may_import_a_job_of_another(load: Any) -> None:
    assert load("from tests.jobs import nothing\n" + EXPORT.format(1)).export.call() == 1


@needs_database
def test_a_job_behind_another_decorator_runs(load: Any) -> None:
    source = MISTAKES["two of one name behind another decorator"][0]
    load(source.partition("@peasy.job('two')")[0]).export()
    assert run_next().result == 1
