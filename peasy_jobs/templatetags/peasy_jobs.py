"""Template tags: the progress widget, and the script and stylesheet that it needs."""

from __future__ import annotations

import json
from html import unescape
from typing import Any

from django import template
from django.http import HttpRequest
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from peasy_jobs import links
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.urlresolution import address
from peasy_jobs.web import widget

register = template.Library()

# HTMX 2 would insert a style element, which a strict content security policy refuses.
HTMX_CONFIG = {"includeIndicatorStyles": False, "allowEval": False}


@register.inclusion_tag("peasy_jobs/_progress.html", takes_context=True)
def peasy_progress(
    context: Context, job: PeasyJobQueue | None, label: str = "", prefix: str = ""
) -> dict[str, Any]:
    """Show the progress widget of a job. For None, it says that the job is no longer available.

    `label` replaces the job's title. `prefix` makes the ids of a second widget for the same job
    unique.
    """
    return {"job": job, "label": label, "prefix": prefix, "request": _request(context)}


@register.simple_tag(takes_context=True)
def peasy_progress_id(context: Context) -> str:
    """Return the `id` of the widget that is being rendered."""
    job = context.get("job")
    return widget.element_id(job.pk if job else None, _prefix(context))


@register.inclusion_tag("peasy_jobs/_progress_body.html", takes_context=True)
def peasy_progress_body(context: Context, job: PeasyJobQueue | None) -> dict[str, Any]:
    """Show the part of the widget that polls replace."""
    poll = widget.Poll(prefix=_prefix(context))
    if not job or job.pk is None:
        return widget.unavailable_context(None, poll)
    return widget.job_context(job, poll, token=links.token(job), request=_request(context))


@register.simple_tag(takes_context=True)
def peasy_assets(context: Context, htmx: bool = False, dashboard: bool = False) -> SafeString:
    """Return the widget's stylesheet and script, with the nonce of the content security policy.

    `htmx` adds HTMX, for pages that do not load it themselves. `dashboard` adds the stylesheets of
    the dashboard.
    """
    nonce = _nonce_attribute(context)
    sheets = ["peasy", "dashboard", "charts"] if dashboard else ["peasy"]
    tags = [
        format_html('<link rel="stylesheet" href="{}"{}>', static(f"peasy_jobs/{name}.css"), nonce)
        for name in sheets
    ]
    if htmx:
        tags.append(format_html('<meta name="htmx-config" content="{}">', json.dumps(HTMX_CONFIG)))
        tags.append(format_html('<script src="{}" defer{}></script>', _htmx_address(), nonce))
    script = static("peasy_jobs/peasy.js")
    tags.append(format_html('<script src="{}" defer{}></script>', script, nonce))
    return format_html_join("\n", "{}", ((tag,) for tag in tags))


@register.simple_tag(takes_context=True)
def peasy_url(context: Context, view: str, *args: int) -> str:
    """Return the path of a view of peasy_jobs, wherever it is mounted."""
    return address(view, *args, request=_request(context))


def _htmx_address() -> str:
    # Imported late: a site that loads HTMX itself does not need the package.
    from django_htmx.jinja import htmx_script

    # Not the tag itself: with DEBUG it adds a script that replaces the whole page with Django's
    # error page.
    tag = str(htmx_script(version=2))
    return unescape(tag.partition('src="')[2].partition('"')[0])


def _request(context: Context) -> HttpRequest | None:
    return context.get("request") or getattr(context, "request", None)


def _prefix(context: Context) -> str:
    prefix = str(context.get("prefix") or "")
    if not widget.PREFIX.fullmatch(prefix):
        raise ValueError(
            f"The prefix of a progress widget is {prefix!r}. Use up to 32 letters, digits, - and _."
        )
    return prefix


def _nonce_attribute(context: Context) -> SafeString:
    request = _request(context)
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(request, "csp_nonce", None)
    if nonce is None and request is not None:
        nonce = _django_nonce(request)
    # Not `if nonce`: Django's own is false until it has been used.
    return format_html(' nonce="{}"', nonce) if nonce is not None else SafeString("")


def _django_nonce(request: HttpRequest) -> Any:
    try:
        from django.middleware.csp import get_nonce  # Django 6.0
    except ImportError:
        return None
    return get_nonce(request)
