"""Measure peasy_jobs alone, in a process with Django set up: `python -m benchmarks.probe raw 9`.

raw COUNT                  claim and finish by plain SQL, in batches of 100
compare COUNT              enqueueing compared with the ORM's create() and bulk_create()
insert FIRST COUNT QUEUE   enqueue no-op jobs
sleepers COUNT SECONDS     enqueue jobs that sleep
mix COUNT SECONDS          enqueue no-op jobs around one that sleeps
finished COUNT             as many finished jobs, by SQL
settle                     let the server write out what it would write out later
prune                      delete waiting jobs and prune finished ones: rows per second
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

CHUNK = 100  # calls of one way before the other has its turn
BATCH = 100


def configure_django() -> None:
    os.environ.setdefault("BENCH_APPS", '["django_htmx", "peasy_jobs", "benchmarks"]')
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.site_settings"
    import django

    django.setup()


def compare(count: str) -> dict[str, float]:
    from benchmarks import jobs
    from peasy_jobs.models import PeasyJobQueue

    rows, nothing = PeasyJobQueue.objects, jobs.nothing
    columns = jobs.row(nothing, 12345)

    def create() -> None:
        for _ in range(CHUNK):
            rows.create(**columns)

    def call() -> None:
        for _ in range(CHUNK):
            nothing(12345)

    def bulk_create() -> None:
        rows.bulk_create([PeasyJobQueue(**columns) for _ in range(1000)], batch_size=1000)

    def in_bulk() -> None:
        nothing.map([12345] * 1000)

    bare, ours = _by_turns(create, call, max(2, int(count) // CHUNK))
    many, mapped = _by_turns(bulk_create, in_bulk, max(2, int(count) // 300))
    return {
        "create(), rows/s": CHUNK / bare,
        "a call of the job function, jobs/s": CHUNK / ours,
        "its share of create()": bare / ours,
        "bulk_create(), rows/s": 1000 / many,
        "map(), jobs/s": 1000 / mapped,
        "its share of bulk_create()": many / mapped,
    }


def _by_turns(
    one: Callable[[], None], other: Callable[[], None], rounds: int
) -> tuple[float, float]:
    """Return the seconds that a round of each takes."""
    seconds = [0.0, 0.0]
    for number in range(rounds + 1):
        for place, do in enumerate((one, other)):
            started = perf_counter()
            do()
            if number:  # the first is for warming up
                seconds[place] += perf_counter() - started
    return seconds[0] / rounds, seconds[1] / rounds


def raw(count: str) -> dict[str, float]:
    """Write the same columns as the engine, with one statement per batch and without jobs."""
    from peasy_jobs.models import PeasyJobQueue

    started, done = perf_counter(), 0
    for pks in _claims():
        _finish(pks)
        done += len(pks)
    seconds = perf_counter() - started
    stored = PeasyJobQueue.objects.filter(
        status="C", runner=None, claims=1, attempts=1, completed__isnull=False
    )
    assert done == stored.count() == int(count)
    return {"jobs/s": done / seconds}


CLAIMED = "title, job_name, args_data, kwargs_data, attempts, crashes, crash_retries, timeout"
SET = "status = 'O', runner_id = 1, claims = claims + 1, attempts = attempts + 1, started = %s"
NEXT = (
    "FROM peasy_jobs_peasyjobqueue{} WHERE status = 'Q' AND claims >= 0"
    f" ORDER BY priority DESC, id LIMIT {BATCH}"
)
NEXT_ON_MARIADB = NEXT.format(" FORCE INDEX (peasy_waiting)")
CLAIM = {
    "sqlite": f"UPDATE peasy_jobs_peasyjobqueue SET {SET}"
    f" WHERE id IN (SELECT id {NEXT.format('')}) AND status = 'Q'"
    f" RETURNING id, claims, {CLAIMED}",
    "postgresql": "WITH next AS MATERIALIZED"
    f" (SELECT id AS pk {NEXT.format('')} FOR UPDATE SKIP LOCKED)"
    f" UPDATE peasy_jobs_peasyjobqueue SET {SET} FROM next WHERE id = pk AND status = 'Q'"
    f" RETURNING id, claims, {CLAIMED}",
    "mysql": f"SELECT id, claims, {CLAIMED} {NEXT_ON_MARIADB} FOR UPDATE SKIP LOCKED",
}


def _claims() -> Iterator[list[int]]:
    from django.db import connection, transaction
    from django.utils import timezone

    now = connection.ops.adapt_datetimefield_value(timezone.now())
    while True:
        locked = connection.vendor == "mysql"
        with (
            transaction.atomic() if locked else connection.cursor() as _,
            connection.cursor() as cursor,
        ):
            cursor.execute(CLAIM[connection.vendor], [] if locked else [now])
            pks = [row[0] for row in cursor.fetchall()]
            if locked and pks:
                marks = ", ".join(["%s"] * len(pks))
                cursor.execute(
                    f"UPDATE peasy_jobs_peasyjobqueue SET {SET} WHERE id IN ({marks})", [now, *pks]
                )
        if not pks:
            return
        yield pks


def _finish(pks: list[int]) -> None:
    from django.db import connection
    from django.utils import timezone

    now = connection.ops.adapt_datetimefield_value(timezone.now())
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE peasy_jobs_peasyjobqueue SET status = 'C', result_data = NULL,"
            " status_msg = status_msg, extra = extra, errors = errors, started = %s,"
            " completed = %s, run_after = NULL, attempts = attempts + 0, crashes = crashes + 0,"
            f" runner_id = NULL WHERE id IN ({', '.join(['%s'] * len(pks))})"
            " AND status = 'O' AND runner_id = 1 AND claims = 1",
            [now, now, *pks],
        )


def insert(first: str, count: str, queue_name: str) -> None:
    from benchmarks import jobs

    jobs.insert(range(int(first), int(first) + int(count)), queue_name)


def sleepers(count: str, seconds: str) -> None:
    from benchmarks import jobs
    from peasy_jobs.models import PeasyJobQueue

    rows = (
        PeasyJobQueue(**jobs.row(jobs.pause, number, float(seconds)))
        for number in range(int(count))
    )
    PeasyJobQueue.objects.bulk_create(rows, batch_size=1000)


def mix(count: str, seconds: str) -> None:
    """Insert a long job, numbered after all short ones, behind the first tenth of them."""
    from benchmarks import jobs
    from peasy_jobs.models import PeasyJobQueue

    jobs.insert(range(int(count) // 10))
    PeasyJobQueue.objects.create(**jobs.row(jobs.pause, int(count), float(seconds)))
    jobs.insert(range(int(count) // 10, int(count)))


def finished(count: str) -> None:
    from benchmarks import dashboard

    dashboard.insert(1, int(count), dashboard.ENDED, dashboard.OVER, keys=False)


def settle() -> None:
    from django.db import connection

    statements = {
        "sqlite": ["PRAGMA wal_checkpoint(TRUNCATE)"],
        "postgresql": ["VACUUM ANALYZE peasy_jobs_peasyjobqueue", "CHECKPOINT"],
        "mysql": [
            "ANALYZE TABLE peasy_jobs_peasyjobqueue",
            "FLUSH TABLES peasy_jobs_peasyjobqueue FOR EXPORT",
        ],
    }
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement)
            if cursor.description:
                cursor.fetchall()


def prune() -> float:
    from django.core.management import call_command

    from peasy_jobs.models import PeasyJobQueue

    PeasyJobQueue.objects.filter(status__in="QO").delete()
    before, started = PeasyJobQueue.objects.count(), perf_counter()
    call_command(
        "run_peasy", "--exit-on-empty", "--worker-type=thread", verbosity=0, stdout=sys.stderr
    )
    seconds = perf_counter() - started
    return (before - PeasyJobQueue.objects.count()) / seconds


COMMANDS: dict[str, Callable[..., Any]] = {
    do.__name__: do for do in (raw, compare, insert, sleepers, mix, finished, settle, prune)
}

if __name__ == "__main__":
    configure_django()
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
