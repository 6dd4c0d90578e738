"""Whether jobs are being run: the answer of `run_peasy --check`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, Min, Q
from django.db.models.functions import Coalesce

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import ENQUEUED, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now


class Health(NamedTuple):
    """What `run_peasy --check` prints: `problems` make it fail, `facts` are for the reader."""

    problems: list[str]
    facts: list[str]


class QueueBacklog(NamedTuple):
    """The jobs of one queue that may run now."""

    jobs: int
    oldest: datetime  # when the oldest of them might first have run


def check(alias: str, queues: Sequence[str] = ()) -> Health:
    """Return what is wrong with the queue on this database. Raises what the database raises.

    queues: check these only. Each of them needs a runner, whether jobs wait in it or not.
    """
    connection = connections[alias]
    connection.ensure_connection()
    if missing := unapplied_migrations(connection):
        problem = f"Migrations are missing ({', '.join(missing)}): run manage.py migrate."
        return Health([problem], [])
    now = database_now(connection)
    runners = PeasyRunner.objects.using(alias)
    alive = [runner for runner in runners if runner.lease_until >= now.timestamp()]
    waiting = _waiting(alias, queues, as_field(now))
    health = Health([], [f"Runners alive: {len(alive)}."])
    for name in sorted({*waiting, *queues}):
        if found := waiting.get(name):
            age = max(0.0, (as_field(now) - found.oldest).total_seconds())
            health.facts.append(f"Queue {name}: {found.jobs} waiting, the oldest for {age:.0f} s.")
        if not any(not runner.queues or name in runner.queues for runner in alive):
            option = "" if name == "default" else f" --queue {name}"
            health.problems.append(
                f"No runner is alive for queue {name}: start one with manage.py run_peasy{option}."
            )
    return health


def _waiting(alias: str, queues: Sequence[str], now: datetime) -> dict[str, QueueBacklog]:
    due = Q(status=ENQUEUED) | Q(status=SCHEDULED, run_after__lte=now)
    jobs = PeasyJobQueue.objects.using(alias).in_queues(queues).filter(due).order_by()
    rows = jobs.values("queue_name").annotate(
        count=Count("pk"), oldest=Min(Coalesce("run_after", "created"))
    )
    return {row["queue_name"]: QueueBacklog(row["count"], row["oldest"]) for row in rows}


def unapplied_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the migrations of this app that the database does not have yet."""
    # Not a MigrationLoader: it imports the migrations of every app, and each runner that starts
    # asks this.
    module, _ = MigrationLoader.migrations_module("peasy_jobs")
    if module is None or find_spec(module) is None:
        return []
    modules = iter_modules(import_module(module).__path__)
    names = {name for _, name, _ in modules if name[0] not in "_~"}
    applied = MigrationRecorder(connection).applied_migrations()
    return sorted(names - {name for app, name in applied if app == "peasy_jobs"})
