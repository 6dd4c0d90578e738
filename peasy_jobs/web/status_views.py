"""What a visitor's page asks for: the JSON document and the progress widget of one job. Changes nothing."""

from __future__ import annotations

import hashlib
import json

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import get_conditional_response, patch_vary_headers
from django.views.decorators.http import require_safe

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import permissions, status_document, widget

NOT_FOUND = json.dumps({"type": "about:blank", "title": "Not Found", "status": 404}).encode()
BODY = "peasy_jobs/_progress_body.html"


@login_not_required  # who may see a job is asked here, and a bearer of its link is nobody
@require_safe
def job_json(request: HttpRequest, pk: int) -> HttpResponse:
    """`GET …/jobs/42.json`: the status document. A job that may not be seen is as missing as one that is not there."""
    job = _visible(request, pk, "errors", "result_data")
    if job is None:
        return _unseen(
            request, HttpResponse(NOT_FOUND, status=404, content_type="application/problem+json")
        )
    body = status_document.encode(status_document.document(request, job))
    response = permissions.private(HttpResponse(body, content_type="application/json"))
    response["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    answer = get_conditional_response(request, etag=response["ETag"], response=response) or response
    if not job.is_over:
        # On a 304 too: with it the browser brings the stored answer up to date.
        answer["Retry-After"] = str(widget.interval(job))
    return answer


@login_not_required
@require_safe
def job_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """The changing part of the widget; 204 when the page has it already. Never an error, which HTMX would repeat."""
    job = _visible(request, pk)
    if job is None:
        context = widget.gone(pk, request.GET)
        return _unseen(request, render(request, BODY, {**context, "swapped": True}))
    context = widget.shown(job, request.GET, token=request.GET.get("t", ""), request=request)
    if request.GET.get("v") == context["version"]:
        return permissions.private(HttpResponse(status=204))
    response = permissions.private(render(request, BODY, {**context, "swapped": True}))
    if job.is_over:
        response["HX-Trigger"] = json.dumps(
            {"peasy:done": {"id": str(pk), "status": context["word"]}}
        )
    return response


def _visible(request: HttpRequest, pk: int, *columns: str) -> PeasyJobQueue | None:
    if pk > status_document.LARGEST_KEY:
        return None
    job = PeasyJobQueue.objects.only(*widget.COLUMNS, *columns).filter(pk=pk).first()
    return job if job is not None and status_document.may_see(request, job) else None


def _unseen(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    # Whoever asks is looked at for a job that is not there too: the session middleware would tell the two apart by
    # `Vary`, and by the cookie of a session that has ended, which it deletes. And so is the query, as one with too many
    # fields is an error.
    bool(request.GET)
    bool(getattr(request, "user", None))
    patch_vary_headers(response, ["Cookie"])
    return permissions.private(response)
