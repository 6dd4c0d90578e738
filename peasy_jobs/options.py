"""The options of a job function and of its calls: `@peasy.job(…)` and `.using(…)` take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connections, router
from django.utils import timezone

from peasy_jobs import conf, payloads
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.querysets import MAX_INTEGER

QUEUE_NAME_LIMIT = 64  # characters, the width of the column


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """When, where and for whom a job runs. Raise `TypeError` or `ValueError` if one is invalid.

    `@peasy.job` and `.using` document the options.
    """

    priority: int = 0
    queue_name: str = "default"
    user: Any = None
    run_after: datetime | timedelta | None = None
    timeout: float | None = None
    crash_retries: int | None = None

    def __post_init__(self) -> None:
        check_priority(self.priority)
        check_queue_name(self.queue_name)
        check_user(self.user)
        check_run_after(self.run_after)
        check_timeout(self.timeout)
        check_crash_retries(self.crash_retries)

    def changed(self, **given: Any) -> JobOptions:
        """Return these options with the given ones changed. None leaves an option as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def columns(self) -> dict[str, Any]:
        """Return the columns of a job that is enqueued now with these options."""
        return {
            "priority": self.priority,
            "queue_name": self.queue_name,
            "user_id": None if self.user is None else self.user.pk,
            "run_after": None if self.run_after is None else due(self.run_after),
            "timeout": self.timeout,
            "crash_retries": self.crash_retries,
        }


def check_priority(priority: object) -> None:
    if type(priority) is not int or not -100 <= priority <= 100:
        raise ValueError(f"priority is {priority!r}. Give a whole number from -100 to 100.")


def check_queue_name(name: object) -> None:
    if not payloads.is_storable_text(name, QUEUE_NAME_LIMIT):
        raise ValueError(
            f"queue_name is {name!r}. Give a name of 1 to {QUEUE_NAME_LIMIT} characters."
        )


def check_user(user: Any) -> None:
    if user is None or getattr(user, "is_anonymous", False):
        return
    if not isinstance(user, get_user_model()):
        raise TypeError(f"user is {user!r}. Give a user, such as request.user.")
    if user.pk is None:
        raise ValueError(f"user is {user!r}, which has not been saved. Save the user first.")


def check_run_after(run_after: object) -> None:
    if run_after is None or isinstance(run_after, timedelta):
        return
    if not isinstance(run_after, datetime):
        raise TypeError(f"run_after is {run_after!r}. Give a datetime, or a timedelta from now.")
    if timezone.is_naive(run_after) and conf.uses_time_zones():
        raise ValueError(
            f"run_after is {run_after!r}, which has no time zone. "
            "Give an aware datetime, or a timedelta from now."
        )
    due(run_after)


def check_timeout(timeout: Any) -> None:
    if timeout is None:
        return
    if type(timeout) not in (int, float) or not 0 < timeout <= conf.LONGEST_SECONDS:
        raise ValueError(f"timeout is {timeout!r}. Give a number of seconds above 0.")


def check_crash_retries(retries: object) -> None:
    if retries is None:
        return
    if type(retries) is not int or not 0 <= retries <= MAX_INTEGER:
        raise ValueError(f"crash_retries is {retries!r}. Give a whole number, 0 or more.")


def due(run_after: datetime | timedelta) -> datetime:
    """Return `run_after` as datetime fields store it. A timedelta counts from the database's now.

    Raise `ValueError` if the result is out of range.
    """
    try:
        if isinstance(run_after, timedelta):
            return as_field(jobs_now() + run_after)
        if timezone.is_aware(run_after):
            return as_field(run_after.astimezone(UTC))
    except OverflowError:
        raise ValueError(
            f"run_after is {run_after!r}, which is out of range. Give an earlier or later time."
        ) from None
    return run_after


def jobs_now() -> datetime:
    """Return the time by the clock of the database that jobs are written to."""
    # Not imported: a site may decorate functions before models are loaded.
    model = apps.get_model("peasy_jobs", "PeasyJobQueue")
    return database_now(connections[router.db_for_write(model)])
