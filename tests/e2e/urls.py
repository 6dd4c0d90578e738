"""Pages of a site that shows jobs to its visitors, as the browser tests open them."""

from typing import Any

import django
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.template import engines
from django.urls import include, path
from django.utils.decorators import decorator_from_middleware

from peasy_jobs.models import PeasyJobQueue

POLICY = {
    "default-src": ["'none'"],
    "script-src": ["'nonce-{}'"],
    "style-src": ["'nonce-{}'"],
    "connect-src": ["'self'"],
    "img-src": ["'self'"],
}
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A shop</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<link rel="icon" href="/icon.svg">{% load peasy_jobs django_htmx %}"""
BODY = """</head><body {{ hostile }}><main><h1>A shop</h1>"""
WIDGETS = "{% for job in jobs %}{% peasy_progress job %}{% endfor %}"
# As sites do that want to show a failed form, or the page of an error.
SWAPS_ERRORS = """<meta name="htmx-config" content='{"includeIndicatorStyles": false,
    "responseHandling": [
    {"code": "204", "swap": false}, {"code": ".*", "swap": true}]}'>"""
OLD_HTMX = "{% htmx_script version=2 %}{% peasy_assets %}"
# HTMX 2 hands every one of these down to what is inside.
HOSTILE = (
    'hx-confirm="Sure?" hx-select="#nothing" hx-target="h1" hx-push-url="true" hx-boost="true"'
    ' hx-swap="delete" hx-include="*" hx-disabled-elt="body" hx-indicator="h1" hx-sync="body:abort"'
)
TEMPLATES = {
    "plain": HEAD + "{% peasy_assets htmx=True %}" + BODY + WIDGETS,
    "strict": HEAD + "{% peasy_assets htmx=True %}" + BODY + WIDGETS,
    "hostile": HEAD + OLD_HTMX + BODY + WIDGETS,
    "swaps_errors": HEAD + SWAPS_ERRORS + OLD_HTMX + BODY + WIDGETS,
    "htmx4": HEAD + "{% htmx_script version=4 %}{% peasy_assets %}" + BODY + WIDGETS,
    "twice": HEAD
    + OLD_HTMX
    + BODY
    + WIDGETS
    + '{% peasy_progress jobs.0 prefix="b-" label="Again" %}',
    "include": HEAD
    + "{% peasy_assets htmx=True %}"
    + BODY
    + '{% for job in jobs %}{% include "peasy_jobs/_progress.html" with job=job %}{% endfor %}',
    "empty": HEAD + BODY,
}


def page(request: HttpRequest, name: str) -> HttpResponse:
    jobs = PeasyJobQueue.objects.in_bulk(request.GET.getlist("job"))
    context = {"jobs": [jobs[int(pk)] for pk in request.GET.getlist("job")]}
    if name == "hostile":
        context["hostile"] = engines["django"].from_string(HOSTILE).render()
    return HttpResponse(engines["django"].from_string(TEMPLATES[name]).render(context, request))


class NonceMiddleware:
    """What django-csp does, for a Django that has no such middleware itself."""

    def __init__(self, get_response: Any) -> None:
        pass

    def process_request(self, request: HttpRequest) -> None:
        request.csp_nonce = "c2l4dGVlbi1ieXRlcw"

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        rules = (f"{name} {' '.join(sources)}" for name, sources in POLICY.items())
        response["Content-Security-Policy"] = "; ".join(rules).format(
            request.csp_nonce, request.csp_nonce
        )
        return response


if django.VERSION >= (6, 0):
    from django.middleware.csp import ContentSecurityPolicyMiddleware as NonceMiddleware  # noqa: F811
    from django.utils.csp import CSP

    SECURE_CSP = {
        name: [CSP.NONCE if "nonce" in source else source for source in sources]
        for name, sources in POLICY.items()
    }
else:
    SECURE_CSP = {}


def start(request: HttpRequest, pk: int) -> HttpResponse:
    return JsonResponse({"status": get_object_or_404(PeasyJobQueue, pk=pk).status_url}, status=202)


def icon(request: HttpRequest) -> HttpResponse:
    return HttpResponse('<svg xmlns="http://www.w3.org/2000/svg"/>', content_type="image/svg+xml")


urlpatterns = [
    path("peasy/", include("peasy_jobs.urls")),
    path("icon.svg", icon),
    path("favicon.ico", icon),
    path("admin/", admin.site.urls),
    path("start/<int:pk>/", start),
    path("page/strict/", decorator_from_middleware(NonceMiddleware)(page), {"name": "strict"}),
    path("page/<str:name>/", page),
]
