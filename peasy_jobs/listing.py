"""Which jobs the dashboard lists, and how many there are. Reads only, in time that does not grow with the table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.db.models import CharField, Count, F, Q, QuerySet, Subquery, TextField, Value
from django.db.models.functions import Cast, Coalesce
from django.utils.http import urlencode

from peasy_jobs import database
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.queue import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.status import LARGEST_KEY, WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = 50  # jobs on a page
CAP = 10_001  # that are counted at the most: shown as 10,000+
WINDOW = 10_000  # of the newest jobs that a search or a queue looks at
SEEN = ("pk", "status", "status_msg", "extra", "attempts", "completed", "started", "title")
RUNNERS, RUNNING = 50, 200  # shown at the most
WIDTH = 8  # texts of a row in a look, after its kind
PADDING = ", ''" * (WIDTH - 2)
LETTERS = {word: letter for letter, word in WORDS.items()}
# What makes each status countable in an index, see the indexes of the model.
INDEXED = {
    ENQUEUED: (Q(claims__gte=0),),
    SCHEDULED: (Q(),),
    ONGOING: (Q(runner__isnull=False),),
    COMPLETED: (Q(completed__isnull=False),),
    FAILED: (Q(completed__isnull=False),),
    CANCELLED: (Q(completed__isnull=False), Q(completed__isnull=True)),
}
# As they lie there: with a LIMIT alone PostgreSQL would read the table until it has met enough of them.
ORDER = {
    ENQUEUED: ("-priority", "pk"),
    SCHEDULED: ("run_after",),
    ONGOING: ("runner_id",),
    **dict.fromkeys((COMPLETED, FAILED, CANCELLED), ("completed", "pk")),
}


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
        before, after = _key(query.get("before", "")), _key(query.get("after", ""))
        return cls(
            status=status if status in LETTERS else "",
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
        new = replace(self, before=None, after=None, **changes) if "before" not in changes else replace(self, **changes)
        given = {name: value for name, value in vars(new).items() if value not in ("", None)}
        return f"?{urlencode(given)}" if given else ""


class Snapshot(NamedTuple):
    """What one look has found: enough to know whether a page that was drawn before is still right."""

    now: datetime
    counts: dict[str, int]
    pks: list[int]  # of the page, and one more if there are more
    running: list[int]
    version: str


def look(filters: Filters, known: str = "") -> Snapshot:
    """Look at everything that the page shows, in one query. known: the version of the page as it was drawn before."""
    connection = connections[PeasyJobQueue.objects.all().db]
    dense = known.endswith("d")
    if not known and filters.status and not filters.narrow:
        dense = _execute(connection, [_counted(filters.status)])[0][2] == str(CAP)
    text = "char" if connection.vendor == "mysql" else "text"
    now = database.NOW[connection.vendor].replace("%", "%%")
    parts = [(f"SELECT 'now', '', CAST(({now}) AS {text}){PADDING}", ())]
    if filters.narrow:
        counted = _window(filters).order_by().values("status").annotate(count=Count("pk"))
        parts.append(_columns(counted, Value("count"), "status", "count"))
    else:
        parts += [_counted(word, condition) for word in LETTERS for condition in INDEXED[LETTERS[word]]]
    # Not by key, in which order the table would be read through.
    running = PeasyJobQueue.objects.filter(runner__isnull=False).order_by("runner_id", "pk")[:RUNNING]
    runners = PeasyRunner.objects.order_by("host", "pk")[:RUNNERS]
    parts += [
        *(_columns(rows, Value("row"), *SEEN) for rows in page(filters, dense)),
        _columns(running, Value("running"), "pk", "runner", "started", "status", "title"),
        _columns(runners, Value("runner"), "pk", "heartbeat", "lease_until"),
    ]
    snapshot = _snapshot(_execute(connection, parts), "d" if dense else "s")
    newest_first = sorted(snapshot.pks, reverse=filters.after is None)[: PAGE + 1]
    return snapshot._replace(pks=sorted(newest_first, reverse=True))


def page(filters: Filters, dense: bool) -> list[QuerySet[PeasyJobQueue]]:
    """The jobs of one page and one more, the newest first, or the nearest first after a key. One list for each index.

    dense: many jobs are in this status, so the newest of them are soon met. Otherwise they come out of an index.
    """
    jobs = _window(filters) if filters.narrow else PeasyJobQueue.objects.all()
    if filters.before is not None:
        jobs = jobs.filter(pk__lt=filters.before)
    if filters.after is not None:
        jobs = jobs.filter(pk__gt=filters.after)
    # Plus nothing: an order that the table is not in, or it would be read through from its end.
    conditions: tuple[Q, ...] = (Q(),)
    key: Any = F("pk") + 0
    if filters.status:
        jobs = jobs.filter(status=LETTERS[filters.status])
    if filters.status and not dense and not filters.narrow:
        conditions = INDEXED[LETTERS[filters.status]]
    else:
        key = F("pk")
    order = key.desc() if filters.after is None else key.asc()
    return [jobs.filter(condition).order_by(order)[: PAGE + 1] for condition in conditions]


def _window(filters: Filters) -> QuerySet[PeasyJobQueue]:
    newest = PeasyJobQueue.objects.order_by("-pk").values("pk")[WINDOW - 1 : WINDOW]
    jobs = PeasyJobQueue.objects.filter(pk__gte=Coalesce(Subquery(newest), 0))
    if filters.queue:
        jobs = jobs.filter(queue_name=filters.queue)
    if filters.q.isascii() and filters.q.isdecimal():
        pk = int(filters.q) if len(filters.q) < 20 else LARGEST_KEY + 1
        # By its key a job is found however old it is.
        jobs = PeasyJobQueue.objects.filter(pk=pk) if pk <= LARGEST_KEY else PeasyJobQueue.objects.filter(pk=-1)
        return jobs.filter(queue_name=filters.queue) if filters.queue else jobs
    if filters.q:
        q = filters.q
        jobs = jobs.filter(Q(title__icontains=q) | Q(job_name__icontains=q) | Q(status_msg__icontains=q))
    return jobs


def _counted(word: str, condition: Q | None = None) -> tuple[str, tuple[Any, ...]]:
    letter = LETTERS[word]
    where = INDEXED[letter][0] if condition is None else condition
    jobs = PeasyJobQueue.objects.filter(where, status=letter).order_by(*ORDER[letter])
    sql, params = _compiled(jobs.values("status")[:CAP])
    text = "char" if connections[jobs.db].vendor == "mysql" else "text"
    return f"SELECT 'count', '{letter}', CAST(COUNT(*) AS {text}){PADDING} FROM ({sql}) AS counted", params  # noqa: S608


def _columns(rows: QuerySet[Any], kind: Value, *names: str) -> tuple[str, tuple[Any, ...]]:
    """Some columns of these rows as texts, `WIDTH` of them."""
    texts = {f"text_{n}": Cast(F(name), TextField()) for n, name in enumerate(names)}
    padding = {f"text_{n}": Value("", TextField()) for n in range(len(names), WIDTH)}
    kind = Value(kind.value, CharField())
    sql, params = _compiled(rows.annotate(kind=kind, **texts, **padding).values_list("kind", *texts, *padding))
    return f"SELECT * FROM ({sql}) AS part", params  # noqa: S608  its own LIMIT needs brackets


def _compiled(rows: QuerySet[Any]) -> tuple[str, tuple[Any, ...]]:
    sql, params = rows.query.get_compiler(using=rows.db).as_sql()
    return sql, tuple(params)


def _execute(connection: Any, parts: list[tuple[str, tuple[Any, ...]]]) -> list[tuple[str, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(sql for sql, _ in parts), [param for _, params in parts for param in params])
        return list(cursor.fetchall())


def _snapshot(found: list[tuple[str, ...]], plan: str) -> Snapshot:
    now = database.as_moment(next(row[2] for row in found if row[0] == "now"))
    counts = dict.fromkeys(WORDS, 0)
    for kind, letter, count, *_ in found:
        if kind == "count" and letter in counts:
            counts[letter] = min(CAP, counts[letter] + int(count))
    seen = [row if row[0] != "runner" else _seen(row, now) for row in found if row[0] != "now"]
    digest = hashlib.sha256(repr(sorted(map(str, seen))).encode()).hexdigest()[:16]
    pks = [int(row[1]) for row in found if row[0] == "row"]
    running = [int(row[1]) for row in found if row[0] == "running"]
    return Snapshot(now, counts, sorted(pks, reverse=True), running, digest + plan)


def _seen(runner: tuple[str, ...], now: datetime) -> tuple[Any, ...]:
    # A heartbeat comes every few seconds: the page says the minute.
    return ("runner", runner[1], runner[2][:16], float(runner[3]) >= now.timestamp())


def _key(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST_KEY else None


def _text(text: str, limit: int) -> str:
    return "".join(letter for letter in text[:limit] if letter.isprintable())
