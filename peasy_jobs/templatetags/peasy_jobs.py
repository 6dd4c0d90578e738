"""`{% load peasy_jobs %}`: the progress widget, and the script and stylesheet it needs."""

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

HTMX_CONFIG = {"includeIndicatorStyles": False, "allowEval": False}


@register.inclusion_tag("peasy_jobs/_progress.html", takes_context=True)
def peasy_progress(
    context: Context, job: PeasyJobQueue | None, label: str = "", prefix: str = ""
) -> dict[str, Any]:
    """The progress widget of a job; of None, which a query for a job that is gone may give, it says that it is gone.

    label: what it is called, instead of the job's title. prefix: for a second widget of the same job on a page.
    """
    return {"job": job, "label": label, "prefix": prefix, "request": _request(context)}


@register.simple_tag(takes_context=True)
def peasy_progress_id(context: Context) -> str:
    """The `id` of the widget that is being drawn."""
    job = context.get("job")
    return widget.element_id(job.pk if job else None, _prefix(context))


@register.inclusion_tag("peasy_jobs/_progress_body.html", takes_context=True)
def peasy_progress_body(context: Context, job: PeasyJobQueue | None) -> dict[str, Any]:
    """The changing part of the widget, as it is first drawn."""
    asked = {"p": _prefix(context)}
    if not job or job.pk is None:
        return widget.gone(None, asked)
    return widget.shown(job, asked, token=links.token(job), request=_request(context))


@register.simple_tag(takes_context=True)
def peasy_assets(context: Context, htmx: bool = False, dashboard: bool = False) -> SafeString:
    """The widget's stylesheet and script, with the nonce of the site's content security policy.

    htmx: HTMX too, for a page that does not load it itself. dashboard: the stylesheets of our own pages too.
    """
    attributes = _nonce(context)
    sheet, script = static("peasy_jobs/peasy.css"), static("peasy_jobs/peasy.js")
    tags = [format_html('<link rel="stylesheet" href="{}"{}>', sheet, attributes)]
    if dashboard:
        for name in ("dashboard", "charts"):
            ours = static(f"peasy_jobs/{name}.css")
            tags.append(format_html('<link rel="stylesheet" href="{}"{}>', ours, attributes))
    if htmx:
        # HTMX 2 would write a style element, which a strict policy refuses.
        tags.append(format_html('<meta name="htmx-config" content="{}">', json.dumps(HTMX_CONFIG)))
        tags.append(format_html('<script src="{}" defer{}></script>', _htmx(), attributes))
    tags.append(format_html('<script src="{}" defer{}></script>', script, attributes))
    return format_html_join("\n", "{}", ((tag,) for tag in tags))


@register.simple_tag(takes_context=True)
def peasy_url(context: Context, view: str, *args: int) -> str:
    """What `{% url %}` is to others: the path of one of our views, wherever it is mounted."""
    return address(view, *args, request=_request(context))


def _htmx() -> str:
    from django_htmx.jinja import (
        htmx_script,
    )  # late: a site without the pages does not need the package

    # Not the tag itself: in DEBUG it comes with a script that puts Django's error page in the place of the whole page.
    return unescape(str(htmx_script(version=2)).partition('src="')[2].partition('"')[0])


def _request(context: Context) -> HttpRequest | None:
    return context.get("request") or getattr(context, "request", None)


def _prefix(context: Context) -> str:
    prefix = str(context.get("prefix") or "")
    if not widget.PREFIX.fullmatch(prefix):
        raise ValueError(
            f"The prefix of a progress widget is {prefix!r}. Use up to 32 letters, digits, - and _."
        )
    return prefix


def _nonce(context: Context) -> SafeString:
    request = _request(context)
    nonce = context.get("csp_nonce")
    if nonce is None:
        nonce = getattr(request, "csp_nonce", None)
    if nonce is None and request is not None:
        try:
            from django.middleware.csp import get_nonce  # Django 6.0
        except ImportError:
            pass
        else:
            nonce = get_nonce(request)
    # Not whether it is true: Django's own is not until it was used.
    return format_html(' nonce="{}"', nonce) if nonce is not None else SafeString("")
