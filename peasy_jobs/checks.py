"""System checks: what is wrong with the settings, with the value found and what to do."""

import sqlite3
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections, router
from django.utils.module_loading import import_string

from peasy_jobs import conf
from peasy_jobs.urlresolution import address

SQLITE_NEEDED = (3, 35)
HOOKS = ("dashboard_permission", "can_view_job", "job_json", "mask_argument")


@register("peasy_jobs")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(problem.message, hint=problem.hint, id=f"peasy_jobs.{problem.id}")
        for problem in conf.problems()
    ]


@register("peasy_jobs")
def check_names(**kwargs: Any) -> list[CheckMessage]:
    """A name that is misspelled would leave its setting at the default."""
    known = [name.removeprefix(conf.PREFIX) for name in conf.names()]
    messages: list[CheckMessage] = []
    for name in conf.unknown():
        # Without what they have in common, which makes any two alike.
        near = get_close_matches(name.removeprefix(conf.PREFIX), known, n=1)
        hint = (
            f"Did you mean {conf.PREFIX}{near[0]}?"
            if near
            else f"The settings are {', '.join(conf.names())}."
        )
        messages.append(
            Warning(f"{name} is no setting of peasy_jobs.", hint=hint, id="peasy_jobs.W005")
        )
    return messages


@register("peasy_jobs")
def check_hooks(**kwargs: Any) -> list[CheckMessage]:
    """The callables that settings name are there."""
    if conf.problems():
        return []
    messages: list[CheckMessage] = []
    for name in HOOKS:
        path = getattr(conf.get(), name)
        try:
            hook = import_string(path) if path else str
            found = callable(hook) and not iscoroutinefunction(hook)
            reason = "it is asynchronous" if callable(hook) else "it is not callable"
        except Exception as error:  # the module's own code may raise anything
            found, reason = False, f"{type(error).__name__}: {error}"
        if not found:
            text = f"PEASY_{name.upper()} is {path!r}, which cannot be used: {reason}."
            messages.append(Error(text, hint=conf.HOOK, id="peasy_jobs.E022"))
    return messages


@register("peasy_jobs")
def check_pages(**kwargs: Any) -> list[CheckMessage]:
    """What the dashboard needs is installed where the dashboard is mounted."""
    if apps.is_installed("django_htmx"):
        return []
    try:
        address("dashboard")
    except Exception:  # not mounted, or a URLconf that cannot be read: Django has a check for that
        return []
    return [
        Warning(
            "peasy_jobs.urls is mounted, but django_htmx is not installed: its pages do not update themselves.",
            hint='Add "django_htmx" to INSTALLED_APPS.',
            id="peasy_jobs.W004",
        )
    ]


@register("peasy_jobs")
def check_database(**kwargs: Any) -> list[CheckMessage]:
    from peasy_jobs.models import (
        PeasyJobQueue,
    )  # late: checks are registered before models are loaded

    alias = router.db_for_write(PeasyJobQueue)
    messages: list[CheckMessage] = []
    if is_in_memory(alias) and not is_of_a_test(alias):
        messages.append(
            Warning(
                f"The jobs are in an in-memory database ({alias!r}).",
                hint="run_peasy is another process and cannot see them; give DATABASES a file or a server.",
                id="peasy_jobs.W001",
            )
        )
    if alias != "default":
        messages.append(
            Warning(
                f"A database router puts the jobs into {alias!r}, apart from the data in 'default'.",
                hint="A job is then not enqueued in the transaction of that data: enqueue in transaction.on_commit(), "
                "or let the jobs live where the data is.",
                id="peasy_jobs.W002",
            )
        )
    if connections[alias].vendor == "sqlite" and sqlite3.sqlite_version_info < SQLITE_NEEDED:
        messages.append(
            Error(
                f"SQLite is {sqlite3.sqlite_version}.",
                hint="Use a Python with SQLite 3.35 or newer: jobs are claimed with UPDATE … RETURNING.",
                id="peasy_jobs.E015",
            )
        )
    return messages + _check_sqlite_mode(alias)


def _check_sqlite_mode(alias: str) -> list[CheckMessage]:
    options = connections[alias].settings_dict["OPTIONS"]
    wal = "journal_mode=wal" in str(options.get("init_command", "")).lower().replace(" ", "")
    immediate = str(options.get("transaction_mode", "")).upper() in ("IMMEDIATE", "EXCLUSIVE")
    if connections[alias].vendor != "sqlite" or (wal and immediate) or is_in_memory(alias):
        return []
    return [
        Warning(
            f"SQLite ({alias!r}) is not set up for several processes: a reader holds up a writer, and a "
            "transaction that reads first fails with 'database is locked'.",
            hint=f"Set DATABASES[{alias!r}]['OPTIONS'] = {{'init_command': 'PRAGMA journal_mode=WAL; "
            "PRAGMA synchronous=NORMAL;', 'transaction_mode': 'IMMEDIATE', 'timeout': 20}.",
            id="peasy_jobs.W003",
        )
    ]


def is_of_a_test(alias: str) -> bool:
    """Whether this is the database in memory that Django's test runner makes."""
    return str(connections[alias].settings_dict["NAME"]).startswith(f"file:memorydb_{alias}?")


def is_in_memory(alias: str) -> bool:
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    return connection.vendor == "sqlite" and (name == ":memory:" or "mode=memory" in name)
