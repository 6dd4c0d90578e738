"""The lists of the admin and their filters. The cost of a page does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import InvalidPage, Paginator
from django.db import connections
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import BY_WORD, STATUSES
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import listing, presenters

NAMES_OFFERED = 50  # queues or job functions in a filter


class Period(NamedTuple):
    label: Promise
    length: timedelta


PERIODS = {
    "hour": Period(gettext_lazy("Last hour"), timedelta(hours=1)),
    "day": Period(gettext_lazy("Last 24 hours"), timedelta(days=1)),
    "week": Period(gettext_lazy("Last 7 days"), timedelta(days=7)),
}


def once_per_request(request: HttpRequest, name: str, find: Callable[[], Any]) -> Any:
    """Return what `find` returns, which is called once for each request."""
    found: dict[str, Any] = request.__dict__.setdefault("_peasy_jobs", {})
    if name not in found:
        found[name] = find()
    return found[name]


def now_of(request: HttpRequest) -> datetime:
    """Return the database's time, the same for everything on a page."""
    connection = connections[PeasyJobQueue.objects.all().db]
    moment: datetime = once_per_request(request, "now", lambda: database_now(connection))
    return moment


def selected_letter(request: HttpRequest) -> str:
    """Return the letter of the status that the address selects, or an empty string."""
    status = BY_WORD.get(request.GET.get("status", ""))
    return status.letter if status else ""


class StatusFilter(admin.SimpleListFilter):
    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(status.word, status.label) for status in STATUSES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        letter = selected_letter(request)
        return queryset.filter(status=letter) if letter else queryset


class NameFilter(admin.SimpleListFilter):
    """Filter by a name. Offers those of the newest jobs: finding all would read the whole table."""

    column: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = once_per_request(request, "names", listing.names_in_use)
        offered = sorted({getattr(pair, self.column) for pair in names})[:NAMES_OFFERED]
        selected = self.value()
        if selected and selected not in offered:
            offered.append(selected)
        return [(name, name) for name in offered]

    def value(self) -> str | None:
        # PostgreSQL refuses NUL in a parameter.
        return (super().value() or "").replace("\0", "") or None

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 1 or bool(self.value())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.column: self.value()}) if self.value() else queryset


class QueueFilter(NameFilter):
    title = gettext_lazy("queue")
    parameter_name = "queue"
    column = "queue_name"


class JobFilter(NameFilter):
    title = gettext_lazy("job")
    parameter_name = "job"
    column = "job_name"


class CreatedFilter(admin.SimpleListFilter):
    title = gettext_lazy("created")
    parameter_name = "created"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(name, period.label) for name, period in PERIODS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        period = PERIODS.get(self.value() or "")
        if period is None:
            return queryset
        return queryset.filter(created__gte=as_field(now_of(request) - period.length))


class JobList(ChangeList):
    """The newest 10,000 jobs, or the newest 10,000 of a status."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        jobs = super().get_queryset(request, exclude_parameters)
        self.letter = selected_letter(request)
        is_searched = bool(self.query.strip())
        is_filtered = bool(set(self.get_filters_params()) - {"status"})
        self.narrow = is_searched or is_filtered
        if is_searched:
            return jobs  # `get_search_results` has limited them to the newest
        if is_filtered:
            return jobs.filter(listing.among_newest(self.letter))
        return listing.in_status(self.letter, self.root_queryset) if self.letter else jobs

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]  # no other order has an index, whatever the address asks for

    def get_results(self, request: HttpRequest) -> None:
        pks = list(self.queryset.values_list("pk", flat=True)[: listing.WINDOW + 1])
        self.capped = len(pks) > listing.WINDOW
        self.result_count = min(len(pks), listing.WINDOW)
        self.paginator = Paginator(pks[: self.result_count], self.list_per_page)
        self.result_list = self._page_of_jobs(request)
        # If the list is cut, the counts are equal, which hides the number beside the search box.
        self.full_result_count = self.result_count if self.capped else None
        self.show_full_result_count = False
        self.show_admin_actions = True
        self.can_show_all = False
        self.multi_page = self.result_count > self.list_per_page

    def _page_of_jobs(self, request: HttpRequest) -> list[Any]:
        try:
            pks = self.paginator.page(self.page_num).object_list
        except InvalidPage:
            raise IncorrectLookupParameters from None
        # A second query, so that the first sorts keys alone. Without arguments and results.
        columns = (*presenters.COLUMNS, "job_name", "user")
        jobs = PeasyJobQueue.objects.select_related("user").only(*columns).in_bulk(pks)
        now = as_field(now_of(request))
        found: list[Any] = [jobs[pk] for pk in pks if pk in jobs]
        for job in found:
            job.row = presenters.job_row(job, now)
        return found


class RunnerList(ChangeList):
    """The runners and, for users who may see jobs, what they are running."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        with_rows = self.model_admin.with_rows  # type: ignore[attr-defined]
        self.result_list = with_rows(request, self.result_list)
