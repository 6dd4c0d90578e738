"""What the dashboard shows at one moment, read in one query.

A poll compares the version of the snapshot with that of the page, so most polls end here.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.db.models import CharField, Count, F, QuerySet, TextField, Value
from django.db.models.functions import Cast

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import BY_LETTER
from peasy_jobs.store.clock import NOW, as_moment
from peasy_jobs.web import listing
from peasy_jobs.web.listing import SQL, compiled

if TYPE_CHECKING:
    from peasy_jobs.web.filters import Filters

RUNNERS_SHOWN = 50
RUNNING_JOBS_SHOWN = 200

# The visible columns of a listed job: any change of them changes the version.
JOB_COLUMNS = ("pk", "status", "status_msg", "extra", "attempts", "completed", "started", "title")
RUNNING_COLUMNS = ("pk", "runner", "started", "status", "title")
RUNNER_COLUMNS = ("pk", "heartbeat", "lease_until")

WIDTH = len(JOB_COLUMNS)  # each SELECT of the union has a kind and this many texts
MINUTE = len("2026-06-01 12:00")  # characters of a time to the minute


class Snapshot(NamedTuple):
    now: datetime
    counts: dict[str, int]  # by the letter of the status; stops above `listing.COUNT_LIMIT`
    pks: list[int]  # the newest first; one more than a page has if there are more
    running: list[int]  # the jobs that runners hold
    version: str  # changes with everything the page shows


class Runner(NamedTuple):
    pk: str
    heartbeat: str
    lease_until: str


def take(filters: Filters) -> Snapshot:
    """Return a snapshot of what the dashboard shows for these filters. One query."""
    connection = connections[PeasyJobQueue.objects.db]
    parts = [_now(), *_counts(filters), *_rows(filters)]
    with connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(part.text for part in parts),
            [param for part in parts for param in part.params],
        )
        return _parse(cursor.fetchall())


def _now() -> SQL:
    now = NOW[connections[PeasyJobQueue.objects.db].vendor].replace("%", "%%")
    return _constants(f"'now', CAST(({now}) AS {_text_type()})", columns=1)


def _counts(filters: Filters) -> list[SQL]:
    if not filters.narrow:
        return [_count(letter) for letter in BY_LETTER]
    jobs = listing.matching(filters).order_by()
    counts = jobs.values("status").annotate(count=Count("pk"))
    return [_as_texts(counts, "count", ("status", "count"))]


def _count(letter: str) -> SQL:
    jobs = compiled(listing.in_status(letter).values("status")[: listing.COUNT_LIMIT + 1])
    columns = f"'count', '{letter}', CAST(COUNT(*) AS {_text_type()})"
    return _constants(columns, columns=2, source=jobs)


def _rows(filters: Filters) -> list[SQL]:
    # Ordered by the index of `runner`: by key, the whole table would be read.
    running = PeasyJobQueue.objects.filter(runner__isnull=False).order_by("runner_id", "pk")
    runners = PeasyRunner.objects.order_by("host", "pk")
    return [
        _as_texts(listing.page(filters), "job", JOB_COLUMNS),
        _as_texts(running[:RUNNING_JOBS_SHOWN], "running", RUNNING_COLUMNS),
        _as_texts(runners[:RUNNERS_SHOWN], "runner", RUNNER_COLUMNS),
    ]


def _constants(expressions: str, *, columns: int, source: SQL | None = None) -> SQL:
    """Return a SELECT of a kind and `columns` texts, padded to the width of the union."""
    padding = ", ''" * (WIDTH - columns)
    if source is None:
        return SQL(f"SELECT {expressions}{padding}", ())
    select = f"SELECT {expressions}{padding} FROM ({source.text}) AS counted"  # noqa: S608
    return SQL(select, source.params)


def _as_texts(rows: QuerySet[Any], kind: str, columns: tuple[str, ...]) -> SQL:
    """Return a SELECT of a kind and these columns as texts, padded to the width of the union."""
    texts = {f"text_{n}": Cast(F(name), TextField()) for n, name in enumerate(columns)}
    padding = {f"text_{n}": Value("", TextField()) for n in range(len(columns), WIDTH)}
    rows = rows.annotate(kind=Value(kind, CharField()), **texts, **padding)
    query = compiled(rows.values_list("kind", *texts, *padding))
    # In brackets, so that its LIMIT is its own.
    return SQL(f"SELECT * FROM ({query.text}) AS part", query.params)  # noqa: S608


def _text_type() -> str:
    vendor = connections[PeasyJobQueue.objects.db].vendor
    return "char" if vendor == "mysql" else "text"


def _parse(rows: list[tuple[str, ...]]) -> Snapshot:
    by_kind: defaultdict[str, list[list[str]]] = defaultdict(list)
    for kind, *texts in rows:
        by_kind[kind].append(texts)
    ((now_text, *_),) = by_kind.pop("now")
    now = as_moment(now_text)
    counts = dict.fromkeys(BY_LETTER, 0)
    for letter, count, *_ in by_kind["count"]:
        if letter in counts:  # a row may have a status that does not exist
            counts[letter] = int(count)
    runners = [Runner(*texts[: len(RUNNER_COLUMNS)]) for texts in by_kind.pop("runner", [])]
    return Snapshot(
        now=now,
        counts=counts,
        pks=sorted((int(pk) for pk, *_ in by_kind["job"]), reverse=True),
        running=[int(pk) for pk, *_ in by_kind["running"]],
        version=_version(by_kind, [_visible(runner, now) for runner in runners]),
    )


def _visible(runner: Runner, now: datetime) -> tuple[str, str, bool]:
    # The page shows the minute of the heartbeat, which changes every few seconds.
    is_alive = float(runner.lease_until) >= now.timestamp()
    return runner.pk, runner.heartbeat[:MINUTE], is_alive


def _version(by_kind: dict[str, list[list[str]]], runners: list[tuple[str, str, bool]]) -> str:
    seen = [f"{kind} {texts}" for kind, rows in by_kind.items() for texts in rows]
    seen += [f"runner {runner}" for runner in runners]
    return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()[:16]
