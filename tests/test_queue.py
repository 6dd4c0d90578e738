"""The verbs of the queryset: what they change, and by which index each database reads."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import CaptureQueriesContext, override_settings

from peasy_jobs import conf
from peasy_jobs.conf import Conf
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.runner.lease import Lease
from peasy_jobs.runner.maintenance import Maintenance
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, FINISHED, ONGOING, SCHEDULED
from peasy_jobs.store import claiming, querysets, vendors
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock, as_field, database_now
from peasy_jobs.store.values import Claim, Dropped, JobUpdate
from peasy_jobs.web import listing
from peasy_jobs.web.filters import Filters
from tests.concurrent_processes import TABLE, locked, second_connection

pytestmark = pytest.mark.django_db

jobs = PeasyJobQueue.objects
runners = PeasyRunner.objects
ME, ANOTHER, DEAD = 1, 2, 3
START = datetime(2026, 6, 1, 12, tzinfo=UTC)
SQLITE, POSTGRES, MARIADB = (
    settings.TEST_DATABASE == name for name in ("sqlite", "postgres", "mariadb")
)
servers_only = pytest.mark.skipif(SQLITE, reason="SQLite locks the whole file")


def at(seconds: float = 0) -> datetime:
    return as_field(START + timedelta(seconds=seconds))


def insert(count: int = 1, **columns: Any) -> list[int]:
    """Insert rows and return their primary keys, oldest first."""
    defaults = {"title": "a job", "job_name": "tests.jobs.nothing"}
    return [jobs.create(**{**defaults, **columns}).pk for _ in range(count)]


def claim(
    limit: int = 1, queues: tuple[str, ...] = (), runner: int = ME, ahead: int = 0
) -> list[Claim]:
    return jobs.claim(
        ClaimRequest(runner_id=runner, limit=limit, queues=queues, now=at(), ahead=ahead)
    )


def claimed(count: int = 1, runner: int = ME, **columns: Any) -> list[Claim]:
    """Insert jobs and claim them for `runner`."""
    pks = insert(count, **columns)
    claims = claim(count, runner=runner)
    assert [claim.pk for claim in claims] == pks
    return claims


def pks(claims: list[Claim]) -> list[int]:
    return [claim.pk for claim in claims]


def row(pk: int) -> PeasyJobQueue:
    return jobs.get(pk=pk)


def column(name: str, of: list[int]) -> list[Any]:
    found = dict(jobs.filter(pk__in=of).values_list("pk", name))
    return [found[pk] for pk in of]


def everything() -> list[dict[str, Any]]:
    return list(jobs.order_by("pk").values())


# Claim


def test_the_highest_priority_is_claimed_first_and_of_one_priority_the_oldest():
    low, *normal = insert(priority=-100) + insert(3)
    high = insert(priority=100)

    assert pks(claim(4)) == [*high, *normal]
    assert pks(claim(4)) == [low]


@pytest.mark.parametrize("queues", [(), ("default",), ("default", "mail")])
def test_no_more_than_the_limit_is_claimed(queues):
    oldest = (
        insert(1, queue_name="default")
        + insert(1, queue_name="mail")
        + insert(4, queue_name="default")
    )

    claims = claim(3, queues)

    assert pks(claims) == [pk for pk in oldest if not queues or row(pk).queue_name in queues][:3]
    assert jobs.filter(status=ENQUEUED).count() == 3


@pytest.mark.parametrize("queues", [("mail",), ("mail", "post"), ("no such queue",)])
def test_only_jobs_of_the_named_queues_are_claimed(queues):
    insert(2, priority=50)
    named = {name: insert(2, queue_name=name) for name in ("mail", "post")}

    assert pks(claim(10, queues)) == [pk for name in queues for pk in named.get(name, [])]


def test_priority_and_age_count_across_queues():
    first, second, third = (insert(queue_name=name)[0] for name in ("mail", "post", "mail"))
    (urgent,) = insert(queue_name="post", priority=1)

    assert pks(claim(4, ("mail", "post"))) == [urgent, first, second, third]


@pytest.mark.parametrize("queues", [("mail", "mail"), ("mail", "Mail")])
def test_a_queue_that_is_named_twice_gives_each_job_once(queues):
    waiting = insert(4, queue_name="mail")

    assert pks(claim(3, queues)) == waiting[:3]
    assert column("claims", waiting) == [1, 1, 1, 0]


def test_a_claim_contains_everything_a_worker_needs():
    (pk,) = insert(
        title="export", job_name="app.jobs.export", args_data=b"J[1]", kwargs_data=b"J{}", crashes=1
    )

    (found,) = claim()

    assert found._replace(
        args=bytes(found.args), kwargs=bytes(found.kwargs), runnable_since=None
    ) == Claim(
        pk=pk,
        fencing_token=1,
        title="export",
        job_name="app.jobs.export",
        args=b"J[1]",
        kwargs=b"J{}",
        attempts=1,
        crashes=1,
        crash_retries=None,
        timeout=None,
    )


def test_a_claim_names_the_runner_and_counts_itself_and_the_attempt():
    (pk,) = insert(claims=3, attempts=1, run_after=at(-5))

    (found,) = claim()

    assert found.fencing_token == 4
    job = row(pk)
    assert job.status == ONGOING
    assert job.runner_id == ME
    assert job.claims == 4
    assert job.attempts == 2
    assert job.started == at()
    assert job.run_after == at(-5)
    assert job.completed is None


@pytest.mark.parametrize(
    ("limit", "ahead", "started"), [(5, 2, 3), (5, 0, 5), (5, 5, 0), (9, 3, 5)]
)
def test_jobs_claimed_ahead_are_not_marked_as_started(limit, ahead, started):
    low, *others = insert(priority=-1) + insert(4)

    claims = claim(limit, ahead=ahead)

    assert pks(claims) == [*others, low]
    assert column("started", pks(claims)) == [at()] * started + [None] * (5 - started)


@pytest.mark.parametrize("queues", [(), ("default",), ("other", "default")])
@pytest.mark.parametrize(
    ("at_once", "max_bytes", "taken"),
    [(0, 0, 1), (1, 0, 1), (2, 0, 2), (0, 4, 2), (4, 5, 4), (0, 9, 3), (0, 13, 5)],
)
def test_after_large_arguments_no_more_jobs_are_claimed_ahead(queues, at_once, max_bytes, taken):
    payloads = (
        {"args_data": b"J[1]"},
        {"kwargs_data": b"J{}"},
        {"args_data": b"J[]", "kwargs_data": b"J{}"},
        {},
        {},
    )
    pks = [insert(**columns)[0] for columns in payloads]
    claims = jobs.claim(
        ClaimRequest(
            runner_id=ME, limit=5, queues=queues, now=at(), ahead=5 - at_once, max_bytes=max_bytes
        )
    )
    assert [claim.pk for claim in claims] == pks[:taken]
    expected = [(columns.get("args_data"), columns.get("kwargs_data")) for columns in payloads]
    assert [(claim.args, claim.kwargs) for claim in claims] == expected[:taken]


def test_arguments_that_a_driver_returns_as_a_memoryview_are_claimed_as_bytes():
    arguments = {"args": memoryview(b"J[1]"), "kwargs": memoryview(b"J{}")}
    row = Claim(1, 1, "a job", "tests.jobs.nothing", 1, 0, None, None)

    (found,) = claiming.as_claims([row._replace(**arguments)])

    assert found.args == b"J[1]"
    assert found.kwargs == b"J{}"
    assert found.invalid_field() == ""


class Replica:
    """A router that reads from a database which must not be needed."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


def test_verbs_that_change_jobs_do_not_read_a_replica(settings):
    settings.DATABASE_ROUTERS = [Replica()]
    made = PeasyJobQueue.objects.enqueue_many(
        [(None, None)] * 2, title="a job", job_name="tests.jobs.nothing"
    )
    pks = [job.pk for job in made]
    assert PeasyJobQueue.objects.cancel(*pks) == PeasyJobQueue.objects.retry(*pks) == 2
    assert PeasyJobQueue.objects.remove(*pks) == 2


def test_a_job_claimed_ahead_is_marked_as_started_once_and_only_by_its_runner():
    mine, theirs = insert(2)
    (my_claim, their_claim) = claim(1, ahead=1) + claim(1, runner=ANOTHER, ahead=1)

    jobs.begin(ME, [my_claim, their_claim], at(7))
    jobs.begin(ME, [my_claim], at(9))

    assert column("started", [mine, theirs]) == [at(7), None]


@pytest.mark.parametrize("status", [SCHEDULED, ONGOING, *FINISHED])
def test_only_waiting_jobs_are_claimed(status):
    (pk,) = insert(status=status, runner_id=ANOTHER if status == ONGOING else None)

    assert claim() == []
    assert row(pk).status == status


@servers_only
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("queues", [(), ("default", "mail")])
def test_a_claim_skips_jobs_locked_by_another_transaction(queues):
    held, *others = insert(3)

    with locked(held):
        assert pks(claim(2, queues)) == others
    assert pks(claim(2, queues)) == [held]


def test_jobs_that_a_runner_does_not_know_it_holds_are_given_back():
    known, forgotten, again = claimed(3)
    (foreign,) = claimed(runner=ANOTHER)

    assert jobs.give_back_unknown(ME, [known, again._replace(fencing_token=0)]) == 2

    assert column("status", [known.pk, forgotten.pk, again.pk, foreign.pk]) == [
        ONGOING,
        ENQUEUED,
        ENQUEUED,
        ONGOING,
    ]
    job = row(forgotten.pk)
    assert job.runner_id is None
    assert job.started is None
    assert job.attempts == 0
    assert job.claims == 1


# By which index each database reads


def statements(action: Callable[[], Any]) -> list[tuple[str, Any]]:
    """Return the statements that `action` sends about jobs, with their bound parameters."""
    seen: list[tuple[str, Any]] = []

    def remember(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if TABLE in sql:
            seen.append((sql, params))
        return execute(sql, params, many, context)

    with transaction.atomic():
        # Statements of the driver's own cursor cannot be observed.
        asked = mock.patch.object(claiming, "bare_cursor", lambda connection: connection.cursor())
        with connection.execute_wrapper(remember), asked:
            action()
        transaction.set_rollback(True)
    return seen


def accesses(action: Callable[[], Any]) -> list[tuple[str | None, bool]]:
    """Return for each read of the job table its index, and whether the rows found are sorted."""
    found = []
    for sql, params in statements(action):
        with transaction.atomic(), connection.cursor() as cursor:
            if SQLITE:
                cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
                found += list(of_sqlite(cursor.fetchall()))
            elif POSTGRES:
                cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
                found += list(of_postgres(cursor.fetchone()[0][0]["Plan"]))
            else:
                cursor.execute(f"EXPLAIN {sql}", params)
                found += [
                    (line[5], "filesort" in (line[9] or ""))
                    for line in cursor.fetchall()
                    if line[2] == TABLE
                ]
    keys = ("PRIMARY", "INTEGER PRIMARY KEY", f"{TABLE}_pkey")
    return [("primary key" if name in keys else name, is_sorted) for name, is_sorted in found]


def of_sqlite(lines: list[tuple[int, int, int, str]]) -> Iterator[tuple[str | None, bool]]:
    for _, parent, _, detail in lines:
        if re.match(rf"(SCAN|SEARCH) {TABLE}\b", detail):
            index = re.search(r"INDEX (\w+)|(INTEGER PRIMARY KEY)", detail)
            is_sorted = any(
                line[1] == parent and line[3].startswith("USE TEMP B-TREE") for line in lines
            )
            yield (
                detail.startswith("SEARCH") and index and (index[1] or index[2]) or None,
                is_sorted,
            )


def of_postgres(node: dict[str, Any], is_sorted: bool = False) -> Iterator[tuple[str | None, bool]]:
    kind = node["Node Type"]
    if "Scan" in kind and node.get("Relation Name") == TABLE and kind != "Bitmap Heap Scan":
        name = node.get("Index Name")
        # Every row, though it says Index Scan.
        is_whole = name in (f"{TABLE}_pkey", "peasy_listed") and "Index Cond" not in node
        yield None if is_whole else name, is_sorted
    elif kind == "Bitmap Index Scan":
        yield node["Index Name"], is_sorted
    is_sorted = kind != "Limit" and (is_sorted or "Sort" in kind)
    for child in node.get("Plans", ()):
        yield from of_postgres(child, is_sorted)


def fill(*block: dict[str, Any], times: int = 8) -> None:
    """Insert these rows, double them so many times, and update the statistics of the database."""
    jobs.bulk_create(
        [
            PeasyJobQueue(title="a job", job_name="tests.jobs.nothing", **columns)
            for columns in block
        ]
    )
    names = ", ".join(
        connection.ops.quote_name(f.column) for f in PeasyJobQueue._meta.fields if not f.primary_key
    )
    with connection.cursor() as cursor:
        for _ in range(times):
            cursor.execute(f"INSERT INTO {TABLE} ({names}) SELECT {names} FROM {TABLE}")
        insert(10, queue_name="rare", priority=-1)
        insert(10, status=ONGOING, runner_id=DEAD, started=at())
        insert(10, status=CANCELLED)
        cursor.execute(f"ANALYZE TABLE {TABLE}" if MARIADB else "ANALYZE")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("history", [0, 200], ids=["no history", "51,200 finished"])
def test_a_claim_reads_only_the_index_of_the_queues_it_serves(history):
    """12,800 jobs wait in one queue, as many of lower priority in another, and ten in a third."""
    fill(
        *({"queue_name": "bulk", "priority": 5}, {"queue_name": "mail"}) * 50,
        *({"status": COMPLETED, "completed": at(number)} for number in range(history)),
    )
    for limit in (1, 10, 100):
        assert accesses(lambda n=limit: claim(n))[0] == ("peasy_waiting", False)
        for queues in (("rare",), ("mail",), ("bulk",), ("rare", "mail"), ("mail", "bulk", "none")):
            found = accesses(lambda n=limit, some=queues: claim(n, some))
            assert found[: len(queues)] == [("peasy_waiting_in_queue", False)] * len(queues), (
                limit,
                queues,
            )
            assert set(found[len(queues) :]) == {("primary key", False)}, (limit, queues)


@pytest.mark.django_db(transaction=True)
def test_an_idle_runner_reads_every_table_by_index():
    fill(
        *({"status": status, "completed": at(number)} for status in "CCFX" for number in range(50)),
        *({"status": SCHEDULED, "run_after": at(3600)} for _ in range(10)),
    )
    verbs: dict[str, Callable[[], Any]] = {
        "peek": lambda: jobs.peek([]),
        "peek in queues": lambda: jobs.peek(["rare", "none"]),
        "promote": lambda: jobs.promote(at(7200)),
        "rescue": lambda: jobs.rescue(DEAD, "gone", 1),
        "prune": lambda: jobs.prune(COMPLETED, 10, at(100)),
        "stamp": lambda: jobs.normalise_external_changes(at()),
        "leave": lambda: jobs.filter(runner=DEAD).exists(),
        "cancelled of": lambda: jobs.cancelled_of(DEAD),
        "runners named": lambda: jobs.runners_named(),
    }
    found = {verb: [index for index, _ in accesses(action)] for verb, action in verbs.items()}
    assert not [verb for verb, indexes in found.items() if None in indexes or not indexes]


@pytest.mark.django_db(transaction=True)
def test_peek_uses_an_index_even_if_old_statistics_say_that_all_jobs_wait():
    fill({}, times=12)
    jobs.filter(status=ENQUEUED).update(status=COMPLETED, completed=at())
    for queues in ([], ["default", "none"]):
        found = [index for index, _ in accesses(lambda some=queues: jobs.peek(some))]
        assert found and None not in found, queues


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("analyzed", [True, False], ids=["none waited", "no statistics"])
@pytest.mark.parametrize("count", [300, 5000, 20_000])
def test_claim_and_finish_use_their_index_even_if_old_statistics_know_none_of_the_jobs(
    analyzed, count
):
    if analyzed:
        fill({"status": COMPLETED, "completed": at()})
    jobs.bulk_create(
        [PeasyJobQueue(title="a job", job_name="tests.jobs.nothing") for _ in range(count)]
    )
    with transaction.atomic():  # a rollback would restore the settings of the session
        vendors.configure_session(connection, 0.5)
        held = claim(count // 2)
        for some in (1, 10, 100):
            assert accesses(lambda limit=some: claim(limit)) == [
                ("peasy_waiting", False),
                ("primary key", False),
            ]
        if POSTGRES:  # elsewhere the statement itself names the primary keys
            for some in (1, 10, 100, 1000):
                updates = [update_of(each, completed=at()) for each in held[:some]]
                assert accesses(lambda rows=updates: jobs.finish(ME, rows, at())) == [
                    ("primary key", False)
                ], some


@pytest.mark.django_db(transaction=True)
def test_the_pages_read_the_index_of_a_status_in_order_whatever_the_statistics_say():
    """Four of five jobs are completed, the others wait.

    SQLite's statistics may predate the index.
    """
    fill(*({"status": COMPLETED, "completed": at()},) * 200, *({},) * 50, times=7)
    forgotten = (
        {"all": "0", "older": "idx = 'peasy_listed'", "none": "1"} if SQLITE else {"all": "0"}
    )
    for statistics, which in forgotten.items():
        if SQLITE:
            with connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM sqlite_stat1 WHERE {which}")
                cursor.execute("ANALYZE sqlite_schema")  # reads them again
        for word, letter in (("enqueued", ENQUEUED), ("completed", COMPLETED)):
            pages = [Filters(status=word, **key) for key in ({}, {"before": 9000}, {"after": 9000})]
            first, *others = (
                accesses(lambda page=page: list(listing.page(page))) for page in pages
            )
            counted = accesses(
                lambda letter=letter: listing.in_status(letter).values("status")[:1000].count()
            )
            assert first == counted == [("peasy_listed", False)], (statistics, word)
            assert {*sum(others, [])} <= {("peasy_listed", False), ("primary key", False)}, (
                statistics,
                word,
            )
        assert accesses(lambda: claim(10))[0] == ("peasy_waiting", False), statistics


@pytest.mark.skipif(MARIADB, reason="MariaDB has no partial indexes")
def test_every_index_is_partial():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index'"
            if SQLITE
            else "SELECT indexname, indexdef FROM pg_indexes"
        )
        ours = {
            name: sql
            for name, sql in cursor.fetchall()
            if name in [i.name for i in PeasyJobQueue._meta.indexes]
        }
    assert len(ours) == len(PeasyJobQueue._meta.indexes)
    assert all(" WHERE " in sql for sql in ours.values()), ours


# Scheduled jobs


def test_a_job_is_promoted_once_the_databases_clock_says_that_it_is_due():
    now = database_now(connection)
    due, later = (
        insert(status=SCHEDULED, run_after=as_field(now + delay))[0] for delay in seconds(-1, 60)
    )

    assert jobs.promote(as_field(now)) == 1
    assert column("status", [due, later]) == [ENQUEUED, SCHEDULED]
    assert jobs.promote(as_field(now)) == 0


def seconds(*numbers: float) -> list[timedelta]:
    return [timedelta(seconds=number) for number in numbers]


def test_a_backlog_of_due_jobs_is_promoted_in_batches_the_longest_due_first(monkeypatch):
    monkeypatch.setattr(querysets, "MAINTENANCE_BATCH", 2)
    late, latest, on_time = (
        insert(status=SCHEDULED, run_after=at(second))[0] for second in (-2, -3, 0)
    )

    assert jobs.promote(at()) == 2
    assert column("status", [late, latest, on_time]) == [ENQUEUED, ENQUEUED, SCHEDULED]
    assert jobs.promote(at()) == 1


def test_peek_returns_whether_a_job_can_run_and_when_the_next_scheduled_one_is_due():
    assert jobs.peek([]) == (False, None)
    insert(queue_name="mail")
    insert(status=SCHEDULED, queue_name="post", run_after=at(5))
    insert(status=SCHEDULED, queue_name="bulk", run_after=at(2))

    assert jobs.peek([]) == (True, at(2))
    assert jobs.peek(["mail"]) == (True, None)
    assert jobs.peek(["post", "mail"]) == (True, at(5))
    assert jobs.peek(["post", "bulk"]) == (False, at(2))


@pytest.mark.django_db(transaction=True)
def test_peek_does_not_wait_for_a_lock():
    (pk,) = insert()
    with locked(pk):
        assert jobs.peek([]) == (True, None)


# End


def update_of(claim: Claim, status: str = COMPLETED, **columns: Any) -> JobUpdate:
    return JobUpdate(claim=claim, status=status, **columns)


def failure(message: str) -> dict[str, str]:
    return {"exception": "builtins.ValueError", "message": message, "traceback": "…"}


def test_one_batch_can_hold_different_outcomes():
    done, failed, back, crashed = claimed(4)

    lost = jobs.finish(
        ME,
        [
            update_of(
                done,
                result=b"J1",
                status_msg="ready",
                extra='{"progress": 100}',
                started=at(1),
                completed=at(2),
            ),
            update_of(failed, FAILED, error=failure("no"), started=at(3), completed=at(4)),
            update_of(back, ENQUEUED, attempts=-1),
            update_of(crashed, ENQUEUED, crashes=1),
        ],
        at(9),
    )

    assert lost == []
    job = row(done.pk)
    assert job.status == COMPLETED
    assert job.result == 1
    assert job.status_msg == "ready"
    assert job.extra == {"progress": 100}
    assert row(failed.pk).error == "no"
    assert row(failed.pk).errors == [{"at": at(9).isoformat(), **failure("no")}]
    ended = [done.pk, failed.pk, back.pk, crashed.pk]
    assert column("status", ended) == [COMPLETED, FAILED, ENQUEUED, ENQUEUED]
    assert column("runner_id", ended) == [None] * 4
    assert column("claims", ended) == [1] * 4
    assert column("attempts", ended) == [1, 1, 0, 1]
    assert column("crashes", ended) == [0, 0, 0, 1]
    assert column("started", ended) == [at(1), at(3), None, None]
    assert column("completed", ended) == [at(2), at(4), None, None]


def test_values_with_special_characters_are_stored_unchanged():
    odd = [
        "",
        "NULL",
        "{a,b}",
        'say "no"',
        "back\\slash",
        "it's %s and 100%",
        "\n\t;--",
        "é ☃ 𝄞",
        None,
    ]
    raw = [b"J" + bytes(range(256)), b"", b"\\x00", b"J\x00\x01", *[None] * 5]
    claims = claimed(len(odd))
    some = [
        update_of(
            claim,
            FAILED,
            status_msg=text,
            result=data,
            error=failure(str(text)),
            started=at(n),
            completed=at(n + 0.5),
        )
        for n, (claim, text, data) in enumerate(zip(claims, odd, raw, strict=True))
    ]
    some[3] = some[3]._replace(started=None)

    assert jobs.finish(ME, some, at()) == []

    for n, (claim, text, data) in enumerate(zip(claims, odd, raw, strict=True)):
        job = row(claim.pk)
        assert job.status_msg == (text or "")
        assert job.error == str(text)
        assert data == (None if job.result_data is None else bytes(job.result_data))
        assert job.started == (None if n == 3 else at(n))
        assert job.completed == at(n + 0.5)


def test_updates_too_large_for_one_statement_are_written_with_several():
    claims = claimed(5)
    with CaptureQueriesContext(connection) as context:
        assert (
            jobs.finish(
                ME, [update_of(claim, result=b"J" + b"1" * 200_000) for claim in claims], at()
            )
            == []
        )
    updates = sum("UPDATE" in query["sql"] for query in context)
    assert updates == (1 if connection.vendor == "sqlite" else 5)
    assert {len(row(claim.pk).result_data) for claim in claims} == {200_001}


def queries_to_end(count: int) -> int:
    some = [
        update_of(claim, FAILED, error=failure("no"))
        if number % 2
        else update_of(claim, result=b"J1")
        for number, claim in enumerate(claimed(count))
    ]
    with CaptureQueriesContext(connection) as context:
        assert jobs.finish(ME, some, at()) == []
    return len(context)


def test_a_batch_takes_the_same_number_of_queries_whatever_its_size():
    assert queries_to_end(2) == queries_to_end(60)


def test_an_empty_batch_sends_no_query(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert jobs.finish(ME, [], at()) == []


def test_reported_progress_is_kept_if_the_update_does_not_replace_it():
    silent, speaking = claimed(2, status_msg="half way", extra={"progress": 50})

    jobs.finish(ME, [update_of(silent), update_of(speaking, status_msg="", extra="{}")], at())

    assert column("status_msg", [silent.pk, speaking.pk]) == ["half way", ""]
    assert column("extra", [silent.pk, speaking.pk]) == [{"progress": 50}, {}]


def test_every_failed_attempt_adds_an_error():
    (pk,) = insert()
    for number in range(3):
        (found,) = claim()
        jobs.finish(
            ME, [update_of(found, ENQUEUED, error=failure(f"attempt {number}"))], at(number)
        )

    assert [(entry["at"], entry["message"]) for entry in row(pk).errors] == [
        (at(number).isoformat(), f"attempt {number}") for number in range(3)
    ]


def take_away(job: Claim) -> None:
    jobs.filter(pk=job.pk).update(status=ENQUEUED, runner=None)


def take_over(job: Claim) -> None:
    take_away(job)
    assert pks(claim(runner=ANOTHER)) == [job.pk]


def take_again(job: Claim) -> None:
    take_away(job)
    assert pks(claim()) == [job.pk]


def rescue(job: Claim) -> None:
    assert jobs.rescue(ME, "gone", 1) > 0


def cancel_in_the_queue(job: Claim) -> None:
    take_away(job)
    jobs.filter(pk=job.pk).update(status=CANCELLED)


def delete(job: Claim) -> None:
    jobs.filter(pk=job.pk).delete()


def finish_elsewhere(job: Claim) -> None:
    take_over(job)
    assert jobs.finish(ANOTHER, [update_of(job._replace(fencing_token=2))], at(5)) == []


FENCES = [take_away, take_over, take_again, rescue, cancel_in_the_queue, delete, finish_elsewhere]


@pytest.mark.parametrize("happens", FENCES)
def test_the_update_of_a_job_that_is_no_longer_held_is_dropped_and_the_others_are_written(happens):
    (taken,) = claimed()
    happens(taken)
    others = claimed(2, priority=100)
    before = list(jobs.filter(pk=taken.pk).values())
    late = update_of(
        taken, result=b"J1", status_msg="late", extra="{}", attempts=-1, crashes=1, completed=at(9)
    )

    assert jobs.finish(ME, [update_of(others[0]), late, update_of(others[1])], at(9)) == [
        Dropped(taken, was_cancelled=False)
    ]

    assert list(jobs.filter(pk=taken.pk).values()) == before
    assert column("status", pks(others)) == [COMPLETED, COMPLETED]


@pytest.mark.parametrize("wrong", [{"runner": ANOTHER}, {"claims": 2}, {"claims": 0}])
def test_an_update_with_another_runner_or_fencing_token_is_dropped(wrong):
    (mine,) = claimed()
    before = everything()

    stranger = mine._replace(fencing_token=wrong.get("claims", 1))
    assert jobs.finish(wrong.get("runner", ME), [update_of(stranger)], at(9)) == [
        Dropped(stranger, was_cancelled=False)
    ]

    assert everything() == before


def test_a_job_cancelled_while_it_ran_is_closed_when_it_ends():
    cancelled, other = claimed(2)
    jobs.filter(pk=cancelled.pk).update(status=CANCELLED)

    assert jobs.finish(
        ME, [update_of(cancelled, result=b"J1", status_msg="late"), update_of(other)], at(9)
    ) == [Dropped(cancelled, was_cancelled=True)]

    job = row(cancelled.pk)
    assert job.status == CANCELLED
    assert job.runner_id is None
    assert job.completed == at(9)
    assert job.result is None
    assert job.status_msg == ""
    assert row(other.pk).status == COMPLETED


def test_a_cancelled_job_of_another_runner_is_not_closed():
    (job,) = claimed(runner=ANOTHER)
    jobs.filter(pk=job.pk).update(status=CANCELLED)

    dropped = [Dropped(job, was_cancelled=False)]
    assert jobs.finish(ME, [update_of(job)], at(9)) == dropped
    assert row(job.pk).runner_id == ANOTHER
    assert row(job.pk).completed is None


def test_a_batch_can_be_written_again_if_its_commit_was_not_confirmed():
    done, failed, back = claimed(3)
    batch = [
        update_of(done, result=b"J1"),
        update_of(failed, FAILED, error=failure("no")),
        update_of(back, ENQUEUED, attempts=-1, crashes=1),
    ]
    jobs.finish(ME, batch, at())
    before = everything()

    assert jobs.finish(ME, batch, at()) == []
    assert everything() == before


def test_only_a_job_that_waits_for_its_next_attempt_keeps_a_time_to_run_after():
    again, over = claimed(2)

    jobs.finish(
        ME,
        [
            update_of(again, SCHEDULED, run_after=at(60)),
            update_of(over, FAILED, error=failure("no")),
        ],
        at(),
    )

    assert column("status", [again.pk, over.pk]) == [SCHEDULED, FAILED]
    assert column("run_after", [again.pk, over.pk]) == [at(60), None]


# Cancel


@pytest.mark.parametrize("status", [ENQUEUED, SCHEDULED])
def test_a_waiting_job_is_over_as_soon_as_it_is_cancelled(status):
    (pk,) = insert(status=status, run_after=at(60))

    assert jobs.cancel(pk)

    assert row(pk).status == CANCELLED
    assert row(pk).runner is None
    assert abs(row(pk).completed - as_field(database_now(connection))) < timedelta(seconds=30)
    assert jobs.cancelled_of(ME) == []


def test_a_cancelled_running_job_is_over_only_when_its_own_runner_closes_it():
    job, other = claimed(2)
    claimed(runner=ANOTHER)

    assert jobs.cancel(job.pk)

    assert row(job.pk).status == CANCELLED
    assert row(job.pk).runner_id == ME
    assert row(job.pk).completed is None
    assert jobs.cancelled_of(ME) == [(job.pk, 1)]
    jobs.close_cancelled(ANOTHER, job.pk, 1, at())
    jobs.close_cancelled(ME, job.pk, 2, at())
    jobs.close_cancelled(ME, other.pk, 1, at())
    assert row(job.pk).runner_id == ME
    assert row(other.pk).status == ONGOING
    jobs.close_cancelled(ME, job.pk, 1, at())
    assert row(job.pk).runner_id is None
    assert row(job.pk).completed == at()


@pytest.mark.parametrize("status", FINISHED)
def test_a_finished_job_cannot_be_cancelled(status):
    (pk,) = insert(status=status, completed=at(-5))

    assert not jobs.cancel(pk)
    assert not jobs.cancel(pk + 1)
    assert row(pk).status == status
    assert row(pk).completed == at(-5)


# Rescue


def test_a_dead_runners_jobs_are_given_back_and_only_those_that_had_started_are_charged():
    started, waiting = claimed(runner=DEAD) + claim_ahead(DEAD)
    (foreign,) = claimed(runner=ANOTHER)

    assert jobs.rescue(DEAD, "gone", 1) == 2

    rescued = [started.pk, waiting.pk]
    assert column("status", rescued) == [ENQUEUED, ENQUEUED]
    assert column("runner_id", rescued) == [None, None]
    assert column("started", rescued) == [None, None]
    assert column("attempts", rescued) == [1, 0]
    assert column("crashes", rescued) == [1, 0]
    assert column("claims", rescued) == [1, 1]
    assert row(foreign.pk).status == ONGOING
    assert row(foreign.pk).runner_id == ANOTHER
    assert jobs.rescue(DEAD, "gone", 1) == 0


def claim_ahead(runner: int) -> list[Claim]:
    insert()
    return claim(1, runner=runner, ahead=1)


@pytest.mark.parametrize(("retries", "rescues"), [(0, 0), (1, 1), (3, 3)])
def test_a_job_without_crash_retries_left_fails_with_the_reason(retries, rescues):
    (pk,) = insert(errors=[failure("earlier")])
    for _ in range(rescues):
        claim(runner=DEAD)
        jobs.rescue(DEAD, "gone", retries)
        assert row(pk).status == ENQUEUED
    claim(runner=DEAD)

    assert jobs.rescue(DEAD, "Its runner is gone.", retries) == 1

    job = row(pk)
    assert job.status == FAILED
    assert job.runner_id is None
    assert job.crashes == retries + 1
    assert job.started == at()
    assert [entry["message"] for entry in job.errors] == ["earlier", "Its runner is gone."]
    assert job.errors[-1]["at"] == job.completed.isoformat()
    assert abs(job.completed - as_field(database_now(connection))) < timedelta(seconds=30)


@pytest.mark.parametrize(("own", "expected"), [(0, FAILED), (1, ENQUEUED), (None, FAILED)])
def test_a_job_can_have_its_own_number_of_crash_retries(own, expected):
    (job,) = claimed(runner=DEAD, crash_retries=own)

    jobs.rescue(DEAD, "gone", 0)

    assert row(job.pk).status == expected


def test_a_job_that_had_not_started_is_given_back_however_often_it_crashed_before():
    (waiting,) = claim_ahead(DEAD)
    jobs.update(crashes=5)

    assert jobs.rescue(DEAD, "gone", 1) == 1
    assert row(waiting.pk).status == ENQUEUED
    assert row(waiting.pk).crashes == 5


def test_ongoing_jobs_of_the_published_package_name_no_runner_and_are_rescued():
    (orphan,) = insert(status=ONGOING, started=at(-60))
    (unstarted,) = insert(status=ONGOING)
    others = claimed() + claimed(runner=DEAD)
    untouched = (
        insert(status=CANCELLED)
        + insert(status=COMPLETED)
        + insert(status=SCHEDULED, run_after=at())
    )
    before = [row(pk).__dict__ for pk in untouched]

    assert jobs.rescue(None, "gone", 1) == 2

    assert column("status", [orphan, unstarted, *pks(others)]) == [
        ENQUEUED,
        ENQUEUED,
        ONGOING,
        ONGOING,
    ]
    assert column("crashes", [orphan, unstarted]) == [1, 0]
    assert column("attempts", [orphan, unstarted]) == [0, 0]
    without_state = [{**row(pk).__dict__, "_state": None} for pk in untouched]
    assert without_state == [{**values, "_state": None} for values in before]


def test_a_cancelled_job_of_a_dead_runner_is_closed_and_stays_cancelled():
    (job,) = claimed(runner=DEAD)
    (foreign,) = claimed(runner=ANOTHER)
    jobs.update(status=CANCELLED)

    assert jobs.rescue(DEAD, "gone", 1) == 0

    assert row(job.pk).status == CANCELLED
    assert row(job.pk).runner_id is None
    assert row(job.pk).completed is not None
    assert row(foreign.pk).runner_id == ANOTHER
    assert row(foreign.pk).completed is None


# Prune


def prune_all(
    status: str = COMPLETED, maximum: int | None = 0, before: datetime | None = None
) -> list[int]:
    while jobs.prune(status, maximum, before or at(3600)):
        pass
    return sorted(jobs.values_list("pk", flat=True))


@pytest.mark.parametrize("status", FINISHED)
@pytest.mark.parametrize("maximum", [0, 1, 3, 4])
def test_each_status_keeps_as_many_jobs_as_its_maximum(status, maximum):
    mine = [insert(status=status, completed=at(number))[0] for number in range(4)]
    others = [insert(status=other, completed=at())[0] for other in FINISHED if other != status]

    assert prune_all(status, maximum) == mine[4 - maximum :] + others


def test_without_a_maximum_all_jobs_are_kept():
    kept = insert(4, status=COMPLETED, completed=at())
    assert prune_all(maximum=None) == kept


def test_the_jobs_that_finished_first_are_pruned_first():
    early, late, middle = (
        insert(status=COMPLETED, completed=at(second))[0] for second in (1, 3, 2)
    )

    assert prune_all(maximum=2) == [late, middle]
    assert prune_all(maximum=1) == [late]


def test_of_jobs_that_finished_at_the_same_moment_the_oldest_are_pruned_first():
    same = insert(5, status=COMPLETED, completed=at())
    assert prune_all(maximum=2) == same[3:]


def test_jobs_that_finished_within_the_grace_period_are_not_pruned():
    old, edge, fresh, newest = (
        insert(status=COMPLETED, completed=at(second))[0] for second in (-61, -60, -59, 0)
    )

    assert prune_all(maximum=0, before=at(-60)) == [fresh, newest]


def test_a_job_that_still_names_a_runner_is_neither_pruned_nor_counted():
    running = insert(2, status=CANCELLED, runner_id=ME, completed=at())
    over = insert(2, status=CANCELLED, completed=at(-5))

    assert prune_all(CANCELLED, 1) == [*running, over[1]]


@pytest.mark.parametrize("status", [ENQUEUED, SCHEDULED, ONGOING])
def test_a_job_that_has_not_finished_is_never_pruned(status):
    live = insert(2, status=status, completed=at(-3600))
    unstamped = insert(status=CANCELLED)

    for finished in FINISHED:
        prune_all(finished)
    assert sorted(jobs.values_list("pk", flat=True)) == live + unstamped


def test_a_large_backlog_is_pruned_in_batches():
    finished = [
        PeasyJobQueue(title="a job", job_name="x", status=COMPLETED, completed=at(n))
        for n in range(2 * querysets.MAINTENANCE_BATCH)
    ]
    jobs.bulk_create(finished)

    assert jobs.prune(COMPLETED, 10, at(7200)) == querysets.MAINTENANCE_BATCH
    assert jobs.earliest("completed").completed == at(querysets.MAINTENANCE_BATCH), (
        "the oldest were deleted first"
    )
    assert [jobs.prune(COMPLETED, 10, at(7200)) for _ in range(2)] == [
        querysets.MAINTENANCE_BATCH - 10,
        0,
    ]
    assert jobs.earliest("completed").completed == at(2 * querysets.MAINTENANCE_BATCH - 10)


def test_a_waiting_job_cancelled_by_an_update_is_over_once_that_is_noticed(monkeypatch):
    monkeypatch.setattr(querysets, "MAINTENANCE_BATCH", 1)
    over = insert(2, status=CANCELLED)
    (stamped,) = insert(status=CANCELLED, completed=at(-9))
    (running,) = insert(status=CANCELLED, runner_id=ME)
    (waiting,) = insert()

    for _ in range(3):
        jobs.normalise_external_changes(at())

    assert column("completed", [*over, stamped, running, waiting]) == [
        at(),
        at(),
        at(-9),
        None,
        None,
    ]


def test_a_job_scheduled_without_a_time_is_enqueued_by_the_next_maintenance(
    monkeypatch,
):
    monkeypatch.setattr(querysets, "MAINTENANCE_BATCH", 1)
    undated = insert(2)
    jobs.filter(pk__in=undated).update(status=SCHEDULED)
    (dated,) = insert(status=SCHEDULED, run_after=at(60))
    (over,) = insert(status=COMPLETED, completed=at())

    for _ in range(2):
        jobs.normalise_external_changes(at())

    assert column("status", [*undated, dated, over]) == [ENQUEUED, ENQUEUED, SCHEDULED, COMPLETED]


def test_maintenance_continues_at_once_while_external_changes_remain(monkeypatch):
    monkeypatch.setattr(querysets, "MAINTENANCE_BATCH", 2)
    over = insert(7, status=CANCELLED)
    house = Maintenance(jobs.all(), Clock(connection), Conf())

    for _ in range(4):
        house.run_due(backlog=False)

    assert None not in column("completed", over)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(MARIADB, reason="MariaDB stores nothing but times")
@pytest.mark.parametrize("odd", ["'infinity'"] if POSTGRES else ["'soon'", "''", "5", "X'FF'"])
@pytest.mark.parametrize("maximum", [0, 1, 2])
def test_a_job_whose_completion_time_is_invalid_is_pruned_too(odd, maximum):
    pks = insert(3, status=COMPLETED, completed=at(-60))
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET completed = {odd} WHERE id = %s", [pks[1]])

    for _ in range(4):
        jobs.prune(COMPLETED, maximum, at())

    assert jobs.count() == maximum


# Report


@pytest.mark.parametrize(
    ("message", "extra", "expected"),
    [
        ("new", None, ("new", {"old": 1})),
        (None, '{"progress": 5}', ("old", {"progress": 5})),
        ("", "{}", ("", {})),
        (None, None, ("old", {"old": 1})),
    ],
)
def test_a_report_changes_only_what_it_mentions(message, extra, expected):
    (pk,) = insert(status_msg="old", extra={"old": 1})

    jobs.report(pk, message, extra)

    assert (row(pk).status_msg, row(pk).extra) == expected


@pytest.mark.parametrize("guards", [{"runner": ANOTHER}, {"claims": 2}, {"status": COMPLETED}, {}])
def test_a_report_is_dropped_unless_its_guards_hold(guards):
    (job,) = claimed(status_msg="old")

    jobs.report(job.pk, "new", None, **{"runner": ME, "claims": 1, "status": ONGOING, **guards})

    assert row(job.pk).status_msg == ("old" if guards else "new")


# Clocks

AUTUMN = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)  # the first of two 1:30 in New York
HOUR = timedelta(hours=1)


@pytest.fixture
def in_zone(transactional_db: None) -> Iterator[Callable[[str], None]]:
    """Return a function that sets the time zone of the session, whatever Django has set."""

    def move(offset: str) -> None:
        with connection.cursor() as cursor:
            if POSTGRES:
                cursor.execute(f"SET TIME ZONE INTERVAL '{offset}' HOUR TO MINUTE")
            elif MARIADB:
                cursor.execute("SET time_zone = %s", [offset])

    yield move
    connection.close()


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("offset", ["+13:00", "-09:30"])
def test_the_database_clock_is_utc_whatever_the_time_zone_of_the_session(in_zone, offset, use_tz):
    with override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Kathmandu"):
        in_zone(offset)
        now = database_now(connection)

    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("use_tz", [True, False])
def test_a_time_of_the_database_clock_survives_a_round_trip_through_a_field(in_zone, use_tz):
    with override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Kathmandu"):
        if MARIADB:  # on PostgreSQL Django has set the zone itself, and relies on it
            in_zone("-03:30")
        now = as_field(database_now(connection))
        (pk,) = insert(status=SCHEDULED, run_after=now)

        assert row(pk).run_after == now
        assert (now.tzinfo is None) == (not use_tz)
        assert jobs.promote(now - timedelta(milliseconds=1)) == 0
        assert jobs.promote(now) == 1


@override_settings(USE_TZ=True, TIME_ZONE="America/New_York")
def test_with_use_tz_a_field_holds_an_aware_time():
    assert as_field(AUTUMN) == AUTUMN
    assert as_field(AUTUMN + HOUR) - as_field(AUTUMN) == HOUR


@override_settings(USE_TZ=False, TIME_ZONE="America/New_York")
def test_without_use_tz_a_field_holds_local_time_which_repeats_an_hour_in_autumn():
    assert as_field(AUTUMN - HOUR) == datetime(2026, 11, 1, 0, 30)
    assert as_field(AUTUMN) == as_field(AUTUMN + HOUR) == datetime(2026, 11, 1, 1, 30)
    assert as_field(AUTUMN + 2 * HOUR) == datetime(2026, 11, 1, 2, 30)


def register(**columns: Any) -> PeasyRunner:
    defaults = {
        "host": "here",
        "pid": 1,
        "worker_type": "thread",
        "concurrency": 1,
        "lease_until": 0.0,
    }
    return runners.create(**{**defaults, "started": at(), "heartbeat": at(), **columns})


def lease(lease: float = 30) -> Lease:
    return Lease(jobs, Clock(connection), conf.Conf(lease=lease))


@override_settings(USE_TZ=False, TIME_ZONE="America/New_York")
def test_a_lease_counts_real_seconds_through_the_hour_that_repeats(monkeypatch):
    moment = [AUTUMN + HOUR / 4]
    monkeypatch.setattr("peasy_jobs.store.clock.database_now", lambda connection: moment[0])
    mine, other = lease(1800), lease(1800)
    mine.register([])
    other.register([])
    other.steady_since = other.clock.stepped_at = float("-inf")
    monkeypatch.setattr(
        "peasy_jobs.store.clock.STEP", HOUR.total_seconds()
    )  # below, the hours are what the test lets pass
    lease_until = runners.get(pk=mine.id).lease_until
    assert lease_until == AUTUMN.timestamp() + 45 * 60
    runners.filter(pk=mine.id).update(host_id="another host")

    moment[0] = AUTUMN + 44 * HOUR / 60
    other.rescue()
    assert runners.filter(pk=mine.id).exists()
    moment[0] = AUTUMN + 46 * HOUR / 60  # 1:16 again, which is before 1:45
    other.rescue_at = 0
    other.rescue()
    assert not runners.filter(pk=mine.id).exists()


def test_a_lease_is_renewed_only_by_the_runner_that_is_still_registered():
    mine = lease()
    mine.register([])
    runners.update(lease_until=1.0)
    mine.renew_at = 0

    assert mine.renew()
    assert abs(runners.get(pk=mine.id).lease_until - database_now(connection).timestamp() - 30) < 10

    runners.all().delete()
    mine.renew_at = 0
    assert not mine.renew()


def test_no_runner_is_presumed_dead_after_an_outage_that_stopped_all_of_them():
    mine, dead = lease(), register(host_id="another host", lease_until=1.0)
    mine.register([])
    mine.rescue()
    assert runners.filter(pk=dead.pk).exists(), "it was seen for the first time"
    mine.clock.stepped_at = float("-inf")
    mine.steady_since -= 31
    mine.last_renewal -= 13  # something held it up
    mine.renew_at = mine.rescue_at = 0
    mine.renew()
    mine.rescue()
    assert runners.filter(pk=dead.pk).exists()
    mine.steady_since -= 31
    mine.rescue_at = 0
    mine.rescue()
    assert not runners.filter(pk=dead.pk).exists()


@pytest.mark.parametrize("step", [-HOUR, timedelta(), HOUR], ids=["back", "none", "forward"])
def test_no_runner_is_presumed_dead_because_the_database_clock_was_changed(monkeypatch, step):
    """After a suspend, a host sees the same as after the database's clock was set forward."""
    now, offset = database_now, timedelta()
    monkeypatch.setattr(
        "peasy_jobs.store.clock.database_now", lambda connection: now(connection) + offset
    )
    mine, alive = lease(), lease()
    dead = register(host_id="another host", lease_until=1.0)
    for one in (mine, alive):
        one.register([])
        one.steady_since = one.clock.stepped_at = float("-inf")
    runners.filter(pk=alive.id).update(host_id="another host")

    offset = step
    mine.rescue()
    assert runners.filter(pk=alive.id).exists()
    assert runners.filter(pk=dead.pk).exists() == bool(step), "without a step its lease has expired"
    alive.renew_at = mine.rescue_at = 0
    assert alive.renew()
    if step:
        assert mine.clock.stepped_at > float("-inf")
        mine.clock.stepped_at -= 31
    mine.rescue()
    assert runners.filter(pk=alive.id).exists()
    assert not runners.filter(pk=dead.pk).exists()


@pytest.mark.parametrize("use_tz", [True, False])
def test_monotonic_times_of_this_host_are_converted_with_the_database_clock(monkeypatch, use_tz):
    monkeypatch.setattr("peasy_jobs.store.clock.database_now", lambda connection: AUTUMN)
    with override_settings(USE_TZ=use_tz):
        clock = Clock(connection)
        before = monotonic()
        assert clock.sync() == AUTUMN.timestamp()
        error = abs(clock.at(before + 60) - as_field(AUTUMN + timedelta(minutes=1)))
    assert error < timedelta(seconds=10)


# Errors

real_transactions = pytest.mark.django_db(transaction=True)


def of(action: Callable[[], Any]) -> BaseException:
    with pytest.raises((DatabaseError, InterfaceError)) as caught:
        action()
    return caught.value


def retitle(pk: int, by: BaseDatabaseWrapper | None = None) -> None:
    with (by or connection).cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET title = 'another' WHERE id = %s", [pk])


@pytest.fixture
def impatient(transactional_db: None) -> Iterator[None]:
    vendors.configure_session(connection, 0.05)
    yield
    connection.close()


def test_a_lock_timeout_is_recognised_as_a_lock(impatient):
    (pk,) = insert()
    with locked(pk):
        error = of(lambda: retitle(pk))
    assert vendors.is_locked(error)
    retitle(pk)


def test_a_claim_does_not_wait_longer_than_the_lock_timeout(impatient):
    (pk,) = insert()
    with locked(pk):
        if SQLITE:
            assert vendors.is_locked(of(claim))
        else:
            assert claim() == []
    assert pks(claim()) == [pk]


@servers_only
@real_transactions
def test_a_deadlock_is_recognised_as_a_lock():
    one, two = insert(2)
    errors: list[DatabaseError] = []

    def reach(pk: int, by: BaseDatabaseWrapper) -> None:
        try:
            retitle(pk, by)
        except DatabaseError as error:
            errors.append(error)
            by.rollback()

    with locked(one) as this, locked(two) as that:
        that.inc_thread_sharing()
        thread = threading.Thread(target=reach, args=[one, that])
        thread.start()
        reach(two, this)
        thread.join()
        that.dec_thread_sharing()

    (error,) = errors
    assert vendors.is_locked(error)


@real_transactions
def test_a_serialization_failure_is_recognised_as_a_lock():
    (pk,) = insert()
    with second_connection() as other:
        with other.cursor() as cursor:
            if POSTGRES:
                cursor.execute(
                    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ"
                )
            elif MARIADB:
                cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'")
                if not cursor.fetchone():
                    pytest.skip("this server does not tell such a change")
                cursor.execute(
                    "SET SESSION innodb_snapshot_isolation = ON"
                )  # the default since 11.6.2
        other.set_autocommit(False)
        with other.cursor() as cursor:
            if SQLITE:
                cursor.execute("BEGIN DEFERRED")
            cursor.execute(f"SELECT title FROM {TABLE} WHERE id = %s", [pk])
            assert cursor.fetchone() == ("a job",)
            retitle(pk)
            error = of(lambda: retitle(pk, other))
        other.rollback()
    assert vendors.is_locked(error)


@servers_only
@real_transactions
def test_a_connection_closed_by_the_server_is_an_outage():
    with second_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()" if POSTGRES else "SELECT CONNECTION_ID()")
            session = cursor.fetchone()[0]
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)" if POSTGRES else "KILL %s", [session])
        with other.cursor() as cursor:
            errors = [of(lambda: cursor.execute("SELECT 1")) for _ in range(2)]
    assert [vendors.is_outage(error) for error in errors] == [True, True]
    assert [vendors.is_locked(error) for error in errors] == [False, False]


@real_transactions
def test_a_database_that_cannot_be_reached_is_an_outage(tmp_path):
    with second_connection() as other:
        other.settings_dict["NAME" if SQLITE else "PORT"] = (
            tmp_path / "none" / "db.sqlite3" if SQLITE else 1
        )
        error = of(other.ensure_connection)
    assert vendors.is_outage(error)
    assert not vendors.is_locked(error)


@pytest.mark.skipif(not SQLITE, reason="only a file can be read-only")
@real_transactions
def test_a_read_only_file_is_an_outage():
    (pk,) = insert()
    with second_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("PRAGMA query_only = ON")
        error = of(lambda: retitle(pk, other))
    assert vendors.is_outage(error)
    assert not vendors.is_locked(error)


def test_wrong_data_is_neither_a_lock_nor_an_outage():
    (pk,) = insert()
    with transaction.atomic():
        error = of(lambda: jobs.filter(pk=pk).update(attempts=None))
        connection.needs_rollback = True
    assert not vendors.is_locked(error)
    assert not vendors.is_outage(error)
    assert isinstance(error, DatabaseError)
    assert not isinstance(error, OperationalError)


def test_the_errors_of_a_job_are_stored_as_json_text():
    (job,) = claimed()
    jobs.finish(ME, [update_of(job, FAILED, error=failure('a "quoted" \u2028 é'))], at())
    assert json.loads(json.dumps(row(job.pk).errors))[0]["message"] == 'a "quoted" \u2028 é'
