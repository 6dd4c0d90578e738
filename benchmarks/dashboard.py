"""Measure the pages with 1,000,000 finished and 200,000 waiting jobs.

    python -m benchmarks.dashboard sqlite|postgres|mariadb

Uses the settings of the tests and its own database. Prints the server time of each page and of a
poll that finds nothing new, the best of several, and the number of queries of both without those
for the session and the user.
"""

import os
import re
import sys
import tempfile
import uuid
from pathlib import Path
from time import perf_counter
from typing import Any

FINISHED, WAITING, TIMES = 1_000_000, 200_000, 5
PAGES = (
    *(
        "",
        "?status=enqueued",
        "?status=completed",
        "?status=failed",
        "?status=ongoing",
        "?q=zzz",
        "?q=123",
    ),
    *("?queue=default", "?before=500000", "?status=failed&before=500000"),
)
ADMIN = (
    *(
        "",
        "?p=200",
        *(
            f"?status={word}"
            for word in ("enqueued", "completed", "failed", "ongoing", "cancelled")
        ),
    ),
    *(
        "?queue=default",
        "?job=shop.jobs.export",
        "?created=hour",
        "?created=week",
        "?status=failed&created=week",
    ),
    *("?status=failed&p=16", "?status=completed&p=200", "?status=enqueued&queue=default"),
    *("?q=zzz", "?q=export", "?q=123", "?status=failed&q=export", "123/change/", "123/delete/"),
)
DOCUMENTS = ("123", str(FINISHED + 123))
COLUMNS = (
    "title, job_name, queue_name, priority, status, status_msg, errors, claims, attempts, crashes,"
    " created"
)
ENDED = "CASE WHEN i % 5000 = 0 THEN 'X' WHEN i % 1000 = 0 THEN 'F' ELSE 'C' END"
OVER = "'2026-06-01 05:00:00'"


def insert(low: int, high: int, status: str, ended: str, *, keys: bool = True) -> None:
    """Insert jobs with these primary keys, or the next free ones without `keys`.

    `status` and `ended` are SQL expressions.
    """
    from django.db import connection

    numbers, source = (
        f"WITH RECURSIVE n(i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM n WHERE i < {high})",
        "n",
    )
    if connection.vendor == "mysql":  # limits recursion
        numbers, source = "", f"(SELECT seq AS i FROM seq_{low}_to_{high}) AS n"
    created, ended = (
        f"CAST({time} AS timestamp)" if connection.vendor == "postgresql" else time
        for time in ("'2026-06-01 04:00:00'", ended)
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"{numbers} INSERT INTO peasy_jobs_peasyjobqueue"
            f" ({'id, ' * keys}{COLUMNS}, started, completed)"
            f" SELECT {'i, ' * keys}'export data', 'shop.jobs.export', 'default', i % 3, {status},"
            f" 'Exporting rows', '[]', 1, 1, 0, {created}, {ended}, {ended} FROM {source}"
        )


def fill() -> None:
    from django.db import connection

    insert(1, FINISHED, ENDED, OVER)
    insert(FINISHED + 1, FINISHED + WAITING, "'Q'", "NULL")
    with connection.cursor() as cursor:
        cursor.execute(
            "ANALYZE TABLE peasy_jobs_peasyjobqueue" if connection.vendor == "mysql" else "ANALYZE"
        )


def measured(client: Any, path: str) -> tuple[Any, float, int]:
    """Return the response, its server time in milliseconds, and the number of our queries."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    times = []
    for _ in range(TIMES):
        started = perf_counter()
        answer = client.get(path)
        times.append(1000 * (perf_counter() - started))
    with CaptureQueriesContext(connection) as queries:
        client.get(path)
    ours = [
        query for query in queries if not re.search('FROM ["`](django_session|auth_)', query["sql"])
    ]
    return answer, min(times), len(ours)


def main(database: str) -> None:
    directory = tempfile.TemporaryDirectory()
    name = f"peasy_benchmark_{uuid.uuid4().hex[:12]}"
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tests.settings",
        PEASY_TEST_DATABASE=database,
        PEASY_TEST_DB_NAME=str(Path(directory.name) / "db.sqlite3")
        if database == "sqlite"
        else name,
    )
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.test import Client
    from django.test.utils import setup_test_environment

    from tests.torture.database import create, drop

    setup_test_environment()
    create(name)
    try:
        fill()
        client = Client()
        client.force_login(User.objects.create_superuser("anna"))
        measure_pages(database, client)
    finally:
        drop(name)
        directory.cleanup()


def measure_pages(database: str, client: Any) -> None:
    print(f"{database}, {FINISHED:,} finished and {WAITING:,} waiting jobs")
    print(f"{'page':32}{'ms':>8}{'queries':>9}{'poll, ms':>10}{'queries':>9}")
    for query in PAGES:
        page, time, count = measured(client, f"/peasy/{query}")
        assert page.status_code == 200
        version = page.context["version"]
        poll, again, least = measured(
            client, f"/peasy/live/{query}{'&' if query else '?'}v={version}"
        )
        assert poll.status_code == 204
        print(f"/peasy/{query:25}{time:8.1f}{count:9}{again:10.1f}{least:9}")
    for pk in DOCUMENTS:
        document, time, count = measured(client, f"/peasy/jobs/{pk}.json")
        assert document.json()["id"] == pk
        print(f"/peasy/{f'jobs/{pk}.json':25}{time:8.1f}{count:9}")
    for path in ADMIN:
        page, time, count = measured(client, f"/admin/peasy_jobs/peasyjobqueue/{path}")
        assert page.status_code == 200, page
        print(f"admin: {path:25}{time:8.1f}{count:9}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite")
