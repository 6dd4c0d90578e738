"""The JSON document and the progress widget of one job. Reads only."""

from __future__ import annotations

import hashlib
import json

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import get_conditional_response, patch_vary_headers
from django.views.decorators.http import require_safe

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import keys, permissions, status_document, widget

NOT_FOUND = json.dumps({"type": "about:blank", "title": "Not Found", "status": 404}).encode()
WIDGET_BODY = "peasy_jobs/_progress_body.html"


@login_not_required  # `may_see` decides, and a visitor with a link need not be logged in
@require_safe
def job_json(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the status document of a job.

    A job that the visitor may not see gets the same answer as one that does not exist.
    """
    job = _visible_job(request, pk, "errors", "result_data")
    if job is None:
        not_found = HttpResponse(NOT_FOUND, status=404, content_type="application/problem+json")
        return _without_a_hint(request, not_found)
    body = status_document.encode(status_document.document(request, job))
    response = permissions.private(HttpResponse(body, content_type="application/json"))
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    response["ETag"] = etag
    answer = get_conditional_response(request, etag=etag, response=response) or response
    if not job.is_over:
        # Also on a 304, which updates the headers of the stored answer.
        answer["Retry-After"] = str(widget.poll_interval(job))
    return answer


@login_not_required
@require_safe
def job_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """Return the part of the widget that changes, or 204 if it has not changed.

    Never an error, because HTMX would go on polling.
    """
    poll = widget.Poll.of(request.GET)
    job = _visible_job(request, pk)
    if job is None:
        context = widget.unavailable_context(pk, poll)
        return _without_a_hint(request, render(request, WIDGET_BODY, {**context, "swapped": True}))
    context = widget.job_context(job, poll, token=request.GET.get("t", ""), request=request)
    if poll.version == context["version"]:
        return permissions.private(HttpResponse(status=204))
    response = permissions.private(render(request, WIDGET_BODY, {**context, "swapped": True}))
    if job.is_over:
        done = {"id": str(pk), "status": context["word"]}
        response["HX-Trigger"] = json.dumps({"peasy:done": done})
    return response


def _visible_job(request: HttpRequest, pk: int, *columns: str) -> PeasyJobQueue | None:
    if pk > keys.LARGEST:
        return None
    job = PeasyJobQueue.objects.only(*widget.COLUMNS, *columns).filter(pk=pk).first()
    return job if job is not None and status_document.may_see(request, job) else None


def _without_a_hint(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """Make the answer the same for a job that does not exist and one that may not be seen.

    `may_see` reads the query and the user. Reading them here too has the same side effects: an
    error for a query with too many fields, the header `Vary`, and the deleted cookie of an expired
    session.
    """
    bool(request.GET)
    bool(getattr(request, "user", None))
    patch_vary_headers(response, ["Cookie"])
    return permissions.private(response)
