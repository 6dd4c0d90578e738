"""Whether jobs are being run: what `run_peasy --check` says, and what a runner waits for before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, Min, Q
from django.db.models.functions import Coalesce

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import ENQUEUED, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now


def unapplied_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    """The migrations of this app that the database does not have yet."""
    # Not a MigrationLoader: it imports the migrations of every app, and a runner asks each time it starts.
    module, _ = MigrationLoader.migrations_module("peasy_jobs")
    if module is None or find_spec(module) is None:
        return []
    names = {
        name for _, name, _ in iter_modules(import_module(module).__path__) if name[0] not in "_~"
    }
    return sorted(
        names
        - {
            name
            for app, name in MigrationRecorder(connection).applied_migrations()
            if app == "peasy_jobs"
        }
    )


def problems(alias: str, queues: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What is wrong with the queue, and what else a person who asks wants to know. Raises what the database raises.

    queues: look at these only. Each of them has to have a runner, whether a job waits there or not.
    """
    connection = connections[alias]
    connection.ensure_connection()
    if missing := unapplied_migrations(connection):
        return [f"Migrations are missing ({', '.join(missing)}): run manage.py migrate."], []
    now = database_now(connection)
    alive = [
        runner
        for runner in PeasyRunner.objects.using(alias)
        if runner.lease_until >= now.timestamp()
    ]
    wrong, told = [], [f"Runners alive: {len(alive)}."]
    due = Q(status=ENQUEUED) | Q(status=SCHEDULED, run_after__lte=as_field(now))
    waiting = (
        PeasyJobQueue.objects.using(alias)
        .in_queues(queues)
        .filter(due)
        .order_by()
        .values("queue_name")
    )
    oldest = Min(Coalesce("run_after", "created"))
    found = {row["queue_name"]: row for row in waiting.annotate(count=Count("pk"), oldest=oldest)}
    for name in sorted({*found, *queues}):
        if row := found.get(name):
            age = max(0.0, (as_field(now) - row["oldest"]).total_seconds())
            told.append(f"Queue {name}: {row['count']} waiting, the oldest for {age:.0f} s.")
        if not any(not runner.queues or name in runner.queues for runner in alive):
            option = "" if name == "default" else f" --queue {name}"
            wrong.append(
                f"No runner is alive for queue {name}: start one with manage.py run_peasy{option}."
            )
    return wrong, told
