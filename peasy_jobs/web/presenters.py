"""What the pages of the dashboard and of the admin show: tabs, rows, runners, and what is wrong. Knows no template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from shlex import quote
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Count, Min
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _

from peasy_jobs import payloads
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import CANCELLED, ENQUEUED, FAILED, ONGOING, SCHEDULED, STATUSES, sources
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import formatting, status_document, widget
from peasy_jobs.web.filters import CAP, PAGE, RUNNERS, WINDOW, Filters, Snapshot

# Neither arguments nor results: a page must not drag megabytes out of the database.
COLUMNS = (
    *(
        "title",
        "status",
        "status_msg",
        "extra",
        "queue_name",
        "attempts",
        "crashes",
        "errors",
        "runner_id",
    ),
    *("created", "started", "completed", "run_after"),
)


class Tab(NamedTuple):
    word: str
    label: str
    total: str
    query: str
    current: bool


class Row(NamedTuple):
    """One job in a list."""

    job: PeasyJobQueue
    word: str
    label: str
    percent: float | None
    message: str
    duration: str
    elapsed: float | None  # seconds that it has been running for
    queue_query: str
    run_after: datetime | None


class RunningJob(NamedTuple):
    """What a worker of a runner is at."""

    pk: int
    title: str
    duration: str
    elapsed: float


class RunnerRow(NamedTuple):
    """A runner."""

    runner: PeasyRunner
    alive: bool
    doing: list[RunningJob]
    ahead: int  # claimed and not started yet
    queues: list[str]


def board(filters: Filters, snapshot: Snapshot) -> dict[str, Any]:
    """The context of the dashboard's changing part."""
    pks = snapshot.pks
    more = len(pks) > PAGE
    if more:
        pks = pks[1:] if filters.after is not None else pks[:PAGE]
    jobs = (
        PeasyJobQueue.objects.only(*COLUMNS).in_bulk({*pks, *snapshot.running})
        if pks or snapshot.running
        else {}
    )
    runners = PeasyRunner.objects.order_by("host", "pk")[:RUNNERS]
    shown = hosts(snapshot.now, runners, [jobs[pk] for pk in snapshot.running if pk in jobs])
    older = more if filters.after is None else bool(pks)
    newer = more if filters.after is not None else filters.before is not None
    moment = as_field(snapshot.now)
    return {
        "filters": filters,
        "without_q": filters.query(q=""),
        "without_queue": filters.query(queue=""),
        "query": filters.query(before=filters.before, after=filters.after),
        "version": snapshot.version,
        "failed": snapshot.counts[FAILED],
        "tabs": _tabs(filters, snapshot.counts),
        "rows": [row(jobs[pk], moment, filters) for pk in pks if pk in jobs],
        "hosts": shown,
        "alive": sum(host.alive for host in shown),
        "stalled": stalled(snapshot.counts, [host for host in shown if host.alive], filters),
        "older": filters.query(before=pks[-1], after=None) if older and pks else "",
        "newer": filters.query(before=None, after=pks[0]) if newer and pks else "",
        "newest": "" if filters.before is filters.after is None else filters.query() or "?",
        "window": f"{WINDOW:,}" if filters.narrow else "",
    }


def row(job: PeasyJobQueue, now: datetime, filters: Filters | None = None) -> Row:
    """What a list shows of one job."""
    label = job.get_status_display()
    running = job.started is not None and job.completed is None and job.runner_id is not None
    if running and job.status != ONGOING:
        label = _("Cancelled, still stopping")
    elapsed = _age(job.started, now) if running and job.started else None
    took = formatting.duration(elapsed) if elapsed is not None else ""
    if job.started and job.completed:
        took = formatting.duration((job.completed - job.started).total_seconds())
    message = payloads.text(
        job.error if job.status in (FAILED, SCHEDULED) and job.error else job.status_msg, 300
    )
    query = (filters or Filters()).query(queue=job.queue_name)
    after = formatting.moment(job.run_after)
    return Row(
        job,
        status_document.word(job),
        label,
        status_document.percent(job),
        message,
        took,
        elapsed,
        query,
        after,
    )


def detail(job: PeasyJobQueue) -> dict[str, Any]:
    """The context of a job's page."""
    now = database_now(connections[PeasyJobQueue.objects.all().db])
    return {
        "job": job,
        "row": row(job, as_field(now)),
        "version": version(job),
        "milestone": widget.milestone(job),
        "arguments": formatting.arguments(job),
        "result": formatting.result(job),
        "extra": formatting.text(job.extra) if job.extra is not None else "",
        "failures": formatting.failures(job),
        "alive": job.runner is not None and job.runner.lease_until >= now.timestamp(),
        "can_be": {
            "cancel": job.status in sources("cancel"),
            "retry": job.status in sources("retry") and job.runner_id is None,
            "delete": job.status != ONGOING and job.runner_id is None,
        },
    }


def version(job: PeasyJobQueue) -> str:
    """Changes whenever the page of this job would look different."""
    seen = [getattr(job, name) for name in (*COLUMNS, "claims", "priority")]
    return hashlib.sha256(json.dumps([*seen, get_language()], default=str).encode()).hexdigest()[
        :16
    ]


def stalled(counts: dict[str, int], alive: Iterable[RunnerRow], filters: Filters) -> list[str]:
    """A sentence for all jobs that wait while nobody is there to run them, or one for each such queue."""
    served = [host.runner.queues for host in alive]
    if not all(served) or not (counts[ENQUEUED] or filters.narrow):  # no queues: all of them
        return []
    waiting = PeasyJobQueue.objects.filter(status=ENQUEUED)
    if not served:
        waiting = waiting.filter(claims__gte=0).order_by(
            "-priority", "pk"
        )  # as they lie in an index
        count = waiting[:CAP].count() if filters.narrow else counts[ENQUEUED]
        first = waiting.values_list("created", flat=True)[:200]
        return [_sentence(count, min(first), None)] if first else []
    names = {name for queues in served for name in queues}
    groups = waiting.order_by().exclude(queue_name__in=names).values("queue_name")
    return [
        _sentence(group["count"], group["since"], group["queue_name"])
        for group in groups.annotate(count=Count("pk"), since=Min("created")).order_by(
            "queue_name"
        )[:10]
    ]


def _sentence(count: int, since: datetime, queue: str | None) -> str:
    local = timezone.localtime(since) if timezone.is_aware(since) else since
    today = timezone.localdate() if timezone.is_aware(since) else datetime.now().date()
    moment = date_format(local, "H:i" if local.date() == today else "Y-m-d H:i")
    values = {
        "count": f"{count:,}" if count < CAP else f"{CAP - 1:,}+",
        "queue": queue,
        "since": moment,
        "command": "manage.py run_peasy"
        if queue is None
        else f"manage.py run_peasy --queue {quote(queue)}",
    }
    if queue is None:
        text = ngettext(
            "%(count)s job waiting since %(since)s and no runner is alive: start one with %(command)s",
            "%(count)s jobs waiting since %(since)s and no runner is alive: start one with %(command)s",
            count,
        )
    else:
        text = ngettext(
            "%(count)s job waiting in the queue %(queue)s since %(since)s and no runner of it is alive: "
            "start one with %(command)s",
            "%(count)s jobs waiting in the queue %(queue)s since %(since)s and no runner of it is alive: "
            "start one with %(command)s",
            count,
        )
    return text % values


def _age(since: datetime, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds())


def _tabs(filters: Filters, counts: dict[str, int]) -> list[Tab]:
    tabs = [Tab("", _("All"), "", filters.query(status=""), not filters.status)]
    for status in STATUSES:
        number, word = counts[status.letter], status.word
        count = f"{CAP - 1:,}+" if number >= CAP else f"{number:,}"
        tabs.append(
            Tab(word, str(status.label), count, filters.query(status=word), filters.status == word)
        )
    return tabs


def hosts(
    now: datetime, runners: Iterable[PeasyRunner], running: list[PeasyJobQueue]
) -> list[RunnerRow]:
    """What is shown of these runners, of which `running` names the jobs."""
    moment, found = as_field(now), []
    for runner in runners:
        mine = [
            job
            for job in running
            if job.runner_id == runner.pk and job.status in (ONGOING, CANCELLED)
        ]
        ages = [(job, _age(job.started, moment)) for job in mine if job.started]
        doing = [RunningJob(job.pk, job.title, formatting.duration(age), age) for job, age in ages]
        queues = [str(name) for name in runner.queues] if isinstance(runner.queues, list) else []
        alive = runner.lease_until >= now.timestamp()
        found.append(RunnerRow(runner, alive, doing, len(mine) - len(doing), queues))
    return found
