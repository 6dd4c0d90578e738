"""Which jobs and runners the admin lists, and its filters: at a cost that does not grow with the table. Reads only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import InvalidPage, Paginator
from django.db import connections
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import BY_WORD, STATUSES
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import filters, presenters

CHOICES = 50  # queues or job functions that are offered
PERIODS = {
    "hour": (gettext_lazy("Last hour"), timedelta(hours=1)),
    "day": (gettext_lazy("Last 24 hours"), timedelta(days=1)),
    "week": (gettext_lazy("Last 7 days"), timedelta(days=7)),
}


def _once(request: HttpRequest, name: str, find: Callable[[], Any]) -> Any:
    """What several parts of a page need, found once for each request."""
    found: dict[str, Any] = request.__dict__.setdefault("_peasy_jobs", {})
    if name not in found:
        found[name] = find()
    return found[name]


def now_of(request: HttpRequest) -> datetime:
    """The database's time, the same for all of an answer."""
    connection = connections[PeasyJobQueue.objects.all().db]
    moment: datetime = _once(request, "now", lambda: database_now(connection))
    return moment


def status(request: HttpRequest) -> str:
    """The status that is asked for, or an empty string."""
    found = BY_WORD.get(request.GET.get("status", ""))
    return found.letter if found else ""


class StatusFilter(admin.SimpleListFilter):
    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(status.word, status.label) for status in STATUSES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        letter = status(request)
        return queryset.filter(status=letter) if letter else queryset


class NameFilter(admin.SimpleListFilter):
    """By a name that the newest jobs have: those of all jobs would take a look at each."""

    place: int  # in the pairs of `listing.names`
    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = {pair[self.place] for pair in _once(request, "names", filters.names)}
        offered = sorted(names)[:CHOICES]
        value = self.value()
        return [
            (name, name)
            for name in ([*offered, value] if value and value not in offered else offered)
        ]

    def value(self) -> str | None:
        return (super().value() or "").replace("\0", "") or None  # PostgreSQL can be asked for none

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 1 or bool(self.value())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.column: self.value()}) if self.value() else queryset


class QueueFilter(NameFilter):
    title, parameter_name, column, place = gettext_lazy("queue"), "queue", "queue_name", 0


class JobFilter(NameFilter):
    title, parameter_name, column, place = gettext_lazy("job"), "job", "job_name", 1


class CreatedFilter(admin.SimpleListFilter):
    title = gettext_lazy("created")
    parameter_name = "created"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(name, label) for name, (label, period) in PERIODS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        period = PERIODS.get(self.value() or "")
        if period is None:
            return queryset
        return queryset.filter(created__gte=as_field(now_of(request) - period[1]))


class JobList(ChangeList):
    """The newest 10,000 jobs, or those of a status: pages and counts that never cost the whole table."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        jobs = super().get_queryset(request, exclude_parameters)
        self.letter = letter = status(request)
        searched, filtered = (
            bool(self.query.strip()),
            bool(set(self.get_filters_params()) - {"status"}),
        )
        self.narrow = searched or filtered
        if not self.narrow:
            return filters.listed(letter, self.root_queryset) if letter else jobs
        return jobs if searched else jobs.filter(filters.newest(letter))  # a search does it itself

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]  # whatever the address says: there is no other that an index gives

    def get_results(self, request: HttpRequest) -> None:
        keys = list(self.queryset.values_list("pk", flat=True)[: filters.CAP])
        count = min(len(keys), filters.WINDOW)
        self.paginator = Paginator(keys[:count], self.list_per_page)
        try:
            pks = self.paginator.page(self.page_num).object_list
        except InvalidPage:
            raise IncorrectLookupParameters from None
        # Neither arguments nor results, and only now: what sorts the keys need not carry all this.
        jobs = (
            PeasyJobQueue.objects.select_related("user")
            .only(*presenters.COLUMNS, "job_name", "user")
            .in_bulk(pks)
        )
        moment = as_field(now_of(request))
        self.result_list = [jobs[pk] for pk in pks if pk in jobs]
        for job in self.result_list:
            job.row = presenters.row(job, moment)
        self.result_count, self.capped = count, len(keys) > count
        self.full_result_count = (
            count if self.capped else None
        )  # the same: the search box says no number
        self.show_full_result_count, self.show_admin_actions = False, True
        self.can_show_all, self.multi_page = False, count > self.list_per_page


class RunnerList(ChangeList):
    """The runners, and what they are doing for whoever may see jobs."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        error_entry = self.model_admin.error_entry  # type: ignore[attr-defined]
        self.result_list = error_entry(request, self.result_list)
