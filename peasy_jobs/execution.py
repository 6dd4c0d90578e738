"""Run one job and turn whatever happens into one outcome. Knows nothing of queues and imports no model at the top."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import async_to_sync
from django.apps import apps
from django.db import close_old_connections, connections, reset_queries
from django.utils import timezone, translation

from peasy_jobs import conf, payloads

if TYPE_CHECKING:
    from peasy_jobs.peasy_jobs import Job

logger = logging.getLogger("peasy_jobs")

TRACEBACK_LIMIT, MESSAGE_LIMIT = 20_000, 1_000  # characters


class Failure(Exception):
    """A job failed for a reason that is not an exception of its own code."""


class Outcome(NamedTuple):
    """What came of one run. `started` and `ended` are `time.monotonic()`; `error` is None when it completed."""

    pk: int
    claims: int
    started: float
    ended: float
    result: bytes | None
    error: dict[str, str] | None


class Report(NamedTuple):
    """Progress of one run: None leaves the message, or `extra` (JSON text), as it is."""

    pk: int
    claims: int
    status_msg: str | None
    extra: str | None


class Execution:
    """A job that runs in this process now: how its progress is handed to the runner."""

    def __init__(self, pk: int, claims: int, send: Callable[[Report], None]) -> None:
        self.pk, self.claims, self.send, self.pid = pk, claims, send, os.getpid()
        self.extra: dict[str, Any] | None = None  # as last reported from this process
        self.knows_extra = False

    def report(self, status_msg: str | None, extra: str | None) -> None:
        self.send(Report(self.pk, self.claims, status_msg, extra))


_running: dict[int, Execution] = {}


def current(pk: int) -> Execution | None:
    """The execution of this job if it runs in this very process; None elsewhere, as in a process that it forked."""
    execution = _running.get(pk)
    return execution if execution and execution.pid == os.getpid() else None


def run(
    pk: int, claims: int, job_name: str, args: bytes | None, kwargs: bytes | None, send: Callable[[Report], None]
) -> Outcome:
    """Run one job to its end, whatever that is. Never raises."""
    _running[pk] = Execution(pk, claims, send)
    result, error, started = None, None, monotonic()
    try:
        result = _call(pk, job_name, args, kwargs)
    except BaseException as exception:  # sys.exit() and KeyboardInterrupt are the job's, not the worker's
        error = described(exception)
    del _running[pk]
    return Outcome(pk, claims, started, monotonic(), result, error)


def _call(pk: int, job_name: str, args: bytes | None, kwargs: bytes | None) -> bytes | None:
    serializer, max_bytes = conf.get().serializer, conf.get().max_payload
    job = find(job_name)
    positional = payloads.loads(args, job_name=job_name, column=payloads.ARGS, serializer=serializer) if args else ()
    named = payloads.loads(kwargs, job_name=job_name, column=payloads.KWARGS, serializer=serializer) if kwargs else {}
    result = job.call_with_pk(pk, positional, named)
    if isawaitable(result):
        result = async_to_sync(_wait_for)(result)
    if result is None:
        return None
    try:
        return payloads.dumps(
            result, job_name=job_name, column=payloads.RESULT, max_bytes=max_bytes, serializer=serializer
        )
    except payloads.PayloadError as error:
        kind = type(result).__name__
        raise Failure(
            f"The job finished, but its result ({kind}) cannot be stored: {error}. Return plain values."
        ) from None


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def find(job_name: str) -> Job[..., Any]:
    """The job function that a row names. Raises `Failure`: the database may not name an arbitrary callable.

    A module that is not loaded yet is imported only inside an installed app.
    """
    from peasy_jobs.peasy_jobs import Job  # late: that module imports this one

    module_name, _, name = job_name.rpartition(".")
    module = sys.modules.get(module_name)
    if module is None:
        if not module_name or apps.get_containing_app_config(module_name) is None:
            raise Failure(f"{job_name} is not inside an installed app, so the runner will not import it.")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name + ".").startswith(error.name + "."):
                raise Failure(f"Cannot import {job_name}. Was it renamed after this job was enqueued?") from None
            raise
    if name not in vars(module):
        raise Failure(f"Cannot import {job_name}. Was it renamed after this job was enqueued?")
    job = vars(module)[name]
    if not isinstance(job, Job):
        raise Failure(f"{job_name} is not decorated with @peasy.job, so the runner will not call it.")
    return job


def described(exception: BaseException) -> dict[str, str]:
    """What is kept of a failed attempt: the class path, one line, and the traceback if it is the job's own."""
    path = f"{type(exception).__module__}.{type(exception).__qualname__}"
    if isinstance(exception, Failure | payloads.PayloadRefused):
        return {"exception": path, "message": payloads.text(exception, MESSAGE_LIMIT), "traceback": ""}
    frames = exception.__traceback__
    ours = ("peasy_jobs.", "asgiref.", "concurrent.")  # the last two call an async job
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith(ours):
        frames = frames.tb_next
    try:
        lines = "".join(traceback.format_exception(type(exception), exception, frames))
        summary = "".join(traceback.format_exception_only(exception)).strip()
        if isinstance(exception, SystemExit):
            summary = f"The job called sys.exit({exception.code!r})."
    except Exception as error:  # formatting asks the exception, which is the job's own code
        lines = summary = f"{path}, which cannot be shown ({type(error).__name__})."
    return {
        "exception": path,
        "message": payloads.text(summary, MESSAGE_LIMIT),
        # Of a long one the end says where the error is.
        "traceback": payloads.text(lines[-TRACEBACK_LIMIT:], TRACEBACK_LIMIT),
    }


def tidy() -> None:
    """What Django does between two requests: the next job of this worker must find nothing of the last one."""
    try:
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                _drop(connection)
            elif connection.connection is not None:
                with suppress(Exception):  # a broken one is closed below
                    connection.connection.rollback()  # a plain BEGIN, which Django does not know of
        close_old_connections()
        reset_queries()
        translation.deactivate()
        timezone.deactivate()
    except Exception:
        logger.exception("Could not clean up after a job.")


def _drop(connection: Any) -> None:
    """Roll back and close a connection that a job left inside a transaction."""
    logger.warning("A job left a transaction open on database %r. It was rolled back.", connection.alias)
    connection.in_atomic_block = False
    connection.close()
    del connections[connection.alias]
