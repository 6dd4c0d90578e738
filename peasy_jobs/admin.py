"""Jobs and runners in Django's admin: to be looked at, and acted on with the verbs of the queryset. Edits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.web import actions, filters, permissions, presenters
from peasy_jobs.web.admin_lists import (
    CreatedFilter,
    JobFilter,
    JobList,
    QueueFilter,
    RunnerList,
    StatusFilter,
    now_of,
    status,
)

if TYPE_CHECKING:
    OfJobs = admin.ModelAdmin[PeasyJobQueue]
    OfRunners = admin.ModelAdmin[PeasyRunner]
else:
    OfJobs = OfRunners = admin.ModelAdmin

STYLES = {"all": [f"peasy_jobs/{name}.css" for name in ("peasy", "dashboard", "admin")]}


class ReadOnly:
    """There is nothing to add and nothing to edit. What may be done are actions."""

    class Media:
        css = STYLES

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(PeasyJobQueue)
class JobAdmin(ReadOnly, OfJobs):
    list_display = ("state", "name", "progress", "created", "origin")
    list_display_links = ("name",)
    list_filter = (StatusFilter, QueueFilter, JobFilter, CreatedFilter)
    list_per_page = filters.PAGE
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    search_fields = ("title", "job_name", "status_msg")
    search_help_text = gettext_lazy(
        "Title, job and message of the newest 10,000 jobs, or a job's number."
    )
    actions = ("cancel_selected", "retry_selected", "delete_selected")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return JobList

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeasyJobQueue]:
        return super().get_queryset(request).select_related("runner", "user")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> Any:
        term = search_term.strip().replace("\0", "")
        return filters.search(queryset, term, status(request)) if term else queryset, False

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return []  # the template shows the job as the dashboard does

    def view_on_site(self, obj: PeasyJobQueue) -> str | None:
        with suppress(NoReverseMatch):
            return reverse("peasy_jobs:job_detail", args=[obj.pk])
        return None

    # The columns of the list

    @admin.display(description=gettext_lazy("status"))
    def state(self, job: Any) -> str:
        icon = (
            '<span class="peasy-status" data-status="{}">'
            '<span class="peasy-icon" aria-hidden="true"></span> {}</span>'
        )
        shown = format_html(icon, job.row.word, job.row.label)
        took = job.row.duration
        return (
            format_html('{}<br><span class="peasy-took">{}</span>', shown, took) if took else shown
        )

    @admin.display(description=gettext_lazy("job"))
    def name(self, job: PeasyJobQueue) -> str:
        dotted = format_html_join(
            SafeString("<wbr>."), "{}", ((part,) for part in job.job_name.split("."))
        )
        return format_html("{} #{} <code>{}</code>", job.title or "–", str(job.pk), dotted)

    @admin.display(description=gettext_lazy("progress"))
    def progress(self, job: Any) -> str:
        row = job.row
        if row.percent is None or row.word == "completed":
            return str(row.message)
        bar = '<progress class="peasy-progress" max="100" value="{0}" aria-label="{1}"></progress> {0} %<br>{2}'
        label = _("Progress of %(title)s") % {"title": job.title}
        return format_html(bar, round(row.percent), label, row.message)

    @admin.display(description=gettext_lazy("queue, user"))
    def origin(self, job: PeasyJobQueue) -> str:
        return format_html("{}<br>{}", job.queue_name, job.user) if job.user else job.queue_name

    # What may be done

    def _may(self, request: HttpRequest, action: str) -> bool:
        # Not `has_change_permission`: a job is cancelled and retried by who may change jobs, though nobody edits one.
        return bool(
            request.user.has_perm(f"peasy_jobs.{permissions.PERMISSIONS[action]}_peasyjobqueue")
        )

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "cancel")

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "retry")

    @admin.action(description=gettext_lazy("Cancel selected jobs"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._perform(request, "cancel", self._chosen(request, queryset))

    @admin.action(description=gettext_lazy("Retry selected jobs"), permissions=["retry"])
    def retry_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._perform(request, "retry", self._chosen(request, queryset))

    @admin.action(description=gettext_lazy("Delete selected jobs"), permissions=["delete"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        pks = self._chosen(request, queryset)
        if not request.POST.get("post") and actions.are_some(request, pks):
            asked = PeasyJobQueue.objects.filter(pk__in=pks).only("title", "status")
            return delete_selected(
                self, request, asked
            )  # Django's question, which leads here again
        if request.POST.get("post"):
            self._perform(request, "delete", pks)
        return None

    def _chosen(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[int]:
        if request.POST.get("select_across") == "1":
            return list(queryset.order_by("-pk").values_list("pk", flat=True)[: actions.MOST + 1])
        # Not `queryset`: a job that has left the list meanwhile, because it was claimed for instance, is still meant.
        return actions.chosen(request.POST, ACTION_CHECKBOX_NAME)

    def _perform(self, request: HttpRequest, action: str, pks: list[int]) -> None:
        if not actions.are_some(request, pks):
            return
        meant = PeasyJobQueue.objects.filter(pk__in=pks)
        before: Any = list(meant.only("title")) if action == "delete" else []
        actions.perform(request, action, pks)
        left = set(meant.values_list("pk", flat=True)) if before else set()
        gone: Any = [job for job in before if job.pk not in left]
        if gone:
            self.log_deletions(request, gone)

    def delete_model(self, request: HttpRequest, obj: PeasyJobQueue) -> None:
        PeasyJobQueue.objects.remove(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        PeasyJobQueue.objects.remove(*queryset.values_list("pk", flat=True))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        lacking = set() if self.has_delete_permission(request) else {str(self.opts.verbose_name)}
        names = [str(job) for job in objs]
        return names, {str(self.opts.verbose_name_plural): len(names)}, lacking, []

    # The page of a job

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        job = self.get_object(request, unquote(object_id)) if request.method == "POST" else None
        if job is None:
            return super().change_view(request, object_id, form_url, extra_context)
        action = request.POST.get("action", "")
        if action not in ("cancel", "retry") or not self._may(request, action):
            raise PermissionDenied
        self._perform(request, action, [job.pk])
        return HttpResponseRedirect(request.get_full_path())

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        job = self.get_object(request, unquote(object_id)) if request.method == "POST" else None
        if job is None or not self.has_delete_permission(request, job):
            return super().delete_view(request, object_id, extra_context)
        # Not as Django would: it says that the job was deleted, whatever has become of it.
        self._perform(request, "delete", [job.pk])
        return HttpResponseRedirect(
            reverse(f"{self.admin_site.name}:peasy_jobs_peasyjobqueue_changelist")
        )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        detail = presenters.detail(context["original"])
        may = {action: self._may(request, action) for action in permissions.ACTIONS}
        context |= {**detail, "may": may, "show_delete": detail["can_be"]["delete"]}
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(PeasyRunner)
class RunnerAdmin(ReadOnly, OfRunners):
    list_display = (
        "state",
        "host",
        "process",
        "workers",
        "served",
        "doing",
        "started",
        "heartbeat",
    )
    list_display_links = ("host",)
    list_max_show_all = 0
    show_full_result_count = False
    ordering = ("host", "pk")
    fields = list_display

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RunnerList

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # a runner removes itself, or is found dead by another

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> PeasyRunner | None:
        runner = super().get_object(request, object_id, from_field)
        return self.error_entry(request, [runner])[0] if runner else None

    def error_entry(self, request: HttpRequest, runners: Sequence[Any]) -> list[Any]:
        """These runners, each with what `overview` says of it as `shown`."""
        running = PeasyJobQueue.objects.filter(runner__in=[runner.pk for runner in runners])
        columns = running.only("title", "status", "started", "runner_id").order_by(
            "runner_id", "pk"
        )
        site = self.admin_site  # which may have been told to leave the jobs out
        may_see = site.is_registered(PeasyJobQueue) and site.get_model_admin(
            PeasyJobQueue
        ).has_view_permission(request)
        found = presenters.hosts(
            now_of(request), runners, list(columns[: filters.RUNNING]) if may_see else []
        )
        for host in found:
            setattr(host.runner, "shown", host)  # noqa: B010  no field of the model
        return [host.runner for host in found]

    @admin.display(description=gettext_lazy("status"))
    def state(self, runner: Any) -> str:
        if runner.shown.alive:
            return format_html(
                '<span class="peasy-alive"><span aria-hidden="true">●</span> {}</span>', _("alive")
            )
        return format_html(
            '<span class="peasy-dead"><span aria-hidden="true">✕</span> {}</span>', _("dead")
        )

    @admin.display(description=gettext_lazy("pid"))
    def process(self, runner: PeasyRunner) -> str:
        return str(runner.pid)

    @admin.display(description=gettext_lazy("workers"))
    def workers(self, runner: PeasyRunner) -> str:
        return f"{runner.concurrency} × {runner.worker_type}"

    @admin.display(description=gettext_lazy("queues"))
    def served(self, runner: Any) -> str:
        return ", ".join(runner.shown.queues) or _("all")

    @admin.display(description=gettext_lazy("runs"))
    def doing(self, runner: Any) -> str:
        view = f"{self.admin_site.name}:peasy_jobs_peasyjobqueue_change"
        lines = [
            format_html(
                '<a href="{}">{}</a> {}',
                reverse(view, args=[job.pk]),
                f"{job.title or '–'} #{job.pk}",
                job.duration,
            )
            for job in runner.shown.doing
        ]
        if ahead := runner.shown.ahead:
            text = ngettext("%(n)d more job claimed", "%(n)d more jobs claimed", ahead)
            lines.append(format_html("{}", text % {"n": ahead}))
        return (
            format_html_join(SafeString("<br>"), "{}", ((line,) for line in lines))
            if lines
            else "–"
        )
