"""Runners, cancels and rescues compete for the same jobs, each in its own process."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING
from peasy_jobs.store.clock import as_field
from tests.concurrent_processes import TABLE, ConcurrentProcess, run_concurrently

pytestmark = pytest.mark.django_db(transaction=True)

jobs = PeasyJobQueue.objects
START = datetime(2026, 6, 1, 12, tzinfo=UTC)
# As a runner sets its connection up; on MariaDB also as the server has it, which locks gaps.
set_ups = pytest.mark.parametrize(
    "configure_session", [True, False] if settings.TEST_DATABASE == "mariadb" else [True]
)


def insert(count: int, **columns: Any) -> list[int]:
    """Insert rows and return their primary keys, oldest first."""
    rows = [
        PeasyJobQueue(**{"title": "a job", "job_name": "tests.jobs.nothing", **columns})
        for _ in range(count)
    ]
    before = set(jobs.values_list("pk", flat=True))
    jobs.bulk_create(rows)  # MariaDB before 10.5 and MySQL do not return primary keys
    return sorted(set(jobs.values_list("pk", flat=True)) - before)


def flat(lists: list[list[Any]]) -> list[Any]:
    return [item for some in lists for item in some]


@set_ups
def test_eight_runners_claim_each_of_2000_jobs_exactly_once(configure_session):
    pks = insert(2000)

    got = run_concurrently(
        *(
            ConcurrentProcess(
                "claim_jobs", runner=n, limit=10, queues=[], configure_session=configure_session
            )
            for n in range(1, 9)
        )
    )

    assert sorted(pk for pk, _ in flat(got)) == pks
    assert {claims for _, claims in flat(got)} == {1}
    held = {pk: runner for runner, claims in enumerate(got, 1) for pk, _ in claims}
    assert dict(jobs.values_list("pk", "runner")) == held
    assert set(jobs.values_list("status", "claims", "attempts")) == {(ONGOING, 1, 1)}


@set_ups
def test_runners_of_different_queues_claim_only_their_own_jobs(configure_session):
    mail, post, bulk = (insert(200, queue_name=name) for name in ("mail", "post", "bulk"))
    served = [["mail"], ["mail", "post"], ["post"], ["post", "mail"]]

    got = run_concurrently(
        *(
            ConcurrentProcess(
                "claim_jobs", runner=n, limit=7, queues=queues, configure_session=configure_session
            )
            for n, queues in enumerate(served, 1)
        )
    )

    assert sorted(pk for pk, _ in flat(got)) == mail + post
    assert {pk for pk, _ in got[0]} <= set(mail)
    assert {pk for pk, _ in got[2]} <= set(post)
    assert set(jobs.filter(pk__in=bulk).values_list("status", "claims")) == {(ENQUEUED, 0)}


@set_ups
def test_each_job_ends_once_while_jobs_are_enqueued_and_cancelled(configure_session):
    early, total = insert(200), 400

    *worked, first, second, cancelled = run_concurrently(
        *(
            ConcurrentProcess(
                "run_jobs", runner=n, limit=10, total=total, configure_session=configure_session
            )
            for n in (1, 2, 3)
        ),
        *(
            ConcurrentProcess("enqueue_jobs", count=100, configure_session=configure_session)
            for _ in range(2)
        ),
        ConcurrentProcess(
            "cancel_some_jobs", every=7, total=total, configure_session=configure_session
        ),
    )

    pks = sorted([*early, *first, *second])
    runs = flat(worked)
    claims = Counter(pk for pk, *_ in runs)
    landed = Counter(pk for pk, _, status, written in runs if written and status != ENQUEUED)
    assert sorted(jobs.values_list("pk", flat=True)) == pks
    assert len(cancelled) == len(set(cancelled))
    assert landed == dict.fromkeys(set(pks) - set(cancelled), 1)
    assert len({(pk, number) for pk, number, *_ in runs}) == len(runs), (
        "one claim was given to two workers"
    )
    for job in jobs.all():
        assert job.runner_id is None
        assert job.claims == claims[job.pk]
        if job.pk in cancelled:
            assert job.status == CANCELLED
        else:
            check_outcome(job)


def check_outcome(job: PeasyJobQueue) -> None:
    """Check a job that `run_jobs` has finished: every third one fails."""
    assert job.completed is not None
    if job.pk % 3:
        assert job.status == COMPLETED
        assert job.result == job.pk
        assert job.errors == []
    else:
        assert job.status == FAILED
        assert job.result is None
        assert len(job.errors) == 1


@set_ups
def test_a_job_cancelled_during_its_claim_never_runs_or_is_stopped(configure_session):
    pks = insert(400)

    *got, forwards, backwards = run_concurrently(
        *(
            ConcurrentProcess(
                "claim_jobs", runner=n, limit=1, queues=[], configure_session=configure_session
            )
            for n in (1, 2)
        ),
        *(
            ConcurrentProcess(
                "cancel_all_jobs", backwards=backwards, configure_session=configure_session
            )
            for backwards in (False, True)
        ),
    )

    assert sorted(forwards + backwards) == pks, "each was cancelled, by one of the two"
    held = {pk: runner for runner, claims in enumerate(got, 1) for pk, _ in claims}
    for job in jobs.all():
        assert job.status == CANCELLED
        assert (job.runner_id, job.claims, job.attempts) == (
            (held[job.pk], 1, 1) if job.pk in held else (None, 0, 0)
        )
        assert (job.completed is None) == (job.pk in held), "over means that nobody runs it"


@set_ups
def test_two_runners_rescue_each_job_of_a_dead_runner_once(configure_session):
    dead = list(range(1, 21))
    for runner in dead:
        insert(8, status=ONGOING, runner_id=runner, claims=1, attempts=1, started=as_field(START))
        insert(4, status=ONGOING, runner_id=runner, claims=1, attempts=1)  # claimed ahead
        insert(
            4,
            status=ONGOING,
            runner_id=runner,
            claims=2,
            attempts=2,
            crashes=1,
            started=as_field(START),
        )
        insert(2, status=CANCELLED, runner_id=runner, claims=1, attempts=1, started=as_field(START))

    one, two = run_concurrently(
        *(
            ConcurrentProcess("rescue_jobs", dead=dead, configure_session=configure_session)
            for _ in range(2)
        )
    )

    assert [sum(both) for both in zip(one, two, strict=True)] == [16] * 20
    found = Counter(jobs.values_list("status", "runner", "claims", "attempts", "crashes"))
    assert found == {
        (ENQUEUED, None, 1, 1, 1): 160,
        (ENQUEUED, None, 1, 0, 0): 80,
        (FAILED, None, 2, 2, 2): 80,
        (CANCELLED, None, 1, 1, 0): 40,
    }
    assert {len(job.errors) for job in jobs.filter(status=FAILED)} == {1}
    assert not jobs.filter(status=CANCELLED, completed=None).exists()


@set_ups
def test_during_a_rescue_an_outcome_is_written_or_the_job_runs_again_but_not_both(
    configure_session,
):
    dead = list(range(1, 41))
    pks = [
        pk
        for runner in dead
        for pk in insert(
            15,
            title=f"of runner {runner}",
            status=ONGOING,
            runner_id=runner,
            claims=1,
            attempts=1,
            started=as_field(START),
        )
    ]

    rescued, first, second = run_concurrently(
        ConcurrentProcess("rescue_jobs", dead=dead, configure_session=configure_session),
        ConcurrentProcess("write_outcomes", dead=dead, configure_session=configure_session),
        ConcurrentProcess("write_outcomes", dead=dead[::-1], configure_session=configure_session),
    )

    written = {*first, *second}
    assert sum(rescued) == len(pks) - len(written)
    found = {
        pk: state for pk, *state in jobs.values_list("pk", "status", "runner", "claims", "crashes")
    }
    assert found == {
        pk: [COMPLETED, None, 1, 0] if pk in written else [ENQUEUED, None, 1, 1] for pk in pks
    }


def test_a_job_can_be_cancelled_while_it_is_being_given_back():
    """It must not be missed between a query for waiting and one for running jobs."""
    (pk,) = insert(1, status=ONGOING, runner_id=1, claims=1)

    def give_back(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE"):
            with connection.cursor() as cursor:
                cursor.cursor.execute(
                    f"UPDATE {TABLE} SET status = 'Q', runner_id = NULL WHERE status = 'O'"
                )
        return result

    with connection.execute_wrapper(give_back):
        assert jobs.cancel(pk)
    assert jobs.get(pk=pk).status == CANCELLED
