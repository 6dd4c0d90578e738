"""Which jobs the pages list, and how many there are. Reads only, in time that does not grow with the table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.db.models import CharField, Count, F, Q, QuerySet, Subquery, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Coalesce
from django.utils.http import urlencode

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import BY_LETTER, BY_WORD
from peasy_jobs.store.clock import NOW, as_moment
from peasy_jobs.web.status_document import LARGEST_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

Part = tuple[str, tuple[Any, ...]]  # SQL and its parameters
PAGE = 50  # jobs on a page
CAP = 10_001  # that are counted at the most: shown as 10,000+
WINDOW = 10_000  # of the newest jobs that a search or a queue looks at
SEEN = ("pk", "status", "status_msg", "extra", "attempts", "completed", "started", "title")
RUNNERS, RUNNING = 50, 200  # shown at the most
WIDTH = 8  # texts of a row in a look, after its kind
PADDING = ", ''" * (WIDTH - 2)
LISTED = Q(pk__gte=0)  # always true, and the index of the list needs to hear it: see the model


def key(text: str) -> int | None:
    """The primary key that a text is; None when it is none that a database can be asked for."""
    return (
        int(text)
        if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST_KEY
        else None
    )


@dataclass(frozen=True)
class Filters:
    """What the address of the page asks for. Whatever it says, there is an answer."""

    status: str = ""
    queue: str = ""
    q: str = ""
    before: int | None = None
    after: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        status = query.get("status", "")
        before, after = key(query.get("before", "")), key(query.get("after", ""))
        return cls(
            status=status if status in BY_WORD else "",
            queue=_text(query.get("queue", ""), 64),
            q=_text(query.get("q", ""), 200).strip(),
            before=before,
            after=after if before is None else None,
        )

    @property
    def narrow(self) -> bool:
        """Whether only the newest jobs are looked at: there is no index for this."""
        return bool(self.queue or self.q)

    def query(self, **changes: Any) -> str:
        """The query string of this page with some changes; a change of the filter leads to its first page."""
        new = replace(self, **{"before": None, "after": None, **changes})
        given = {name: value for name, value in vars(new).items() if value not in ("", None)}
        return f"?{urlencode(given)}" if given else ""


class Snapshot(NamedTuple):
    """What one look has found: enough to know whether a page that was drawn before is still right."""

    now: datetime
    counts: dict[str, int]
    pks: list[int]  # of the page, and one more if there are more
    running: list[int]
    version: str


def look(filters: Filters) -> Snapshot:
    """PollWakeup at everything that the page shows, in one query."""
    connection = connections[PeasyJobQueue.objects.db]
    text = "char" if connection.vendor == "mysql" else "text"
    now = NOW[connection.vendor].replace("%", "%%")
    parts: list[Part] = [(f"SELECT 'now', '', CAST(({now}) AS {text}){PADDING}", ())]
    if filters.narrow:
        counted = _window(filters).order_by().values("status").annotate(count=Count("pk"))
        parts.append(_columns(counted, "count", "status", "count"))
    else:
        parts += [_counted(letter) for letter in BY_LETTER]
    # Not by key, in which order the table would be read through.
    running = PeasyJobQueue.objects.filter(runner__isnull=False).order_by("runner_id", "pk")[
        :RUNNING
    ]
    runners = PeasyRunner.objects.order_by("host", "pk")[:RUNNERS]
    parts += [
        _columns(_page(filters), "row", *SEEN),
        _columns(running, "running", "pk", "runner", "started", "status", "title"),
        _columns(runners, "runner", "pk", "heartbeat", "lease_until"),
    ]
    sql, params = (
        " UNION ALL ".join(sql for sql, _ in parts),
        [param for _, params in parts for param in params],
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return _snapshot(cursor.fetchall())


def _page(filters: Filters) -> QuerySet[PeasyJobQueue]:
    """The jobs of one page and one more: the newest first, or the nearest first after a key."""
    letter = BY_WORD[filters.status].letter if filters.status else ""
    if letter and not filters.narrow and filters.before is None and filters.after is None:
        return listed(letter)[: PAGE + 1]
    jobs = _window(filters) if filters.narrow else PeasyJobQueue.objects.all()
    if filters.before is not None:
        jobs = jobs.filter(pk__lt=filters.before)
    if filters.after is not None:
        jobs = jobs.filter(pk__gt=filters.after)
    if letter:
        jobs = jobs.filter(LISTED, status=letter)
    return jobs.order_by("-pk" if filters.after is None else "pk")[: PAGE + 1]


def listed(letter: str, jobs: QuerySet[PeasyJobQueue] | None = None) -> QuerySet[PeasyJobQueue]:
    """The jobs in this status, the newest first."""
    jobs = (PeasyJobQueue.objects.all() if jobs is None else jobs).filter(LISTED)
    if connections[jobs.db].vendor == "postgresql":
        # A range of one, in the order of the index. For an equal status it would go by key alone, and where that status
        # is frequent read the table from its end: 25 ms behind 200,000 others. MariaDB would sort the range.
        return jobs.filter(status__range=(letter, letter)).order_by("-status", "-pk")
    return jobs.filter(status=letter).order_by("-pk")


def newest(letter: str = "") -> Q:
    """Only the newest `WINDOW` jobs, or those of a status: what has no index is looked for among these."""
    jobs = listed(letter) if letter else PeasyJobQueue.objects.order_by("-pk")
    if connections[jobs.db].vendor == "mysql":
        # It knows no bound of a range before it runs, and would read the whole table: a second, a million rows.
        sql, params = _compiled(jobs.values_list("pk")[:WINDOW])
        return Q(pk__in=RawSQL(f"SELECT * FROM ({sql}) AS newest", params))  # noqa: S608, S611  the LIMIT comes first
    edge = jobs.values("pk")[WINDOW - 1 : WINDOW]
    return (
        Q(pk__gte=Coalesce(Subquery(edge), 0)) & LISTED
    )  # in this order: SQLite goes by the first of two bounds


def search(jobs: QuerySet[PeasyJobQueue], q: str, letter: str = "") -> QuerySet[PeasyJobQueue]:
    """Those of these jobs that say this, among the newest, or those of a status; by its number one of any age."""
    pk = key(q)
    if pk is not None:
        return jobs.filter(pk=pk)
    says = Q(title__icontains=q) | Q(job_name__icontains=q) | Q(status_msg__icontains=q)
    return jobs.filter(newest(letter), says)


def names() -> list[tuple[str, ...]]:
    """The queues and job functions of the newest jobs, in pairs."""
    jobs = PeasyJobQueue.objects.order_by("-pk")
    sql, params = _compiled(jobs.values_list("queue_name", "job_name")[:WINDOW])
    # Not `newest()`: PostgreSQL expects a third of the table from that and reads all of it.
    part = f"SELECT DISTINCT queue_name, job_name FROM ({sql}) AS newest"  # noqa: S608  the LIMIT comes first
    with connections[jobs.db].cursor() as cursor:
        cursor.execute(part, params)
        return list(cursor.fetchall())


def _window(filters: Filters) -> QuerySet[PeasyJobQueue]:
    jobs = PeasyJobQueue.objects.all()
    if filters.queue:
        jobs = jobs.filter(queue_name=filters.queue)
    return search(jobs, filters.q) if filters.q else jobs.filter(newest())


def _counted(letter: str) -> Part:
    jobs = listed(letter)
    sql, params = _compiled(jobs.values("status")[:CAP])
    text = "char" if connections[jobs.db].vendor == "mysql" else "text"
    return (
        f"SELECT 'count', '{letter}', CAST(COUNT(*) AS {text}){PADDING} FROM ({sql}) AS counted",  # noqa: S608
        params,
    )


def _columns(rows: QuerySet[Any], kind: str, *names: str) -> Part:
    """Some columns of these rows as texts, `WIDTH` of them."""
    texts = {f"text_{n}": Cast(F(name), TextField()) for n, name in enumerate(names)}
    padding = {f"text_{n}": Value("", TextField()) for n in range(len(names), WIDTH)}
    rows = rows.annotate(kind=Value(kind, CharField()), **texts, **padding)
    sql, params = _compiled(rows.values_list("kind", *texts, *padding))
    return f"SELECT * FROM ({sql}) AS part", params  # noqa: S608  its own LIMIT needs brackets


def _compiled(rows: QuerySet[Any]) -> Part:
    sql, params = rows.query.get_compiler(using=rows.db).as_sql()
    return sql, tuple(params)


def _snapshot(found: list[tuple[str, ...]]) -> Snapshot:
    now = as_moment(next(row[2] for row in found if row[0] == "now"))
    counts = dict.fromkeys(BY_LETTER, 0)
    for kind, letter, count, *_ in found:
        if kind == "count" and letter in counts:
            counts[letter] = int(count)
    seen = [row if row[0] != "runner" else _seen(row, now) for row in found if row[0] != "now"]
    digest = hashlib.sha256(repr(sorted(map(str, seen))).encode()).hexdigest()[:16]
    pks = [int(row[1]) for row in found if row[0] == "row"]
    running = [int(row[1]) for row in found if row[0] == "running"]
    return Snapshot(now, counts, sorted(pks, reverse=True), running, digest)


def _seen(runner: tuple[str, ...], now: datetime) -> tuple[Any, ...]:
    # A heartbeat comes every few seconds: the page says the minute.
    return ("runner", runner[1], runner[2][:16], float(runner[3]) >= now.timestamp())


def _text(text: str, limit: int) -> str:
    return "".join(letter for letter in text[:limit] if letter.isprintable())
