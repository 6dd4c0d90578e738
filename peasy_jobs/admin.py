"""Jobs and runners in Django's admin. Nothing can be edited; actions use the queryset's verbs."""

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
from peasy_jobs.web import actions, listing, permissions, presenters
from peasy_jobs.web.admin_lists import (
    CreatedFilter,
    JobFilter,
    JobList,
    QueueFilter,
    RunnerList,
    StatusFilter,
    now_of,
    selected_letter,
)
from peasy_jobs.web.snapshot import RUNNING_JOBS_SHOWN

if TYPE_CHECKING:
    JobModelAdmin = admin.ModelAdmin[PeasyJobQueue]
    RunnerModelAdmin = admin.ModelAdmin[PeasyRunner]
else:
    JobModelAdmin = RunnerModelAdmin = admin.ModelAdmin

STYLESHEETS = [f"peasy_jobs/{name}.css" for name in ("peasy", "dashboard", "admin")]


class ReadOnly:
    """Nothing can be added or edited."""

    class Media:
        css = {"all": STYLESHEETS}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(PeasyJobQueue)
class JobAdmin(ReadOnly, JobModelAdmin):
    list_display = ("state", "name", "progress", "created", "origin")
    list_display_links = ("name",)
    list_filter = (StatusFilter, QueueFilter, JobFilter, CreatedFilter)
    list_per_page = listing.PAGE_SIZE
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
        # PostgreSQL refuses NUL in a parameter.
        text = search_term.strip().replace("\0", "")
        found = listing.search(queryset, text, selected_letter(request)) if text else queryset
        may_have_duplicates = False
        return found, may_have_duplicates

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return []  # the template shows the job like the dashboard does

    def view_on_site(self, obj: PeasyJobQueue) -> str | None:
        with suppress(NoReverseMatch):
            return reverse("peasy_jobs:job_detail", args=[obj.pk])
        return None

    # The columns of the list

    @admin.display(description=gettext_lazy("status"))
    def state(self, job: Any) -> str:
        status = format_html(
            '<span class="peasy-status" data-status="{}">'
            '<span class="peasy-icon" aria-hidden="true"></span> {}</span>',
            job.row.word,
            job.row.label,
        )
        if not job.row.duration:
            return status
        return format_html('{}<br><span class="peasy-took">{}</span>', status, job.row.duration)

    @admin.display(description=gettext_lazy("job"))
    def name(self, job: PeasyJobQueue) -> str:
        parts = ((part,) for part in job.job_name.split("."))
        dotted = format_html_join(SafeString("<wbr>."), "{}", parts)
        return format_html("{} #{} <code>{}</code>", job.title or "–", str(job.pk), dotted)

    @admin.display(description=gettext_lazy("progress"))
    def progress(self, job: Any) -> str:
        row = job.row
        if row.percent is None or row.word == "completed":
            return str(row.message)
        return format_html(
            '<progress class="peasy-progress" max="100" value="{0}" aria-label="{1}"></progress>'
            " {0} %<br>{2}",
            round(row.percent),
            _("Progress of %(title)s") % {"title": job.title},
            row.message,
        )

    @admin.display(description=gettext_lazy("queue, user"))
    def origin(self, job: PeasyJobQueue) -> str:
        return format_html("{}<br>{}", job.queue_name, job.user) if job.user else job.queue_name

    # Actions

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        # Not `has_change_permission`: users who may change jobs may cancel and retry them, though
        # nobody may edit one.
        return permissions.has_model_permission(request.user, "cancel")

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return permissions.has_model_permission(request.user, "retry")

    @admin.action(description=gettext_lazy("Cancel selected jobs"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._perform(request, "cancel", self._selected_keys(request, queryset))

    @admin.action(description=gettext_lazy("Retry selected jobs"), permissions=["retry"])
    def retry_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._perform(request, "retry", self._selected_keys(request, queryset))

    @admin.action(description=gettext_lazy("Delete selected jobs"), permissions=["delete"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        pks = self._selected_keys(request, queryset)
        is_confirmed = bool(request.POST.get("post"))
        if is_confirmed or actions.selection_error(pks):
            self._perform(request, "delete", pks)
            return None
        jobs = PeasyJobQueue.objects.filter(pk__in=pks).only("title", "status")
        return delete_selected(self, request, jobs)  # Django's confirmation page

    def _selected_keys(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[int]:
        if request.POST.get("select_across") == "1":
            pks = queryset.order_by("-pk").values_list("pk", flat=True)
            return list(pks[: actions.MAX_SELECTED + 1])
        # Not `queryset`: it lacks the jobs that have left the list, because they were claimed for
        # instance.
        return actions.selected_keys(request.POST, ACTION_CHECKBOX_NAME)

    def _perform(self, request: HttpRequest, action: str, pks: list[int]) -> None:
        if error := actions.selection_error(pks):
            actions.warn(request, error)
        elif action == "delete":
            self._delete(request, pks)
        else:
            actions.perform(request, action, pks)

    def _delete(self, request: HttpRequest, pks: list[int]) -> None:
        jobs = PeasyJobQueue.objects.filter(pk__in=pks)
        before: Any = list(jobs.only("title"))
        actions.perform(request, "delete", pks)
        remaining = set(jobs.values_list("pk", flat=True)) if before else set()
        deleted: Any = [job for job in before if job.pk not in remaining]
        if deleted:
            self.log_deletions(request, deleted)

    def delete_model(self, request: HttpRequest, obj: PeasyJobQueue) -> None:
        PeasyJobQueue.objects.remove(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        PeasyJobQueue.objects.remove(*queryset.values_list("pk", flat=True))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        names = [str(job) for job in objs]
        counts = {str(self.opts.verbose_name_plural): len(names)}
        may_delete = self.has_delete_permission(request)
        missing_permissions = set() if may_delete else {str(self.opts.verbose_name)}
        protected: list[str] = []
        return names, counts, missing_permissions, protected

    # The page of a job

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        job = self._posted_job(request, object_id)
        if job is None:
            return super().change_view(request, object_id, form_url, extra_context)
        action = request.POST.get("action", "")
        is_allowed = action in ("cancel", "retry") and permissions.has_model_permission(
            request.user, action
        )
        if not is_allowed:
            raise PermissionDenied
        self._perform(request, action, [job.pk])
        return HttpResponseRedirect(request.get_full_path())

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        job = self._posted_job(request, object_id)
        if job is None or not self.has_delete_permission(request, job):
            return super().delete_view(request, object_id, extra_context)
        # Not Django's own: it says that the job was deleted even if it was not.
        self._perform(request, "delete", [job.pk])
        changelist = f"{self.admin_site.name}:peasy_jobs_peasyjobqueue_changelist"
        return HttpResponseRedirect(reverse(changelist))

    def _posted_job(self, request: HttpRequest, object_id: str) -> PeasyJobQueue | None:
        if request.method != "POST":
            return None
        return self.get_object(request, unquote(object_id))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        job_context = presenters.job_context(context["original"])
        may = {
            action: permissions.has_model_permission(request.user, action)
            for action in actions.ACTIONS
        }
        context |= {**job_context, "may": may, "show_delete": job_context["can_be"]["delete"]}
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(PeasyRunner)
class RunnerAdmin(ReadOnly, RunnerModelAdmin):
    list_display = (
        "state",
        "host",
        "process",
        "workers",
        "served",
        "running_jobs",
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
        return False  # a runner unregisters itself, or another finds that it is dead

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> PeasyRunner | None:
        runner = super().get_object(request, object_id, from_field)
        return self.with_rows(request, [runner])[0] if runner else None

    def with_rows(self, request: HttpRequest, runners: Sequence[Any]) -> list[Any]:
        """Return these runners, each with what the pages show of it as `row`."""
        held_jobs = self._held_jobs(runners) if self._may_see_jobs(request) else []
        rows = presenters.runner_rows(now_of(request), runners, held_jobs)
        for row in rows:
            setattr(row.runner, "row", row)  # noqa: B010  not a field of the model
        return [row.runner for row in rows]

    def _held_jobs(self, runners: Sequence[Any]) -> list[PeasyJobQueue]:
        jobs = PeasyJobQueue.objects.filter(runner__in=[runner.pk for runner in runners])
        jobs = jobs.only("title", "status", "started", "runner_id").order_by("runner_id", "pk")
        return list(jobs[:RUNNING_JOBS_SHOWN])

    def _may_see_jobs(self, request: HttpRequest) -> bool:
        site = self.admin_site
        if not site.is_registered(PeasyJobQueue):  # the project may have unregistered it
            return False
        return site.get_model_admin(PeasyJobQueue).has_view_permission(request)

    @admin.display(description=gettext_lazy("status"))
    def state(self, runner: Any) -> str:
        if runner.row.alive:
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
        return ", ".join(runner.row.queues) or _("all")

    @admin.display(description=gettext_lazy("runs"))
    def running_jobs(self, runner: Any) -> str:
        lines = [self._link(job) for job in runner.row.running_jobs]
        if count := runner.row.not_started:
            text = ngettext("%(n)d more job claimed", "%(n)d more jobs claimed", count)
            lines.append(format_html("{}", text % {"n": count}))
        if not lines:
            return "–"
        return format_html_join(SafeString("<br>"), "{}", ((line,) for line in lines))

    def _link(self, job: presenters.RunningJob) -> SafeString:
        page = reverse(f"{self.admin_site.name}:peasy_jobs_peasyjobqueue_change", args=[job.pk])
        name = f"{job.title or '–'} #{job.pk}"
        return format_html('<a href="{}">{}</a> {}', page, name, job.duration)
