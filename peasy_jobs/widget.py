"""The progress widget: what it shows, and how soon it asks again. Knows no template and no view."""

from __future__ import annotations

import hashlib
import json
import re
from time import time
from typing import TYPE_CHECKING, Any

from django.utils.translation import get_language
from django.utils.translation import gettext as _

from peasy_jobs.queue import COMPLETED, ONGOING
from peasy_jobs.status import WORDS, progress

if TYPE_CHECKING:
    from django.http import HttpRequest

    from peasy_jobs.models import PeasyJobQueue

COLUMNS = (
    *("title", "status", "status_msg", "extra", "user_id", "runner_id", "errors"),
    *("created", "started", "completed", "run_after"),
)
# Seconds since something changed that could be seen, and seconds between two looks from then on.
LADDER = ((60, 2), (600, 5), (3600, 15), (float("inf"), 60))
MILESTONE = 25  # percent that a screen reader is told of
PREFIX = re.compile(r"[A-Za-z0-9_-]{0,32}")


def shown(request: HttpRequest | None, job: PeasyJobQueue, prefix: str = "") -> dict[str, Any]:
    """The context of `_progress_body.html` for a job."""
    asked = request.GET if request is not None else {}
    prefix = prefix or _prefix(asked.get("p", ""))
    word = WORDS.get(job.status, "enqueued")
    percent = 100.0 if job.status == COMPLETED else progress(job.extra)
    content = _hash(job.title, word, job.is_over, job.status_msg, percent, job.extra, job.run_after, get_language())
    now = int(time())
    since = _number(asked.get("s", "")) if asked.get("v", "").startswith(content) else now
    every = _interval(now - since)
    milestone = f"{word}-{int((percent or 0) // MILESTONE) if job.status == ONGOING else 0}"
    return {
        "job": job,
        "id": f"{prefix}peasy-job-{job.pk}",
        "prefix": prefix,
        "word": word,
        "percent": percent,
        "over": job.is_over,
        "version": f"{content}-{every}",
        "since": since,
        "interval": every,
        "milestone": milestone,
        "announce": milestone != asked.get("a", ""),
        "token": asked.get("t", ""),
    }


def gone(request: HttpRequest, pk: int) -> dict[str, Any]:
    """The context for a job that is not there, or not for this visitor: nothing tells one from the other."""
    prefix = _prefix(request.GET.get("p", ""))
    return {
        "job": None,
        "id": f"{prefix}peasy-job-{pk}",
        "word": "gone",
        "over": True,
        "announce": True,
        "message": _("This job is no longer available."),
    }


def interval(request: HttpRequest, job: PeasyJobQueue) -> int:
    """Seconds until it is worth asking again, when nothing is known of the last answer."""
    begun = job.started or job.created
    return _interval(time() - begun.timestamp())


def _interval(age: float) -> int:
    return next(every for limit, every in LADDER if age < limit)


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _prefix(text: str) -> str:
    return text if PREFIX.fullmatch(text) else ""


def _number(text: str) -> int:
    now = int(time())
    return min(now, int(text)) if text.isascii() and text.isdecimal() and len(text) < 12 else now
