"""The progress widget: what it shows, and how soon it asks again. Knows no template and no view."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.urls import NoReverseMatch
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from peasy_jobs.statuses import ONGOING, SCHEDULED
from peasy_jobs.urlresolution import address
from peasy_jobs.web import formatting, status_document

if TYPE_CHECKING:
    from django.http import HttpRequest

    from peasy_jobs.models import PeasyJobQueue

COLUMNS = (
    *("title", "status", "status_msg", "extra", "user_id", "runner_id"),
    *("created", "started", "completed", "run_after"),
)
# Seconds since something changed that could be seen, and seconds between two looks from then on.
LADDER = ((60, 2), (600, 5), (3600, 15), (float("inf"), 60))
NEAR = timedelta(hours=1)  # before and after: within it a time of day needs no date
MILESTONE = 25  # percent that a screen reader is told of
PREFIX = re.compile(r"[A-Za-z0-9_-]{0,32}")


def shown(
    job: PeasyJobQueue, asked: Mapping[str, str], *, token: str, request: HttpRequest | None = None
) -> dict[str, Any]:
    """The context of `_progress_body.html` for a job. asked: the query of a poll, which the last answer wrote."""
    prefix = _prefix(asked)
    word, percent = status_document.word(job), status_document.percent(job)
    # Rounded down: nothing is at 100 % before it has ended.
    percent = None if percent is None else int(percent)
    clock = _clock(job)
    seen = (
        job.title,
        word,
        job.is_over,
        job.status_msg,
        percent,
        job.extra,
        job.run_after,
        clock,
        get_language(),
    )
    content = _hash(*seen)
    now = int(time())
    since = _number(asked.get("s", "")) if asked.get("v", "").startswith(content) else now
    every = _interval(now - since)
    version = f"{content}-{every}"
    query = {"t": token, "v": version, "s": since, "a": milestone(job)} | (
        {"p": prefix} if prefix else {}
    )
    return {
        "job": job,
        "id": element_id(job.pk, prefix),
        "word": word,
        "percent": percent,
        "run_after": formatting.moment(job.run_after),
        "clock": clock,
        "over": job.is_over,
        "version": version,
        "interval": str(every),
        "url": None if job.is_over else _url(job, query, request),
        "announce": milestone(job) != asked.get("a", ""),
    }


def milestone(job: PeasyJobQueue) -> str:
    """Changes when a screen reader should say something: with the status, and at each quarter of the way."""
    quarter = int(status_document.percent(job) or 0) // MILESTONE if job.status == ONGOING else 0
    return f"{status_document.word(job)}-{quarter}"


def gone(pk: int | None, asked: Mapping[str, str]) -> dict[str, Any]:
    """The context for a job that is not there, or not for this visitor: nothing tells one from the other."""
    return {
        "job": None,
        "id": element_id(pk, _prefix(asked)),
        "word": "gone",
        "over": True,
        "announce": True,
        "message": _("This job is no longer available."),
    }


def element_id(pk: int | None, prefix: str) -> str:
    """The `id` of the widget. A text, that no locale writes 1,234 for 1234."""
    return f"{prefix}peasy-job-{pk}"


def interval(job: PeasyJobQueue) -> float:
    """Seconds until it is worth asking again, when nothing is known of the last answer."""
    begun = job.started or job.created
    return _interval(time() - begun.timestamp())


def _clock(job: PeasyJobQueue) -> str:
    """When a job that waits runs, while that is so near that seconds count; otherwise empty.

    No "in 4 s": that would be drawn anew with each poll, and be wrong on a page that does not poll.
    """
    waits, moment = job.status == SCHEDULED, formatting.moment(job.run_after)
    return (
        formatting.clock(moment) if waits and moment and abs(moment - timezone.now()) < NEAR else ""
    )


def _url(job: PeasyJobQueue, query: dict[str, Any], request: HttpRequest | None) -> str | None:
    try:
        path = address("job_progress", job.pk, request=request)
    except NoReverseMatch:  # none of our URLs is mounted: the widget shows the job as it is now
        return None
    return f"{path}?{urlencode(query)}"


def _interval(age: float) -> float:
    return next(every for limit, every in LADDER if age < limit)


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _prefix(asked: Mapping[str, str]) -> str:
    text = asked.get("p", "")
    return text if PREFIX.fullmatch(text) else ""


def _number(text: str) -> int:
    now = int(time())
    return min(now, int(text)) if text.isascii() and text.isdecimal() and len(text) < 12 else now
