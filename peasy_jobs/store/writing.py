"""Write the outcomes of claimed jobs, in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from peasy_jobs.statuses import CANCELLED, ONGOING
from peasy_jobs.store.bulkupdate import INCREMENT, KEEP_IF_NULL, BulkUpdate, Column, Guard
from peasy_jobs.store.values import Dropped, JobUpdate

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from peasy_jobs.models import PeasyJobQueue

ERRORS_KEPT = 25  # failed attempts of a job: the newest

UPDATE_OF_CLAIMED_JOBS = BulkUpdate(
    columns=[
        Column("status", "text"),
        Column("result_data", "bytea"),
        Column("status_msg", "text", KEEP_IF_NULL),
        Column("extra", "jsonb", KEEP_IF_NULL),
        Column("errors", "jsonb", KEEP_IF_NULL),
        Column("started", "timestamptz"),
        Column("completed", "timestamptz"),
        # A job that goes back into the queue keeps the time from which it could run.
        Column("run_after", "timestamptz", "CASE WHEN {status} = 'Q' THEN {old} ELSE {new} END"),
        Column("attempts", "int", INCREMENT),
        Column("crashes", "int", INCREMENT),
    ],
    constants={"runner_id": "NULL"},
    # COALESCE makes PostgreSQL use the primary key. With the bare columns it might choose an index
    # of the status or the runner because of old statistics. See `vendors.configure_session`.
    guards=[
        Guard("pk", "bigint", "job.id"),
        Guard("held_status", "text", "COALESCE(job.status, '')"),
        Guard("held_by", "bigint", "COALESCE(job.runner_id, 0)"),
        Guard("fencing_token", "int", "job.claims"),
    ],
)


def finish(
    jobs: QuerySet[PeasyJobQueue], runner_id: int, updates: Sequence[JobUpdate], now: datetime
) -> list[Dropped]:
    """Write updates in one transaction; see `JobQuerySet.finish`."""
    if not updates:
        return []
    connection, table = connections[jobs.db], jobs.model._meta.db_table
    with transaction.atomic(using=jobs.db):
        values = {**_new_values(jobs, updates, now), **_guard_values(runner_id, updates)}
        if UPDATE_OF_CLAIMED_JOBS.run(connection, table, values) == len(updates):
            return []
        return _dropped(jobs, runner_id, updates, now)


def _new_values(
    jobs: QuerySet[PeasyJobQueue], updates: Sequence[JobUpdate], now: datetime
) -> dict[str, list[Any]]:
    return {
        "status": [update.status for update in updates],
        "result_data": [update.result for update in updates],
        "status_msg": [update.status_msg for update in updates],
        "extra": [update.extra for update in updates],
        "errors": _errors_with_new_ones(jobs, updates, now),
        "started": [update.started for update in updates],
        "completed": [update.completed for update in updates],
        "run_after": [update.run_after for update in updates],
        "attempts": [update.attempts for update in updates],
        "crashes": [update.crashes for update in updates],
    }


def _guard_values(runner_id: int, updates: Sequence[JobUpdate]) -> dict[str, list[Any]]:
    return {
        "pk": [update.claim.pk for update in updates],
        "held_status": [ONGOING] * len(updates),
        "held_by": [runner_id] * len(updates),
        "fencing_token": [update.claim.fencing_token for update in updates],
    }


def _errors_with_new_ones(
    jobs: QuerySet[PeasyJobQueue], updates: Sequence[JobUpdate], now: datetime
) -> list[str | None]:
    """Return the stored errors and the new one as JSON, None for an update without an error."""
    stored = stored_errors(jobs, [update.claim.pk for update in updates if update.error])
    at = {"at": now.isoformat()}
    return [
        json.dumps(with_entry(stored.get(update.claim.pk, []), {**at, **update.error}))
        if update.error
        else None
        for update in updates
    ]


def with_entry(errors: list[dict[str, str]], entry: dict[str, str]) -> list[dict[str, str]]:
    """Return a job's errors and a new one, but at most the newest `ERRORS_KEPT`."""
    return [*errors, entry][-ERRORS_KEPT:]


def stored_errors(
    jobs: QuerySet[PeasyJobQueue], pks: Sequence[int]
) -> dict[int, list[dict[str, str]]]:
    """Return the errors of jobs by primary key. Without keys, no query is made."""
    if not pks:
        return {}
    rows = jobs.filter(pk__in=pks).values_list("pk", "errors")
    return {pk: error_entries(errors) for pk, errors in rows}


def error_entries(errors: Any) -> list[dict[str, str]]:
    """Return the entries of a job's `errors`, without whatever else another program wrote there."""
    if not isinstance(errors, list):
        return []
    return [entry for entry in errors if isinstance(entry, dict)]


def _dropped(
    jobs: QuerySet[PeasyJobQueue], runner_id: int, updates: Sequence[JobUpdate], now: datetime
) -> list[Dropped]:
    """Return the updates whose jobs were not the runner's any more, and close the cancelled jobs.

    A bulk update tells only how many rows it has changed. An update counts as written if its row
    has no runner, its status and its fencing token. It may have been written before, if the answer
    to that COMMIT was lost.
    """
    pks = [update.claim.pk for update in updates]
    rows = jobs.filter(pk__in=pks).values_list("pk", "claims", "status", "runner")
    written: set[tuple[Any, ...]] = set(rows)
    dropped = []
    for update in updates:
        pk, fencing_token = update.claim.pk, update.claim.fencing_token
        if (pk, fencing_token, update.status, None) not in written:
            was_cancelled = close_cancelled(jobs, runner_id, pk, fencing_token, now)
            dropped.append(Dropped(update.claim, was_cancelled))
    return dropped


def close_cancelled(
    jobs: QuerySet[PeasyJobQueue], runner_id: int, pk: int, fencing_token: int, now: datetime
) -> bool:
    """Close a cancelled job; see `JobQuerySet.close_cancelled`."""
    mine = jobs.filter(pk=pk, status=CANCELLED, runner=runner_id, claims=fencing_token)
    return bool(mine.update(runner=None, completed=now, run_after=None))
