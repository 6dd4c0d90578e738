"""The contexts of the dashboard's and the admin's templates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from peasy_jobs import payloads
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import CANCELLED, FAILED, ONGOING, SCHEDULED, STATUSES, sources
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import formatting, listing, stalled, status_document, widget
from peasy_jobs.web.filters import Filters
from peasy_jobs.web.snapshot import RUNNERS_SHOWN, Snapshot

MESSAGE_LENGTH = 300  # characters in a list

# Without arguments and results, which may be megabytes.
COLUMNS = (
    "title",
    "status",
    "status_msg",
    "extra",
    "queue_name",
    "attempts",
    "crashes",
    "errors",
    "runner_id",
    "created",
    "started",
    "completed",
    "run_after",
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
    elapsed: float | None  # seconds since it started, while it runs
    queue_query: str  # leads to the jobs of its queue
    run_after: datetime | None


class RunningJob(NamedTuple):
    pk: int
    title: str
    duration: str
    elapsed: float  # seconds


class RunnerRow(NamedTuple):
    """One runner and its jobs."""

    runner: PeasyRunner
    alive: bool
    running_jobs: list[RunningJob]
    not_started: int  # jobs that are claimed but have not started
    queues: list[str]


class PageLinks(NamedTuple):
    """Query strings; empty where there is no such page."""

    older: str
    newer: str
    newest: str


def dashboard_context(filters: Filters, snapshot: Snapshot) -> dict[str, Any]:
    """Return the context of the part of the dashboard that is updated. At most 3 queries."""
    pks = _without_the_extra_one(filters, snapshot.pks)
    jobs = _jobs({*pks, *snapshot.running})
    now = as_field(snapshot.now)
    runners = runner_rows(
        snapshot.now,
        PeasyRunner.objects.order_by("host", "pk")[:RUNNERS_SHOWN],
        [jobs[pk] for pk in snapshot.running if pk in jobs],
    )
    alive = [row for row in runners if row.alive]
    links = _page_links(filters, pks, has_more=len(pks) < len(snapshot.pks))
    return {
        "filters": filters,
        "without_q": filters.query(q=""),
        "without_queue": filters.query(queue=""),
        "query": filters.query(before=filters.before, after=filters.after),
        "version": snapshot.version,
        "failed": snapshot.counts[FAILED],
        "tabs": _tabs(filters, snapshot.counts),
        "rows": [job_row(jobs[pk], now, filters) for pk in pks if pk in jobs],
        "runners": runners,
        "alive": len(alive),
        "stalled": stalled.warnings(snapshot.counts, [row.queues for row in alive], filters),
        **links._asdict(),
        "window": f"{listing.WINDOW:,}" if filters.narrow else "",
    }


def _without_the_extra_one(filters: Filters, pks: list[int]) -> list[int]:
    if len(pks) <= listing.PAGE_SIZE:
        return pks
    return pks[1:] if filters.after is not None else pks[: listing.PAGE_SIZE]


def _jobs(pks: set[int]) -> dict[int, PeasyJobQueue]:
    return PeasyJobQueue.objects.only(*COLUMNS).in_bulk(pks) if pks else {}


def _page_links(filters: Filters, pks: list[int], *, has_more: bool) -> PageLinks:
    if filters.after is None:
        has_older, has_newer = has_more, filters.before is not None
    else:
        has_older, has_newer = True, has_more
    return PageLinks(
        older=filters.query(before=pks[-1], after=None) if has_older and pks else "",
        newer=filters.query(before=None, after=pks[0]) if has_newer and pks else "",
        newest="" if filters.is_first_page else filters.query() or "?",
    )


def _tabs(filters: Filters, counts: dict[str, int]) -> list[Tab]:
    everything = Tab(
        word="",
        label=_("All"),
        total="",
        query=filters.query(status=""),
        current=not filters.status,
    )
    return [
        everything,
        *(
            Tab(
                word=status.word,
                label=str(status.label),
                total=stalled.count_text(counts[status.letter]),
                query=filters.query(status=status.word),
                current=filters.status == status.word,
            )
            for status in STATUSES
        ),
    ]


def job_row(job: PeasyJobQueue, now: datetime, filters: Filters | None = None) -> Row:
    """Return what a list shows of a job. `now`: as the database's columns have it."""
    is_running = job.started is not None and job.completed is None and job.runner_id is not None
    elapsed = _seconds_since(job.started, now) if is_running and job.started else None
    label = job.get_status_display()
    if is_running and job.status != ONGOING:
        label = _("Cancelled, still stopping")
    return Row(
        job=job,
        word=status_document.word(job),
        label=label,
        percent=status_document.percent(job),
        message=payloads.text(_message(job), MESSAGE_LENGTH),
        duration=_duration(job, elapsed),
        elapsed=elapsed,
        queue_query=(filters or Filters()).query(queue=job.queue_name),
        run_after=formatting.moment(job.run_after),
    )


def _message(job: PeasyJobQueue) -> str:
    shows_error = job.status in (FAILED, SCHEDULED) and job.error
    return job.error if shows_error else job.status_msg


def _duration(job: PeasyJobQueue, elapsed: float | None) -> str:
    if job.started and job.completed:
        return formatting.duration((job.completed - job.started).total_seconds())
    return "" if elapsed is None else formatting.duration(elapsed)


def runner_rows(
    now: datetime, runners: Iterable[PeasyRunner], held_jobs: list[PeasyJobQueue]
) -> list[RunnerRow]:
    """Return what is shown of these runners. `held_jobs`: the jobs that name one of them."""
    return [_runner_row(now, runner, held_jobs) for runner in runners]


def _runner_row(now: datetime, runner: PeasyRunner, held_jobs: list[PeasyJobQueue]) -> RunnerRow:
    held = [
        job
        for job in held_jobs
        if job.runner_id == runner.pk and job.status in (ONGOING, CANCELLED)
    ]
    running = [_running_job(job, job.started, as_field(now)) for job in held if job.started]
    return RunnerRow(
        runner=runner,
        alive=_is_alive(runner, now),
        running_jobs=running,
        not_started=len(held) - len(running),
        queues=[str(name) for name in runner.queues] if isinstance(runner.queues, list) else [],
    )


def _running_job(job: PeasyJobQueue, started: datetime, now: datetime) -> RunningJob:
    elapsed = _seconds_since(started, now)
    return RunningJob(job.pk, job.title, formatting.duration(elapsed), elapsed)


def job_context(job: PeasyJobQueue) -> dict[str, Any]:
    """Return the context of the page of a job."""
    now = database_now(connections[PeasyJobQueue.objects.all().db])
    return {
        "job": job,
        "row": job_row(job, as_field(now)),
        "version": version(job),
        "milestone": widget.milestone(job),
        "arguments": formatting.arguments(job),
        "result": formatting.result(job),
        "extra": formatting.text(job.extra) if job.extra is not None else "",
        "failures": formatting.failures(job),
        "alive": job.runner is not None and _is_alive(job.runner, now),
        "can_be": {
            "cancel": job.status in sources("cancel"),
            "retry": job.status in sources("retry") and job.runner_id is None,
            "delete": job.status != ONGOING and job.runner_id is None,
        },
    }


def version(job: PeasyJobQueue) -> str:
    """Return a text that changes whenever the page of this job would look different."""
    seen = [getattr(job, name) for name in (*COLUMNS, "claims", "priority")]
    text = json.dumps([*seen, get_language()], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_alive(runner: PeasyRunner, now: datetime) -> bool:
    return runner.lease_until >= now.timestamp()


def _seconds_since(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())
