"""What a visitor may know about one job: access, progress, and the JSON document.

Never loads a pickle.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.core.serializers.json import DjangoJSONEncoder
from django.core.signing import BadSignature
from django.urls import NoReverseMatch
from django.utils import timezone
from django.utils.translation import gettext as _

from peasy_jobs import conf, payloads
from peasy_jobs.links import signer
from peasy_jobs.statuses import BY_LETTER, COMPLETED, ENQUEUED, FAILED
from peasy_jobs.urlresolution import address
from peasy_jobs.web import permissions

if TYPE_CHECKING:
    from django.http import HttpRequest

    from peasy_jobs.models import PeasyJobQueue


def may_see(request: HttpRequest, job: PeasyJobQueue) -> bool:
    """Return whether this request may see the job.

    It may if it has a valid token for the job, or comes from the job's user or from someone who
    may see all jobs. `PEASY_CAN_VIEW_JOB` decides instead of the last two.
    """
    # First, so that a request with a token needs no session and no user.
    if _has_valid_token(request, job):
        return True
    if decide := conf.hook("can_view_job"):
        return permissions.is_allowed_by(decide, request, job)
    return _is_users_job(request, job) or permissions.may(request, "view")


def _has_valid_token(request: HttpRequest, job: PeasyJobQueue) -> bool:
    signed = f"{job.pk}:{request.GET.get('t', '')}"
    try:
        signer(job).unsign(signed, max_age=timedelta(seconds=conf.get().token_max_age))
    except BadSignature:
        return False
    except UnicodeEncodeError:  # the charset of the request may decode to half a surrogate pair
        return False
    return True


def _is_users_job(request: HttpRequest, job: PeasyJobQueue) -> bool:
    user = getattr(request, "user", None)
    if user is None or not user.is_active or user.pk is None:
        return False
    return bool(job.user_id == user.pk)


def word(job: PeasyJobQueue) -> str:
    """Return the status of a job as pages and the JSON document call it."""
    return BY_LETTER.get(job.status, BY_LETTER[ENQUEUED]).word


def percent(job: PeasyJobQueue) -> float | None:
    """Return the progress of a job, 0 to 100, or None if it is unknown."""
    return 100.0 if job.status == COMPLETED else progress(job.extra)


def progress(extra: Any) -> float | None:
    """Return the progress that `extra` reports, 0 to 100, or None if it reports none.

    Reads the key `progress`: a number, a text with a number, or `[done, total]`.
    """
    value = extra.get("progress") if isinstance(extra, dict) else None
    try:
        if isinstance(value, list | tuple) and len(value) == 2:
            done, total = value
            number = 100 * _number(done) / _number(total)
        else:
            number = _number(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return min(100.0, max(0.0, number)) if math.isfinite(number) else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    number = float(value)
    return number if math.isfinite(number) else math.nan


def document(request: HttpRequest, job: PeasyJobQueue) -> dict[str, Any]:
    """Return the JSON document of a job. Later versions may add keys.

    `PEASY_JOB_JSON`, a callable, may change it.
    """
    # With a token the answer depends on the link alone, never on who uses it.
    sees_all = "t" not in request.GET and permissions.may(request, "view")
    content: dict[str, Any] = {
        "id": str(job.pk),
        "title": job.title,
        "status": word(job),
        "status_display": job.get_status_display(),
        "done": job.is_over,
        "progress": percent(job),
        "status_msg": job.status_msg,
        "extra": job.extra,
        "error": _error(job, sees_all) if job.status == FAILED else None,
        "created": _iso(job.created),
        "started": _iso(job.started),
        "completed": _iso(job.completed),
    }
    is_plain, result = payloads.plain(job.result_data)
    if is_plain and job.status == COMPLETED:
        content["result"] = result
    if sees_all:
        with suppress(NoReverseMatch):  # only the status URLs are mounted
            content["url"] = address("job_detail", job.pk, request=request)
    if change := conf.hook("job_json"):
        content = change(request, job, content)
    return content


def encode(document: dict[str, Any]) -> bytes:
    """Return a document as JSON. NaN and the infinities, which JSON lacks, become null."""
    text = json.dumps(document, cls=DjangoJSONEncoder)
    strict = json.loads(text, parse_constant=lambda _: None)
    # ASCII, because half of a surrogate pair cannot be encoded as UTF-8.
    return json.dumps(strict).encode()


def _error(job: PeasyJobQueue, sees_all: bool) -> dict[str, str]:
    if not sees_all:
        return {"message": _("The job failed.")}
    last = job.errors[-1] if isinstance(job.errors, list) and job.errors else {}
    exception = last.get("exception", "") if isinstance(last, dict) else ""
    return {"message": job.error, "type": str(exception or "")}


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    utc = moment.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
