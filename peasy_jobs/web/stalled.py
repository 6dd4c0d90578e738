"""Warn about waiting jobs that no live runner serves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from shlex import quote
from typing import NamedTuple

from django.db.models import Count, Min
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import ngettext

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import ENQUEUED
from peasy_jobs.web import listing
from peasy_jobs.web.filters import Filters

QUEUES_NAMED = 10
SAMPLE = 200  # the jobs that run first, among which the oldest is looked for


class Backlog(NamedTuple):
    jobs: int  # stops above `listing.COUNT_LIMIT`
    since: datetime
    queue: str | None = None  # None: all queues


def warnings(
    counts: dict[str, int], served_queues: Sequence[list[str]], filters: Filters
) -> list[str]:
    """Return one sentence if no runner is alive, or one for each queue that none of them serves.

    `served_queues` has the queues of each live runner; an empty list stands for all queues.
    """
    some_runner_serves_all = not all(served_queues)
    # The counts of a narrow list are those of its jobs, not of all jobs.
    if some_runner_serves_all or not (counts[ENQUEUED] or filters.narrow):
        return []
    if not served_queues:
        backlog = _whole_backlog(None if filters.narrow else counts[ENQUEUED])
        return [_without_any_runner(backlog)] if backlog else []
    served = {name for queues in served_queues for name in queues}
    return [_without_a_runner_of_its_queue(backlog) for backlog in _unserved_queues(served)]


def _whole_backlog(count: int | None) -> Backlog | None:
    waiting = PeasyJobQueue.objects.filter(status=ENQUEUED)
    # Condition and order of the index `peasy_waiting`.
    waiting = waiting.filter(claims__gte=0).order_by("-priority", "pk")
    created = list(waiting.values_list("created", flat=True)[:SAMPLE])
    if not created:
        return None
    if count is None:
        count = waiting[: listing.COUNT_LIMIT + 1].count()
    return Backlog(count, since=min(created))


def _unserved_queues(served: set[str]) -> list[Backlog]:
    waiting = PeasyJobQueue.objects.filter(status=ENQUEUED).exclude(queue_name__in=served)
    groups = waiting.order_by().values("queue_name")
    groups = groups.annotate(count=Count("pk"), since=Min("created")).order_by("queue_name")
    return [
        Backlog(group["count"], group["since"], group["queue_name"])
        for group in groups[:QUEUES_NAMED]
    ]


def _without_any_runner(backlog: Backlog) -> str:
    text = ngettext(
        "%(count)s job waiting since %(since)s and no runner is alive: start one with %(command)s",
        "%(count)s jobs waiting since %(since)s and no runner is alive: start one with %(command)s",
        backlog.jobs,
    )
    return text % {
        "count": count_text(backlog.jobs),
        "since": _moment(backlog.since),
        "command": "manage.py run_peasy",
    }


def _without_a_runner_of_its_queue(backlog: Backlog) -> str:
    text = ngettext(
        "%(count)s job waiting in the queue %(queue)s since %(since)s and no runner of it is "
        "alive: start one with %(command)s",
        "%(count)s jobs waiting in the queue %(queue)s since %(since)s and no runner of it is "
        "alive: start one with %(command)s",
        backlog.jobs,
    )
    return text % {
        "count": count_text(backlog.jobs),
        "queue": backlog.queue,
        "since": _moment(backlog.since),
        "command": f"manage.py run_peasy --queue {quote(backlog.queue or '')}",
    }


def count_text(count: int) -> str:
    """Return a count as pages show it: "9,999", or "10,000+" above the limit."""
    limit = listing.COUNT_LIMIT
    return f"{count:,}" if count <= limit else f"{limit:,}+"


def _moment(since: datetime) -> str:
    is_aware = timezone.is_aware(since)
    local = timezone.localtime(since) if is_aware else since
    today = timezone.localdate() if is_aware else datetime.now().date()
    return date_format(local, "H:i" if local.date() == today else "Y-m-d H:i")
