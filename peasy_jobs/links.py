"""Signed links to the status of one job."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from django.core.signing import TimestampSigner
from django.utils import timezone

from peasy_jobs.urlresolution import address

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue


def signed_url(job: PeasyJobQueue, view: str) -> str:
    """The path of a view of this job, for whoever is given it. Raises `NoReverseMatch` where no URLs of ours are."""
    return f"{address(view, job.pk)}?t={token(job)}"


def token(job: PeasyJobQueue) -> str:
    """Lets its bearer see the status of this one job for `PEASY_TOKEN_MAX_AGE` seconds, and nothing else."""
    return signer(job).sign(str(job.pk)).partition(":")[2]


def signer(job: PeasyJobQueue) -> TimestampSigner:
    # With the time: a database may use a primary key again. In UTC: a row that was read may be in the database's zone.
    created = job.created.astimezone(UTC) if timezone.is_aware(job.created) else job.created
    return TimestampSigner(salt=f"peasy_jobs.job:{created:%Y%m%d%H%M%S%f}")
