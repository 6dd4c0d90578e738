"""The dashboard: pages, the parts of them that HTMX asks for, and actions, whose verbs are those of the queryset."""

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
from peasy_jobs.web import actions, charts, filters, history, permissions, presenters, widget
from peasy_jobs.web.status_document import LARGEST_KEY

A_DAY = 24 * 60 * 60  # seconds; a browser takes a timer of more than 25 days for none


@require_safe
@permissions.page
def dashboard(request: HttpRequest) -> HttpResponse:
    """The jobs, newest first, and the runners."""
    chosen = filters.Filters.of(request.GET)
    context = presenters.board(chosen, filters.look(chosen))
    return render(request, "peasy_jobs/dashboard.html", {**context, **_shared(request)})


@require_safe
@permissions.fragment
def dashboard_live(request: HttpRequest) -> HttpResponse:
    """The changing part of the dashboard; 204 when the page has it already."""
    chosen = filters.Filters.of(request.GET)
    known = request.GET.get("v", "")
    snapshot = filters.look(chosen)
    if snapshot.version == known:
        return HttpResponse(status=204)
    context = presenters.board(chosen, snapshot)
    before = filters.key(request.GET.get("f", ""))
    if before is not None and (new := context["failed"] - before) > 0:
        context["announce"] = ngettext("%(count)d new failure", "%(count)d new failures", new) % {
            "count": new
        }
    return render(request, "peasy_jobs/_live.html", {**context, **_shared(request)})


@require_safe
@permissions.page
def statistics(request: HttpRequest) -> HttpResponse:
    """How many jobs ended in the last hour and day, and how long they waited and ran, on a page of its own."""
    return render(request, "peasy_jobs/statistics.html", {**_charts(), **_shared(request)})


@require_safe
@permissions.fragment
def statistics_charts(request: HttpRequest) -> HttpResponse:
    """The same for the dashboard, which shows its table first."""
    return render(request, "peasy_jobs/_charts.html", _charts())


def _charts() -> dict[str, Any]:
    now = database_now(connections[PeasyJobQueue.objects.db])
    spans = (history.last_hour(now), history.last_day(now))
    return {
        "charts": [
            draw(points) for points in spans for draw in (charts.jobs_per_minute, charts.seconds)
        ]
    }


@require_safe
@permissions.page
def job_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Everything there is to know of one job."""
    job = _job(pk)
    if job is None:
        raise Http404(
            _("There is no job %(pk)d. Finished jobs are pruned after a while.") % {"pk": pk}
        )
    return render(
        request, "peasy_jobs/job_detail.html", {**presenters.detail(job), **_shared(request)}
    )


@require_safe
@permissions.fragment
def job_live(request: HttpRequest, pk: int) -> HttpResponse:
    """The changing part of a job's page; 204 when the page has it already. When the job is gone, so is the page."""
    job = _job(pk)
    if job is None:
        return HttpResponse(status=404, headers={"HX-Refresh": "true"})
    if presenters.version(job) == request.GET.get("v"):
        return HttpResponse(status=204)
    news = job.is_over or widget.milestone(job) != request.GET.get("a")
    return render(
        request,
        "peasy_jobs/_job_live.html",
        {**presenters.detail(job), **_shared(request), "announce": news},
    )


@require_POST
@csrf_protect
@permissions.page
def jobs_action(request: HttpRequest) -> HttpResponse:
    """Cancel, retry or delete the jobs that were selected. Deleting asks first."""
    action = request.POST.get("action", "")
    if action not in permissions.ACTIONS:
        return HttpResponseBadRequest(_("There is no such action."))
    if not permissions.may(request, action):
        raise PermissionDenied
    pks = actions.chosen(request.POST, "pk")
    if actions.are_some(request, pks):
        if action == "delete" and not request.POST.get("confirmed"):
            jobs = PeasyJobQueue.objects.filter(pk__in=pks)
            context = {
                "pks": pks,
                "jobs": jobs.only("title", "status")[:20],
                "more": max(0, len(pks) - 20),
            }
            return render(
                request,
                "peasy_jobs/confirm.html",
                {**context, "next": _next(request), **_shared(request)},
            )
        actions.perform(request, action, pks)
    return HttpResponseRedirect(_next(request))


def _job(pk: int) -> PeasyJobQueue | None:
    if pk > LARGEST_KEY:
        return None
    return PeasyJobQueue.objects.select_related("runner", "user").filter(pk=pk).first()


def _shared(request: HttpRequest) -> dict[str, Any]:
    poll = min(conf.get().dashboard_poll, A_DAY)
    return {
        "may": {action: permissions.may(request, action) for action in permissions.ACTIONS},
        "poll": f"{round(poll * 1000)}ms" if poll else "",
        "messages": messages.get_messages(request),
    }


def _next(request: HttpRequest) -> str:
    """Where to go after an action: where the form says, if that is on this site."""
    wanted = request.POST.get("next", "")
    # Django redirects to nothing longer than 2048 characters, and the action is done.
    if (
        wanted.startswith("/")
        and len(wanted) < 2000
        and url_has_allowed_host_and_scheme(wanted, request.get_host())
    ):
        return wanted
    return address("dashboard", request=request)
