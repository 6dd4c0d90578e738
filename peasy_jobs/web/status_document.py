"""What may be shown of one job, and to whom: signed links, progress, the JSON document. Unpickles nothing."""

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

LARGEST_KEY = 2**63 - 1  # that a database can be asked for


def may_see(request: HttpRequest, job: PeasyJobQueue) -> bool:
    """Whether this request may see the job: it bears its token, its user makes it, or one who may see all jobs.

    `PEASY_CAN_VIEW_JOB`, a callable that is given both, decides instead of the last two.
    """
    try:
        # First: where it is valid nothing else is asked, not even who the visitor is.
        signer(job).unsign(
            f"{job.pk}:{request.GET.get('t', '')}",
            max_age=timedelta(seconds=conf.get().token_max_age),
        )
        return True
    except (
        BadSignature,
        UnicodeEncodeError,
    ):  # a charset that the request names may give half a surrogate pair
        pass
    if decide := conf.hook("can_view_job"):
        return permissions.says_yes(decide, request, job)
    user = getattr(request, "user", None)
    owns = user is not None and user.is_active and user.pk is not None and job.user_id == user.pk
    return bool(owns or permissions.may(request, "view"))


def word(job: PeasyJobQueue) -> str:
    """The status of a job, as pages and the JSON document call it."""
    return BY_LETTER.get(job.status, BY_LETTER[ENQUEUED]).word


def percent(job: PeasyJobQueue) -> float | None:
    """How far a job is, 0 to 100; None when it does not say so."""
    return 100.0 if job.status == COMPLETED else progress(job.extra)


def progress(extra: Any) -> float | None:
    """How far a job is, 0 to 100, from its `extra`; None when it does not say so.

    Takes a number, a text that is one, or [done, total], under the key `progress`.
    """
    value = extra.get("progress") if isinstance(extra, dict) else None
    try:
        if isinstance(value, list | tuple) and len(value) == 2:
            number = 100 * _number(value[0]) / _number(value[1])
        else:
            number = _number(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return None
    return min(100.0, max(0.0, number)) if math.isfinite(number) else None


def _number(value: Any) -> float:
    number = (
        float(value)
        if isinstance(value, int | float | str) and not isinstance(value, bool)
        else math.nan
    )
    return number if math.isfinite(number) else math.nan


def document(request: HttpRequest, job: PeasyJobQueue) -> dict[str, Any]:
    """The JSON document of a job. More keys may come; `PEASY_JOB_JSON`, a callable, may change it."""
    # A bearer of a token is not asked who he is, so that the answer depends on nothing but the link.
    sees_all = "t" not in request.GET and permissions.may(request, "view")
    shown: dict[str, Any] = {
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
    plain, result = payloads.plain(job.result_data)
    if plain and job.status == COMPLETED:
        shown["result"] = result
    if sees_all:
        with suppress(NoReverseMatch):  # only the status URLs are mounted
            shown["url"] = address("job_detail", job.pk, request=request)
    if change := conf.hook("job_json"):
        shown = change(request, job, shown)
    return shown


def encode(document: dict[str, Any]) -> bytes:
    """As JSON, without what JSON does not know: NaN and the infinities become null."""
    text = json.dumps(document, cls=DjangoJSONEncoder)
    # ASCII: half of a surrogate pair could not be written otherwise.
    return json.dumps(json.loads(text, parse_constant=lambda _: None)).encode()


def _error(job: PeasyJobQueue, sees_all: bool) -> dict[str, str]:
    if not sees_all:
        return {"message": _("The job failed.")}
    last = job.errors[-1] if isinstance(job.errors, list) and job.errors else {}
    kind = last.get("exception", "") if isinstance(last, dict) else ""
    return {"message": job.error, "type": str(kind or "")}


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    aware = (
        moment
        if timezone.is_aware(moment)
        else timezone.make_aware(moment, timezone.get_default_timezone())
    )
    return aware.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
