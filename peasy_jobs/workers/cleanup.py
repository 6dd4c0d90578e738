"""Clean up between two jobs of a worker, as Django does between two requests."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from django.db import connections
from django.utils import timezone, translation

logger = logging.getLogger("peasy_jobs")


def reset_context(clean: Context) -> Context:
    """Reset connections, language and time zone, so that nothing of a job affects the next one.

    clean: an empty context at first, then what the previous call returned.
    """
    try:
        _reset_connections()
        return _reset_locale(clean)
    except Exception:
        logger.exception("Could not clean up after a job.")
    return clean


def _reset_connections() -> None:
    """Do what `close_old_connections` and `reset_queries` do, and roll back what was left open.

    Both would look up the connections again, which takes longer than the rest.
    """
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            _discard(connection)
            continue
        if connection.connection is not None:
            # Django does not know of a transaction that a job began with plain SQL.
            with suppress(Exception):  # of a broken connection, which is closed below
                connection.connection.rollback()
        connection.close_if_unusable_or_obsolete()
        connection.queries_log.clear()


def _discard(connection: Any) -> None:
    """Roll back and close a connection that a job has left inside a transaction."""
    logger.warning(
        "A job left a transaction open on database %r. It was rolled back.", connection.alias
    )
    connection.in_atomic_block = False
    connection.close()
    del connections[connection.alias]


def _reset_locale(clean: Context) -> Context:
    """Deactivate language and time zone if the job has set any context variable.

    Both are context variables, and deactivating them costs more than seeing that nothing was set.
    Values are compared by identity, because comparing them could run any code; a queryset, for
    instance, would query the database.
    """
    if all(clean.get(variable) is value for variable, value in copy_context().items()):
        return clean
    translation.deactivate()
    timezone.deactivate()
    return copy_context()
