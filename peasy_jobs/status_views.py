"""What a visitor's page asks for: the JSON document and the progress widget of one job. Changes nothing."""

from __future__ import annotations

import hashlib
import json

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_safe

from peasy_jobs import widget
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.status import document, may_see

NOT_FOUND = json.dumps({"type": "about:blank", "title": "Not Found", "status": 404}).encode()
LARGEST_KEY = 2**63 - 1


@require_safe
def job_json(request: HttpRequest, pk: int) -> HttpResponse:
    """`GET …/jobs/42.json`: the status document. A job that may not be seen is as missing as one that is not there."""
    job = _visible(request, pk, "result_data")
    if job is None:
        return _private(HttpResponse(NOT_FOUND, status=404, content_type="application/problem+json"))
    body = json.dumps(document(request, job), ensure_ascii=False).encode()
    response = _private(HttpResponse(body, content_type="application/json"))
    response["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if not job.is_over:
        response["Retry-After"] = str(widget.interval(request, job))
    return get_conditional_response(request, etag=response["ETag"], response=response) or response


@require_safe
def job_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """The changing part of the widget; 204 when the page has it already. Never an error, which HTMX would repeat."""
    job = _visible(request, pk)
    context = widget.gone(request, pk) if job is None else widget.shown(request, job)
    if job is not None and request.GET.get("v") == context["version"]:
        return _private(HttpResponse(status=204))
    response = _private(render(request, "peasy_jobs/_progress_body.html", {**context, "swapped": True}))
    if job is not None and job.is_over:
        response["HX-Trigger"] = json.dumps({"peasy:done": {"id": str(pk), "status": context["word"]}})
    return response


def _visible(request: HttpRequest, pk: int, *columns: str) -> PeasyJobQueue | None:
    if pk > LARGEST_KEY:
        return None
    jobs = PeasyJobQueue.objects.only(*widget.COLUMNS, *columns)
    job = jobs.filter(pk=pk).first()
    return job if job is not None and may_see(request, job) else None


def _private(response: HttpResponse) -> HttpResponse:
    # Not no-store: with that, a browser never asks whether something has changed.
    response["Cache-Control"] = "private, no-cache"
    response["X-Robots-Tag"] = "noindex"
    return response
