"""Signed links, whose holder may see the status of one job."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from django.core.signing import TimestampSigner
from django.utils import timezone

from peasy_jobs.urlresolution import address

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue


def signed_url(job: PeasyJobQueue, view: str) -> str:
    """Return the path of a view of this job, with a token.

    Raises `NoReverseMatch` if the URLs of peasy_jobs are not mounted.
    """
    return f"{address(view, job.pk)}?t={token(job)}"


def token(job: PeasyJobQueue) -> str:
    """Return a token that lets its holder see this job for `PEASY_TOKEN_MAX_AGE` seconds."""
    return signer(job).sign(str(job.pk)).partition(":")[2]


def signer(job: PeasyJobQueue) -> TimestampSigner:
    """Return the signer of the tokens of this job."""
    # With the time of its creation, because a database may use a primary key again. In UTC,
    # because the time of a row that was read may be in the database's time zone.
    created = job.created.astimezone(UTC) if timezone.is_aware(job.created) else job.created
    return TimestampSigner(salt=f"peasy_jobs.job:{created:%Y%m%d%H%M%S%f}")
