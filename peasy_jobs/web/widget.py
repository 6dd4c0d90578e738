"""What the progress widget shows, and how often it polls."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple
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
    "title",
    "status",
    "status_msg",
    "extra",
    "user_id",
    "runner_id",
    "created",
    "started",
    "completed",
    "run_after",
)


class PollStep(NamedTuple):
    """How often to poll while nothing visible has changed for less than `age` seconds."""

    age: float
    interval: int  # seconds


POLL_STEPS = (
    PollStep(age=60, interval=2),
    PollStep(age=600, interval=5),
    PollStep(age=3600, interval=15),
    PollStep(age=float("inf"), interval=60),
)
TIME_ALONE = timedelta(hours=1)  # a time of day within this distance is shown without its date
MILESTONE = 25  # percent; screen readers announce each
PREFIX = re.compile(r"[A-Za-z0-9_-]{0,32}")


class Poll(NamedTuple):
    """The query of a poll, as the previous answer wrote it."""

    prefix: str = ""  # of the element's id
    version: str = ""  # what the page shows
    since: int = 0  # when that was new, in seconds since 1970
    announced: str = ""  # the milestone that was announced last

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Poll:
        """Return what a query string says. Nonsense is ignored."""
        prefix = query.get("p", "")
        return cls(
            prefix=prefix if PREFIX.fullmatch(prefix) else "",
            version=query.get("v", ""),
            since=_past_second(query.get("s", "")),
            announced=query.get("a", ""),
        )


def job_context(
    job: PeasyJobQueue, poll: Poll, *, token: str, request: HttpRequest | None = None
) -> dict[str, Any]:
    """Return the context of `_progress_body.html` for a job."""
    percent = status_document.percent(job)
    # Rounded down: nothing is at 100 % before it has finished.
    percent = None if percent is None else int(percent)
    clock = _time_of_day(job)
    content = _content_hash(job, percent, clock)
    now = int(time())
    since = poll.since if poll.version.startswith(content) else now
    interval = _interval(now - since)
    version = f"{content}-{interval}"
    query = {"t": token, "v": version, "s": since, "a": milestone(job)}
    if poll.prefix:
        query["p"] = poll.prefix
    return {
        "job": job,
        "id": element_id(job.pk, poll.prefix),
        "word": status_document.word(job),
        "percent": percent,
        "run_after": formatting.moment(job.run_after),
        "clock": clock,
        "over": job.is_over,
        "version": version,
        "interval": str(interval),
        "url": None if job.is_over else _url(job, query, request),
        "announce": milestone(job) != poll.announced,
    }


def unavailable_context(pk: int | None, poll: Poll) -> dict[str, Any]:
    """Return the context for a job that does not exist, or that this visitor may not see.

    The two must look the same.
    """
    return {
        "job": None,
        "id": element_id(pk, poll.prefix),
        "word": "gone",
        "over": True,
        "announce": True,
        "message": _("This job is no longer available."),
    }


def milestone(job: PeasyJobQueue) -> str:
    """Return a text that changes when a screen reader should announce something.

    It changes with the status, and with each quarter of the progress.
    """
    is_running = job.status == ONGOING
    quarter = int(status_document.percent(job) or 0) // MILESTONE if is_running else 0
    return f"{status_document.word(job)}-{quarter}"


def element_id(pk: int | None, prefix: str) -> str:
    """Return the `id` of the widget. A text, because templates may write 1234 as 1,234."""
    return f"{prefix}peasy-job-{pk}"


def poll_interval(job: PeasyJobQueue) -> int:
    """Return after how many seconds to poll again, for a client that keeps no state."""
    begun = job.started or job.created
    return _interval(time() - begun.timestamp())


def _interval(age: float) -> int:
    return next(step.interval for step in POLL_STEPS if age < step.age)


def _content_hash(job: PeasyJobQueue, percent: int | None, clock: str) -> str:
    seen = [
        job.title,
        status_document.word(job),
        job.is_over,
        job.status_msg,
        percent,
        job.extra,
        job.run_after,
        clock,
        get_language(),
    ]
    text = json.dumps(seen, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _time_of_day(job: PeasyJobQueue) -> str:
    """Return when a scheduled job runs, to the second, if that is within an hour, or "".

    Not "in 4 s": that would change with every poll, and be wrong on a page that does not poll.
    """
    moment = formatting.moment(job.run_after)
    if job.status != SCHEDULED or moment is None:
        return ""
    is_near = abs(moment - timezone.now()) < TIME_ALONE
    return formatting.clock(moment) if is_near else ""


def _url(job: PeasyJobQueue, query: dict[str, Any], request: HttpRequest | None) -> str | None:
    try:
        path = address("job_progress", job.pk, request=request)
    except NoReverseMatch:  # no URLs are mounted: the widget shows the job as it is now
        return None
    return f"{path}?{urlencode(query)}"


def _past_second(text: str) -> int:
    now = int(time())
    is_number = text.isascii() and text.isdecimal() and len(text) < 12
    return min(now, int(text)) if is_number else now
