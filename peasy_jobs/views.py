"""The dashboard: pages, the parts of them that HTMX asks for, and actions, whose verbs are those of the queryset."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe

from peasy_jobs import access, charts, conf, database, display, listing, overview, widget
from peasy_jobs import statistics as minutes
from peasy_jobs.addresses import address
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.queue import CANCELLED, FAILED, FINISHED, ONGOING
from peasy_jobs.status import LARGEST_KEY

MOST = 1000  # jobs of one action
A_DAY = 24 * 60 * 60  # seconds; a browser takes a timer of more than 25 days for none


@require_safe
@access.page
def dashboard(request: HttpRequest) -> HttpResponse:
    """The jobs, newest first, and the runners."""
    filters = listing.Filters.of(request.GET)
    context = overview.board(filters, listing.look(filters))
    return render(request, "peasy_jobs/dashboard.html", {**context, **_shared(request)})


@require_safe
@access.fragment
def dashboard_live(request: HttpRequest) -> HttpResponse:
    """The changing part of the dashboard; 204 when the page has it already."""
    filters = listing.Filters.of(request.GET)
    known = request.GET.get("v", "")
    snapshot = listing.look(filters)
    if snapshot.version == known:
        return HttpResponse(status=204)
    context = overview.board(filters, snapshot)
    before = listing.key(request.GET.get("f", ""))
    if before is not None and (new := context["failed"] - before) > 0:
        context["announce"] = ngettext("%(count)d new failure", "%(count)d new failures", new) % {"count": new}
    return render(request, "peasy_jobs/_live.html", {**context, **_shared(request)})


@require_safe
@access.page
def statistics(request: HttpRequest) -> HttpResponse:
    """How many jobs ended in the last hour and day, and how long they waited and ran, on a page of its own."""
    return render(request, "peasy_jobs/statistics.html", {**_charts(), **_shared(request)})


@require_safe
@access.fragment
def statistics_charts(request: HttpRequest) -> HttpResponse:
    """The same for the dashboard, which shows its table first."""
    return render(request, "peasy_jobs/_charts.html", _charts())


def _charts() -> dict[str, Any]:
    now = database.database_now(connections[PeasyJobQueue.objects.db])
    spans = (minutes.last_hour(now), minutes.last_day(now))
    return {"charts": [draw(points) for points in spans for draw in (charts.jobs_per_minute, charts.seconds)]}


@require_safe
@access.page
def job_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Everything there is to know of one job."""
    job = _job(pk)
    if job is None:
        raise Http404(_("There is no job %(pk)d. Finished jobs are pruned after a while.") % {"pk": pk})
    return render(request, "peasy_jobs/job_detail.html", {**_detail(job), **_shared(request)})


@require_safe
@access.fragment
def job_live(request: HttpRequest, pk: int) -> HttpResponse:
    """The changing part of a job's page; 204 when the page has it already. When the job is gone, so is the page."""
    job = _job(pk)
    if job is None:
        return HttpResponse(status=404, headers={"HX-Refresh": "true"})
    if overview.version(job) == request.GET.get("v"):
        return HttpResponse(status=204)
    news = job.is_over or widget.milestone(job) != request.GET.get("a")
    return render(request, "peasy_jobs/_job_live.html", {**_detail(job), **_shared(request), "announce": news})


@require_POST
@csrf_protect
@access.page
def jobs_action(request: HttpRequest) -> HttpResponse:
    """Cancel, retry or delete the jobs that were selected. Deleting asks first."""
    action = request.POST.get("action", "")
    if action not in access.ACTIONS:
        return HttpResponseBadRequest(_("There is no such action."))
    if not access.may(request, action):
        raise PermissionDenied
    pks = _selected(request.POST)
    if not 0 < len(pks) <= MOST:
        text = _("No job is selected.") if not pks else _("Select %(most)d jobs at the most.") % {"most": MOST}
        messages.warning(request, text, fail_silently=True)
    elif action == "delete" and not request.POST.get("confirmed"):
        jobs = PeasyJobQueue.objects.filter(pk__in=pks)
        context = {"pks": pks, "jobs": jobs.only("title", "status")[:20], "more": max(0, len(pks) - 20)}
        return render(request, "peasy_jobs/confirm.html", {**context, "next": _next(request), **_shared(request)})
    else:
        verb = {"cancel": "cancel", "retry": "retry", "delete": "remove"}[action]
        count = getattr(PeasyJobQueue.objects, verb)(*pks)
        _tell(request, action, count, len(pks) - count)
    return HttpResponseRedirect(_next(request))


def _tell(request: HttpRequest, action: str, done: int, left: int) -> None:
    if done:
        text = {
            "cancel": ngettext("%(n)d job cancelled.", "%(n)d jobs cancelled.", done),
            "retry": ngettext("%(n)d job enqueued again.", "%(n)d jobs enqueued again.", done),
            "delete": ngettext("%(n)d job deleted.", "%(n)d jobs deleted.", done),
        }[action]
        messages.success(request, text % {"n": done}, fail_silently=True)
    if left:
        text = {
            "cancel": ngettext("%(n)d job had ended already.", "%(n)d jobs had ended already.", left),
            "retry": ngettext(
                "%(n)d job was not retried: only those that failed or were cancelled, and have stopped, are.",
                "%(n)d jobs were not retried: only those that failed or were cancelled, and have stopped, are.",
                left,
            ),
            "delete": ngettext(
                "%(n)d job was not deleted: it is running, or gone. Cancel it first.",
                "%(n)d jobs were not deleted: they are running, or gone. Cancel them first.",
                left,
            ),
        }[action]
        messages.warning(request, text % {"n": left}, fail_silently=True)


def _job(pk: int) -> PeasyJobQueue | None:
    if pk > LARGEST_KEY:
        return None
    return PeasyJobQueue.objects.select_related("runner", "user").filter(pk=pk).first()


def _detail(job: PeasyJobQueue) -> dict[str, Any]:
    now = database.database_now(connections[PeasyJobQueue.objects.db])
    failures = display.failures(job)
    return {
        "job": job,
        "row": overview.row(job, database.as_field(now)),
        "version": overview.version(job),
        "milestone": widget.milestone(job),
        "arguments": display.arguments(job),
        "result": display.result(job),
        "extra": display.text(job.extra) if job.extra is not None else "",
        "failures": failures,
        "alive": job.runner is not None and job.runner.lease_until >= now.timestamp(),
        "can_be": {
            "cancel": job.status not in FINISHED,
            "retry": job.status in (FAILED, CANCELLED) and job.runner_id is None,
            "delete": job.status != ONGOING and job.runner_id is None,
        },
    }


def _shared(request: HttpRequest) -> dict[str, Any]:
    poll = min(conf.get().dashboard_poll, A_DAY)
    return {
        "may": {action: access.may(request, action) for action in access.ACTIONS},
        "poll": f"{round(poll * 1000)}ms" if poll else "",
        "messages": messages.get_messages(request),
    }


def _selected(sent: QueryDict) -> list[int]:
    """The primary keys that a form has sent, each once; what is none is left out."""
    return list(dict.fromkeys(pk for text in sent.getlist("pk") if (pk := listing.key(text))))


def _next(request: HttpRequest) -> str:
    """Where to go after an action: where the form says, if that is on this site."""
    wanted = request.POST.get("next", "")
    # Django redirects to nothing longer than 2048 characters, and the action is done.
    if wanted.startswith("/") and len(wanted) < 2000 and url_has_allowed_host_and_scheme(wanted, request.get_host()):
        return wanted
    return address("dashboard", request=request)
