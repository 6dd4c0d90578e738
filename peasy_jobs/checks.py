"""System checks of the settings and the database. Each message has the value and the remedy."""

import sqlite3
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections, router
from django.utils.module_loading import import_string

from peasy_jobs import conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.urlresolution import address

SQLITE_NEEDED = (3, 35)


@register("peasy_jobs")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check the value of every setting."""
    return [
        Error(problem.message, hint=problem.hint, id=f"peasy_jobs.{problem.check_id}")
        for problem in conf.problems()
    ]


@register("peasy_jobs")
def check_setting_names(**kwargs: Any) -> list[CheckMessage]:
    """Check for misspelled settings, which would silently leave the default in effect."""
    return [
        Warning(
            f"{name} is not a setting of peasy_jobs.",
            hint=_similar_setting(name),
            id="peasy_jobs.W005",
        )
        for name in conf.unknown()
    ]


def _similar_setting(name: str) -> str:
    # Compared without the prefix, which would make any two names similar.
    known = [known.removeprefix(conf.PREFIX) for known in conf.names()]
    similar = get_close_matches(name.removeprefix(conf.PREFIX), known, n=1)
    if similar:
        return f"Did you mean {conf.PREFIX}{similar[0]}?"
    return f"Remove it, or use one of {', '.join(conf.names())}."


@register("peasy_jobs")
def check_callables(**kwargs: Any) -> list[CheckMessage]:
    """Check that the callables that settings name can be imported and called."""
    if conf.problems():
        return []
    messages: list[CheckMessage] = []
    for setting in conf.CALLABLES:
        path = getattr(conf.get(), setting.attribute)
        if path is not None and (reason := _why_unusable(path)):
            text = f"{setting.name} is {path!r}, which cannot be used: {reason}."
            messages.append(Error(text, hint=setting.rule.hint, id="peasy_jobs.E022"))
    return messages


def _why_unusable(path: str) -> str:
    """Return why the object at this dotted path cannot be called; empty if it can."""
    try:
        found = import_string(path)
    except Exception as error:  # the module's own code may raise anything
        return f"{type(error).__name__}: {error}"
    if not callable(found):
        return "it is not callable"
    return "it is asynchronous" if iscoroutinefunction(found) else ""


@register("peasy_jobs")
def check_dashboard(**kwargs: Any) -> list[CheckMessage]:
    """Check that django_htmx is installed where the URLconf includes the dashboard."""
    if apps.is_installed("django_htmx"):
        return []
    try:
        address("dashboard")
    except Exception:  # not included, or an invalid URLconf, which Django's own check reports
        return []
    return [
        Warning(
            "The URLconf includes peasy_jobs.urls, but django_htmx is not installed: "
            "the pages do not update themselves.",
            hint='Add "django_htmx" to INSTALLED_APPS.',
            id="peasy_jobs.W004",
        )
    ]


@register("peasy_jobs")
def check_database(**kwargs: Any) -> list[CheckMessage]:
    """Check the database that jobs are written to."""
    alias = router.db_for_write(PeasyJobQueue)
    messages = [
        *_check_in_memory(alias),
        *_check_router(alias),
    ]
    if connections[alias].vendor == "sqlite":
        messages += [*_check_sqlite_version(), *_check_sqlite_options(alias)]
    return messages


def _check_in_memory(alias: str) -> list[CheckMessage]:
    if not is_in_memory(alias) or is_test_database(alias):
        return []
    return [
        Warning(
            f"The jobs are in an in-memory database ({alias!r}).",
            hint="run_peasy runs in another process and cannot see them. "
            f"Set DATABASES[{alias!r}] to a file or a server.",
            id="peasy_jobs.W001",
        )
    ]


def _check_router(alias: str) -> list[CheckMessage]:
    if alias == "default":
        return []
    return [
        Warning(
            f"A database router puts the jobs into {alias!r} instead of 'default'.",
            hint="A job is then not part of a transaction on 'default'. Enqueue it in "
            "transaction.on_commit(), or keep the jobs in the same database as your data.",
            id="peasy_jobs.W002",
        )
    ]


def _check_sqlite_version() -> list[CheckMessage]:
    if sqlite3.sqlite_version_info >= SQLITE_NEEDED:
        return []
    return [
        Error(
            f"SQLite is {sqlite3.sqlite_version}.",
            hint="Use a Python with SQLite 3.35 or newer: "
            "jobs are claimed with UPDATE … RETURNING.",
            id="peasy_jobs.E015",
        )
    ]


def _check_sqlite_options(alias: str) -> list[CheckMessage]:
    options = connections[alias].settings_dict["OPTIONS"]
    init_command = str(options.get("init_command", "")).lower().replace(" ", "")
    is_wal = "journal_mode=wal" in init_command
    is_immediate = str(options.get("transaction_mode", "")).upper() in ("IMMEDIATE", "EXCLUSIVE")
    if (is_wal and is_immediate) or is_in_memory(alias):
        return []
    return [
        Warning(
            f"SQLite ({alias!r}) is not set up for several processes: a reader blocks a writer, "
            "and a transaction that reads first fails with 'database is locked'.",
            hint=f"Set DATABASES[{alias!r}]['OPTIONS'] = "
            "{'init_command': 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;', "
            "'transaction_mode': 'IMMEDIATE', 'timeout': 20}.",
            id="peasy_jobs.W003",
        )
    ]


def is_in_memory(alias: str) -> bool:
    """Return whether this is an SQLite database in memory, which no other process can see."""
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    return connection.vendor == "sqlite" and (name == ":memory:" or "mode=memory" in name)


def is_test_database(alias: str) -> bool:
    """Return whether this is the in-memory database that Django's test runner creates."""
    return str(connections[alias].settings_dict["NAME"]).startswith(f"file:memorydb_{alias}?")
