"""The pages of the dashboard, the parts of them that HTMX updates, and the actions on jobs."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseRedirect,
)
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe

from peasy_jobs import conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.store.clock import database_now
from peasy_jobs.urlresolution import address
from peasy_jobs.web import (
    actions,
    charts,
    history,
    keys,
    permissions,
    presenters,
    snapshot,
    widget,
)
from peasy_jobs.web.filters import Filters

LONGEST_POLL = 24 * 60 * 60  # seconds; browsers ignore timers above 25 days
LONGEST_REDIRECT = 2000  # characters; Django refuses to redirect to more than 2048
JOBS_TO_CONFIRM = 20  # listed before they are deleted


@require_safe
@permissions.page
def dashboard(request: HttpRequest) -> HttpResponse:
    """Show the jobs, newest first, and the runners."""
    filters = Filters.of(request.GET)
    context = presenters.dashboard_context(filters, snapshot.take(filters))
    return render(request, "peasy_jobs/dashboard.html", {**context, **_shared_context(request)})


@require_safe
@permissions.fragment
def dashboard_live(request: HttpRequest) -> HttpResponse:
    """Return the part of the dashboard that is updated, or 204 if it has not changed."""
    filters = Filters.of(request.GET)
    current = snapshot.take(filters)
    if current.version == request.GET.get("v", ""):
        return HttpResponse(status=204)
    context = presenters.dashboard_context(filters, current)
    context["announce"] = _new_failures(request, context["failed"])
    return render(request, "peasy_jobs/_live.html", {**context, **_shared_context(request)})


def _new_failures(request: HttpRequest, failed: int) -> str:
    known = keys.parse(request.GET.get("f", ""))
    if known is None or failed <= known:
        return ""
    new = failed - known
    return ngettext("%(count)d new failure", "%(count)d new failures", new) % {"count": new}


@require_safe
@permissions.page
def statistics(request: HttpRequest) -> HttpResponse:
    """Show how many jobs ended in the last hour and day, and how long they waited and ran."""
    context = {**_charts_context(), **_shared_context(request)}
    return render(request, "peasy_jobs/statistics.html", context)


@require_safe
@permissions.fragment
def statistics_charts(request: HttpRequest) -> HttpResponse:
    """Return the charts alone. The dashboard loads them after its table."""
    return render(request, "peasy_jobs/_charts.html", _charts_context())


def _charts_context() -> dict[str, Any]:
    now = database_now(connections[PeasyJobQueue.objects.db])
    drawn = []
    for points in (history.last_hour(now), history.last_day(now)):
        drawn += [charts.jobs_per_minute(points), charts.seconds(points)]
    return {"charts": drawn}


@require_safe
@permissions.page
def job_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Show everything that is known about one job."""
    job = _job(pk)
    if job is None:
        text = _("There is no job %(pk)d. Finished jobs are deleted after a while.")
        raise Http404(text % {"pk": pk})
    context = {**presenters.job_context(job), **_shared_context(request)}
    return render(request, "peasy_jobs/job_detail.html", context)


@require_safe
@permissions.fragment
def job_live(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the part of a job's page that is updated, or 204 if it has not changed.

    If the job no longer exists, the answer reloads the page.
    """
    job = _job(pk)
    if job is None:
        return HttpResponse(status=404, headers={"HX-Refresh": "true"})
    if presenters.version(job) == request.GET.get("v"):
        return HttpResponse(status=204)
    announce = job.is_over or widget.milestone(job) != request.GET.get("a")
    context = {**presenters.job_context(job), **_shared_context(request), "announce": announce}
    return render(request, "peasy_jobs/_job_live.html", context)


def _job(pk: int) -> PeasyJobQueue | None:
    if pk > keys.LARGEST:
        return None
    return PeasyJobQueue.objects.select_related("runner", "user").filter(pk=pk).first()


@require_POST
@csrf_protect
@permissions.page
def jobs_action(request: HttpRequest) -> HttpResponse:
    """Cancel, retry or delete the selected jobs. Deleting asks for confirmation."""
    action = request.POST.get("action", "")
    if action not in actions.ACTIONS:
        return HttpResponseBadRequest(_("There is no such action."))
    if not permissions.may(request, action):
        raise PermissionDenied
    pks = actions.selected_keys(request.POST, "pk")
    error = actions.selection_error(pks)
    if error:
        actions.warn(request, error)
    elif action == "delete" and not request.POST.get("confirmed"):
        return _confirm_deletion(request, pks)
    else:
        actions.perform(request, action, pks)
    return HttpResponseRedirect(_next_address(request))


def _confirm_deletion(request: HttpRequest, pks: list[int]) -> HttpResponse:
    jobs = PeasyJobQueue.objects.filter(pk__in=pks).only("title", "status")
    context = {
        "pks": pks,
        "jobs": jobs[:JOBS_TO_CONFIRM],
        "more": max(0, len(pks) - JOBS_TO_CONFIRM),
        "next": _next_address(request),
        **_shared_context(request),
    }
    return render(request, "peasy_jobs/confirm.html", context)


def _next_address(request: HttpRequest) -> str:
    """Return where to go after an action: where the form says, if that is on this site."""
    wanted = request.POST.get("next", "")
    is_on_this_site = wanted.startswith("/") and url_has_allowed_host_and_scheme(
        wanted, request.get_host()
    )
    if is_on_this_site and len(wanted) < LONGEST_REDIRECT:
        return wanted
    return address("dashboard", request=request)


def _shared_context(request: HttpRequest) -> dict[str, Any]:
    poll = min(conf.get().dashboard_poll, LONGEST_POLL)
    return {
        "may": {action: permissions.may(request, action) for action in actions.ACTIONS},
        "poll": f"{round(poll * 1000)}ms" if poll else "",
        "messages": messages.get_messages(request),
    }
