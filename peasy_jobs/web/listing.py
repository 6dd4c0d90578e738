"""The jobs that dashboard and admin list. The cost of a query does not grow with the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.db.models import Q, QuerySet, Subquery
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import keys

if TYPE_CHECKING:
    from peasy_jobs.web.filters import Filters

PAGE_SIZE = 50
COUNT_LIMIT = 10_000  # a status with more jobs is shown as "10,000+"
WINDOW = 10_000  # the newest jobs, to which searches and filters without an index are limited

# Always true. The condition of the index `peasy_listed`, which is used only if a query states it.
IS_LISTED = Q(pk__gte=0)


class Names(NamedTuple):
    """A queue and a job function that occur together."""

    queue_name: str
    job_name: str


class SQL(NamedTuple):
    text: str
    params: tuple[Any, ...]


def page(filters: Filters) -> QuerySet[PeasyJobQueue]:
    """Return the jobs of one page, plus one if there are more.

    They are the newest first, except for a page after a key: there the job nearest to the key is
    first.
    """
    letter = filters.letter
    if letter and filters.is_first_page and not filters.narrow:
        return in_status(letter)[: PAGE_SIZE + 1]
    jobs = matching(filters) if filters.narrow else PeasyJobQueue.objects.all()
    if filters.before is not None:
        jobs = jobs.filter(pk__lt=filters.before)
    if filters.after is not None:
        jobs = jobs.filter(pk__gt=filters.after)
    if letter:
        jobs = jobs.filter(IS_LISTED, status=letter)
    return jobs.order_by("-pk" if filters.after is None else "pk")[: PAGE_SIZE + 1]


def matching(filters: Filters) -> QuerySet[PeasyJobQueue]:
    """Return the jobs among the newest that match queue and search text, in any status."""
    jobs = PeasyJobQueue.objects.all()
    if filters.queue:
        jobs = jobs.filter(queue_name=filters.queue)
    return search(jobs, filters.q) if filters.q else jobs.filter(among_newest())


def search(jobs: QuerySet[PeasyJobQueue], text: str, letter: str = "") -> QuerySet[PeasyJobQueue]:
    """Limit `jobs` to those that contain a text, among the newest (of the status `letter`).

    A number finds the job with this primary key, however old it is.
    """
    pk = keys.parse(text)
    if pk is not None:
        return jobs.filter(pk=pk)
    contains = (
        Q(title__icontains=text) | Q(job_name__icontains=text) | Q(status_msg__icontains=text)
    )
    return jobs.filter(among_newest(letter), contains)


def in_status(letter: str, jobs: QuerySet[PeasyJobQueue] | None = None) -> QuerySet[PeasyJobQueue]:
    """Return the jobs in a status, the newest first."""
    jobs = (PeasyJobQueue.objects.all() if jobs is None else jobs).filter(IS_LISTED)
    if connections[jobs.db].vendor == "postgresql":
        # A range of one value, in the order of the index. For `status = …`, PostgreSQL would sort
        # by key alone and, where the status is frequent, read the table from its end: 25 ms behind
        # 200,000 other jobs. MariaDB would sort the range.
        return jobs.filter(status__range=(letter, letter)).order_by("-status", "-pk")
    return jobs.filter(status=letter).order_by("-pk")


def among_newest(letter: str = "") -> Q:
    """Return the condition that a job is one of the newest `WINDOW` jobs (of a status)."""
    jobs = in_status(letter) if letter else PeasyJobQueue.objects.order_by("-pk")
    if connections[jobs.db].vendor == "mysql":
        # MariaDB does not know the bound of a range before it runs, and would read the whole
        # table: one second for a million rows.
        newest = compiled(jobs.values_list("pk")[:WINDOW])
        wrapped = f"SELECT * FROM ({newest.text}) AS newest"  # noqa: S608  keeps the LIMIT inside
        return Q(pk__in=RawSQL(wrapped, newest.params))  # noqa: S611
    oldest_of_them = jobs.values("pk")[WINDOW - 1 : WINDOW]
    # In this order: SQLite uses the first of two bounds.
    return Q(pk__gte=Coalesce(Subquery(oldest_of_them), 0)) & IS_LISTED


def names_in_use() -> list[Names]:
    """Return the queues and job functions of the newest jobs. One query."""
    jobs = PeasyJobQueue.objects.order_by("-pk")
    newest = compiled(jobs.values_list("queue_name", "job_name")[:WINDOW])
    # Not `among_newest()`: PostgreSQL expects a third of the table from that and reads all of it.
    query = f"SELECT DISTINCT queue_name, job_name FROM ({newest.text}) AS newest"  # noqa: S608
    with connections[jobs.db].cursor() as cursor:
        cursor.execute(query, newest.params)
        return [Names(*row) for row in cursor.fetchall()]


def compiled(rows: QuerySet[Any]) -> SQL:
    """Return a query as SQL with its parameters."""
    text, params = rows.query.get_compiler(using=rows.db).as_sql()
    return SQL(text, tuple(params))
