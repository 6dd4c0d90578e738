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

from peasy_jobs import database, listing, overview
from peasy_jobs.models import PeasyJobQueue

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


def database_now(request: HttpRequest) -> datetime:
    """The database's time, the same for all of an answer."""
    connection = connections[PeasyJobQueue.objects.all().db]
    moment: datetime = _once(request, "now", lambda: database.database_now(connection))
    return moment


def word(request: HttpRequest) -> str:
    """The status that is asked for, or an empty string."""
    asked = request.GET.get("status", "")
    return asked if asked in listing.LETTERS else ""


def few(request: HttpRequest) -> bool:
    """Whether a status is asked for that has few jobs: those are looked at one by one, whatever else is asked."""
    return bool(_once(request, "few", lambda: bool(word(request)) and listing.few(word(request))))


class StatusFilter(admin.SimpleListFilter):
    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        labels = dict(PeasyJobQueue.STATUS_CHOICES)
        return [(word, labels[letter]) for word, letter in listing.LETTERS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        word = self.value()
        return queryset.filter(listing.LISTED, status=listing.LETTERS[word]) if word in listing.LETTERS else queryset


class NameFilter(admin.SimpleListFilter):
    """By a name that the newest jobs have: those of all jobs would take a look at each."""

    place: int  # in the pairs of `listing.names`
    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = {pair[self.place] for pair in _once(request, "names", listing.names)}
        offered = sorted(names)[:CHOICES]
        value = self.value()
        return [(name, name) for name in ([*offered, value] if value and value not in offered else offered)]

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
        return queryset.filter(created__gte=database.as_field(database_now(request) - period[1]))


class JobList(ChangeList):
    """The newest 10,000 jobs, or of a status that has fewer all: pages and counts that never cost the whole table."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        jobs = super().get_queryset(request, exclude_parameters)
        self.word, self.few = word(request), few(request)
        searched, filtered = bool(self.query.strip()), bool(set(self.get_filters_params()) - {"status"})
        self.narrow = (searched or filtered) and not self.few
        return jobs.filter(listing.newest()) if self.narrow and not searched else jobs  # a search does it itself

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]  # whatever the address says: there is no other that an index gives

    def get_results(self, request: HttpRequest) -> None:
        keys, found = self._keys()
        count = min(found, listing.WINDOW)
        self.paginator = Paginator(range(count), self.list_per_page)
        try:
            places = self.paginator.page(self.page_num).object_list
        except InvalidPage:
            raise IncorrectLookupParameters from None
        pks = list(keys[places.start : places.stop])
        # Neither arguments nor results, and only now: what sorts the keys need not carry all this.
        jobs = PeasyJobQueue.objects.select_related("user").only(*overview.COLUMNS, "job_name", "user").in_bulk(pks)
        moment = database.as_field(database_now(request))
        self.result_list = [jobs[pk] for pk in pks if pk in jobs]
        for job in self.result_list:
            job.row = overview.row(job, moment)
        self.result_count, self.capped = count, found > count
        self.full_result_count = count if self.capped else None  # the same: the search box says no number
        self.show_full_result_count, self.show_admin_actions = False, True
        self.can_show_all, self.multi_page = False, count > self.list_per_page

    def _keys(self) -> tuple[Any, int]:
        """The primary keys to page through, the newest first, and how many there are: `CAP` or more for too many."""
        jobs = self.queryset
        if self.few:
            found = jobs.order_by().values_list("pk", flat=True)
            return sorted(found, reverse=True), len(found)
        if self.word and not self.narrow:
            return listing.listed(listing.LETTERS[self.word]).values_list("pk", flat=True), listing.CAP
        keys = list(jobs.values_list("pk", flat=True)[: listing.CAP])
        return keys, len(keys)


class RunnerList(ChangeList):
    """The runners, and what they are doing for whoever may see jobs."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        described = self.model_admin.described  # type: ignore[attr-defined]
        self.result_list = described(request, self.result_list)
