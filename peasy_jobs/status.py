"""What may be shown of one job, and to whom: signed links, progress, the JSON document. Unpickles nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.core.signing import BadSignature, TimestampSigner
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _

from peasy_jobs import conf, payloads
from peasy_jobs.queue import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED

if TYPE_CHECKING:
    from django.http import HttpRequest

    from peasy_jobs.models import PeasyJobQueue

# What the pages and the JSON document call the statuses: the letters in the database are nobody else's business.
WORDS = {
    ENQUEUED: "enqueued",
    SCHEDULED: "scheduled",
    ONGOING: "ongoing",
    COMPLETED: "completed",
    FAILED: "failed",
    CANCELLED: "cancelled",
}
VIEW = "peasy_jobs.view_peasyjobqueue"


def signed_url(job: PeasyJobQueue, view: str) -> str:
    """The path of a view of this job, for whoever is given it. Raises `NoReverseMatch` where no URLs of ours are."""
    return f"{reverse(view, args=[job.pk])}?t={token(job)}"


def token(job: PeasyJobQueue) -> str:
    """Lets its bearer see the status of this one job for `PEASY_TOKEN_MAX_AGE` seconds, and nothing else."""
    return _signer(job).sign(str(job.pk)).partition(":")[2]


def may_see(request: HttpRequest, job: PeasyJobQueue) -> bool:
    """Whether this request may see the job: it bears its token, its user makes it, or staff who may view jobs.

    `PEASY_CAN_VIEW_JOB`, a callable that is given both, decides instead of the last two.
    """
    try:
        # First: where it is valid nothing else is asked, not even who the visitor is.
        _signer(job).unsign(f"{job.pk}:{request.GET.get('t', '')}", max_age=timedelta(seconds=conf.get().token_max_age))
        return True
    except BadSignature:
        pass
    hook = conf.get().can_view_job
    if hook is not None:
        decide: Callable[[HttpRequest, PeasyJobQueue], object] = import_string(hook)
        return bool(decide(request, job))
    user = getattr(request, "user", None)
    if user is None or not user.is_active:
        return False
    return bool(job.user_id == user.pk or (user.is_staff and user.has_perm(VIEW)))


def progress(extra: Any) -> float | None:
    """How far a job is, 0 to 100, from its `extra`; None when it does not say so.

    Takes a number, a text that is one, or [done, total], under the key `progress`.
    """
    value = extra.get("progress") if isinstance(extra, dict) else None
    try:
        if isinstance(value, list | tuple) and len(value) == 2:
            value = 100 * float(value[0]) / float(value[1])
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return min(100.0, max(0.0, number)) if math.isfinite(number) else None


def document(request: HttpRequest, job: PeasyJobQueue) -> dict[str, Any]:
    """The JSON document of a job. More keys may come; `PEASY_JOB_JSON`, a callable, may change it."""
    sees_all = _is_staff_who_may_view(request)
    shown: dict[str, Any] = {
        "id": str(job.pk),
        "title": job.title,
        "status": WORDS.get(job.status, ENQUEUED),
        "status_display": job.get_status_display(),
        "done": job.is_over,
        "progress": 100.0 if job.status == COMPLETED else progress(job.extra),
        "status_msg": job.status_msg,
        "extra": finite(job.extra),
        "error": None,
        "created": _iso(job.created),
        "started": _iso(job.started),
        "completed": _iso(job.completed),
    }
    if job.status == FAILED:
        shown["error"] = {"message": job.error if sees_all else _("The job failed.")}
    plain, result = payloads.plain(job.result_data)
    if plain and job.status == COMPLETED:
        shown["result"] = finite(result)
    if sees_all:
        try:
            shown["url"] = reverse("peasy_jobs:job_detail", args=[job.pk])
        except NoReverseMatch:  # only the status URLs are mounted
            pass
    hook = conf.get().job_json
    if hook is not None:
        change: Callable[[HttpRequest, PeasyJobQueue, dict[str, Any]], dict[str, Any]] = import_string(hook)
        shown = change(request, job, shown)
    return shown


def finite(value: Any) -> Any:
    """A JSON value without what JSON does not know: NaN and the infinities become None."""
    text = json.dumps(value)
    return json.loads(text, parse_constant=lambda _: None)


def _is_staff_who_may_view(request: HttpRequest) -> bool:
    # A bearer of a token is not asked who he is, so that the answer depends on nothing but the link.
    user = None if "t" in request.GET else getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff and user.has_perm(VIEW))


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    aware = moment if timezone.is_aware(moment) else timezone.make_aware(moment, timezone.get_default_timezone())
    return aware.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _signer(job: PeasyJobQueue) -> TimestampSigner:
    # With the time: a database may use a primary key again.
    return TimestampSigner(salt=f"peasy_jobs.job:{job.created:%Y%m%d%H%M%S%f}")
