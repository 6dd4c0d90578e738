"""Run one job and turn whatever happens into one outcome. Knows nothing of queues and imports no model at the top."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from inspect import isawaitable
from time import monotonic
from typing import Any, NamedTuple

from asgiref.sync import async_to_sync
from django.apps import apps
from django.db import connections
from django.utils import timezone, translation

from peasy_jobs import conf, payloads
from peasy_jobs.exceptions import (
    Cancel,
    Fail,
    Failure,
    JobFunctionNotFound,
    NotStorable,
    Retry,
    Stop,
    TimeLimit,
)
from peasy_jobs.job import Job
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, SCHEDULED
from peasy_jobs.store.values import Run
from peasy_jobs.workers.protocol import StopReason, StopRequest

logger = logging.getLogger("peasy_jobs")

TRACEBACK_LIMIT, MESSAGE_LIMIT = 20_000, 1_000  # characters
NOT_FOUND_DELAY, NOT_FOUND_PATIENCE = (
    60.0,
    3,
)  # seconds, and times that a function that is not there is waited for


class Outcome(NamedTuple):
    """What came of one run. `started` and `ended` are `time.monotonic()`."""

    pk: int
    fencing_token: int
    started: float
    ended: float
    status: str  # what the job becomes
    result: bytes | None
    error: dict[str, str] | None
    delay: float  # seconds until it runs again, when it does


class Report(NamedTuple):
    """Progress of one run: None leaves the message, or `extra` (JSON text), as it is."""

    pk: int
    fencing_token: int
    status_msg: str | None
    extra: str | None


class Execution:
    """A job that is running in this process: sends its progress to the runner, and stops it on request."""

    def __init__(self, run: Run, send: Callable[[Report], None]) -> None:
        self.run = run
        self.send = send
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.extra: dict[str, Any] | None = None  # as last reported from this process
        self.knows_extra = False
        self.stop_request: StopRequest | None = None
        # `Stop` is raised only once, because code that cleans up after it may report progress, too.
        self.stop_raised = False
        # While the job's own code is running. A signal may interrupt only that.
        self.interruptible = False

    @property
    def fencing_token(self) -> int:
        return self.run.fencing_token

    def report(self, status_msg: str | None, extra: str | None) -> None:
        """Send progress to the runner. Raise `Stop` if the job has to stop."""
        report = Report(self.run.pk, self.run.fencing_token, status_msg, extra)
        if threading.get_ident() != self.thread:
            self.send(report)
            return
        # An interruption in the middle of a message would leave half of it behind, and the runner could not
        # understand anything that follows.
        interruptible, self.interruptible = self.interruptible, False
        try:
            self.send(report)
        finally:
            self.interruptible = interruptible
        self.check()

    def check(self) -> None:
        """Raise `Stop` if the job has to stop and it was not raised before."""
        if self.stop_request and not self.stop_raised:
            self.stop_raised = True
            raise Stop(self.stop_request.message)


# By primary key and fencing token: a thread may start a job again while another is still running an earlier claim of
# it, which this runner lost while it was suspended.
_running: dict[tuple[int, int], Execution] = {}
_own: ContextVar[Execution | None] = ContextVar("peasy_jobs", default=None)


def current(pk: int) -> Execution | None:
    """The execution of this job if it runs in this very process; None elsewhere, as in a process that it forked."""
    own, pid = _own.get(), os.getpid()
    known = [
        execution
        for (each, _), execution in _running.copy().items()
        if each == pk and execution.pid == pid
    ]
    return (
        own if own in known else known[-1] if known else None
    )  # a thread that the job started knows of none


def request_stop(pk: int, fencing_token: int, request: StopRequest, *, interrupt: bool) -> None:
    """Ask a job that is running in this process to stop.

    interrupt: raise `Stop` right here if the job's own code is running. The caller is a signal handler in the job's
    thread.
    """
    execution = _running.get((pk, fencing_token))
    if execution is not None and execution.stop_request is None:
        execution.stop_request = request
        if interrupt and execution.interruptible:
            execution.check()


def run(run: Run, send: Callable[[Report], None]) -> Outcome:
    """Run one job to its end, whatever that is. Never raises."""
    return run_job(Execution(run, send))


def run_job(execution: Execution) -> Outcome:
    """Run one job to its end, whatever that is. Never raises."""
    run = execution.run
    _running[run.pk, run.fencing_token] = execution
    before = _own.set(execution)
    status, delay, result, error, job, started = COMPLETED, 0.0, None, None, None, monotonic()
    try:
        job = find(run.job_name)
        result = _call(job, run, execution)
        request = execution.stop_request
        if request and request.reason is StopReason.TIME_LIMIT:  # a thread that took no notice
            raise TimeLimit(request.message)
    except (
        BaseException
    ) as exception:  # sys.exit() and KeyboardInterrupt are the job's, not the worker's
        result = None
        try:
            status, delay, error = _judged(exception, execution, job, run.failures)
        except BaseException as broken:  # the exception's own code
            kind, why = type(exception).__name__, type(broken).__name__
            status, error = FAILED, error_entry(Failure(f"{kind}, which cannot be shown ({why})."))
    _own.reset(before)
    _running.pop((run.pk, run.fencing_token), None)
    return Outcome(run.pk, run.fencing_token, started, monotonic(), status, result, error, delay)


def _judged(
    exception: BaseException, execution: Execution, job: Job[..., Any] | None, failures: int
) -> tuple[str, float, dict[str, str] | None]:
    """Status, seconds until it runs again, and what is kept, of a job that has ended with an exception."""
    # Whatever comes out of a job that was told to stop: its own clean-up may have failed.
    if execution.stop_raised and (request := execution.stop_request):
        if request.reason is not StopReason.TIME_LIMIT:
            return ENQUEUED, 0.0, None
        if not isinstance(exception, TimeLimit):
            exception = TimeLimit(request.message).with_traceback(exception.__traceback__)
    status, delay = decide_outcome(job, exception, failures)
    return status, delay, None if isinstance(exception, Retry | Cancel) else error_entry(exception)


def decide_outcome(
    job: Job[..., Any] | None, exception: BaseException, failures: int
) -> tuple[str, float]:
    """What a job becomes after an exception: its status, and the seconds until it runs again when it does."""
    if isinstance(exception, Retry):
        return SCHEDULED, exception.seconds()
    if isinstance(exception, Cancel):
        return CANCELLED, 0.0
    if isinstance(exception, JobFunctionNotFound):
        return FAILED, NOT_FOUND_DELAY
    final = isinstance(exception, Fail | NotStorable | payloads.PayloadRefused)
    if (
        final
        or job is None
        or failures > job.policy.retries
        or not isinstance(exception, job.policy.retry_on)
    ):
        return FAILED, 0.0
    try:
        return SCHEDULED, job.policy.delay(failures)
    except Exception:
        logger.exception(
            "The backoff of %s cannot be used; it runs again in a minute.", job.job_name
        )
        return SCHEDULED, 60.0


def _call(job: Job[..., Any], run: Run, execution: Execution) -> bytes | None:
    how = {"job_name": run.job_name, "serializer": conf.get().serializer}
    args = payloads.loads(run.args, column=payloads.ARGS, **how) if run.args else ()
    kwargs = payloads.loads(run.kwargs, column=payloads.KWARGS, **how) if run.kwargs else {}
    try:
        execution.interruptible = True
        execution.check()
        result = job.function(*args, **job.with_pk(run.pk, args, kwargs))
        if isawaitable(result):
            result = _wait_for(result)
    finally:
        execution.interruptible = False
    if result is None:
        return None
    try:
        return payloads.dumps(
            result, column=payloads.RESULT, max_bytes=conf.get().max_payload, **how
        )
    except payloads.PayloadError as error:
        kind = type(result).__name__
        raise NotStorable(
            f"The job finished, but its result ({kind}) cannot be stored: {error}. Return plain values."
        ) from None


def _wait_for(awaitable: Any) -> Any:
    """The result of an async job. It runs in another thread, where only its cancellation can tell it to stop."""
    tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    over = threading.Event()

    async def wait() -> Any:
        task = asyncio.current_task()
        if task is not None:
            tasks.append((asyncio.get_running_loop(), task))
        try:
            return await awaitable
        finally:
            over.set()

    try:
        return async_to_sync(wait)()
    except Stop:
        for loop, task in tasks:
            with suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(task.cancel)
                over.wait()  # it cleans up; when it takes too long the worker is killed
        raise


def find(job_name: str) -> Job[..., Any]:
    """The job function that a row names. Raises `Failure`: the database may not name an arbitrary callable.

    A module that is not loaded yet is imported only inside an installed app.
    """
    module_name, _, name = job_name.rpartition(".")
    loaded = sys.modules.get(module_name) is not None
    if not loaded and (not module_name or apps.get_containing_app_config(module_name) is None):
        raise Failure(
            f"{job_name} is not inside an installed app, so the runner will not import it."
        )
    try:
        names = vars(
            import_module(module_name)
        )  # of a loaded one too: it waits for another thread that is at it
    except ModuleNotFoundError as error:
        if not error.name or not (module_name + ".").startswith(error.name + "."):
            raise
        names = {}
    if name not in names:
        raise JobFunctionNotFound(
            f"Cannot import {job_name}. Was it renamed after this job was enqueued?"
        )
    job = names[name]
    if not isinstance(job, Job):
        raise Failure(
            f"{job_name} is not decorated with @peasy.job, so the runner will not call it."
        )
    return job


def error_entry(exception: BaseException, pid: int | None = None) -> dict[str, str]:
    """What is kept of a failed attempt: where, the class path, one line, and the traceback if it is the job's own.

    pid: the process that ran it, if not this one.
    """
    where = f"{socket.gethostname()}, pid {pid or os.getpid()}"
    path = f"{type(exception).__module__}.{type(exception).__qualname__}"
    if isinstance(exception, Failure | payloads.PayloadRefused) and not isinstance(
        exception, TimeLimit
    ):
        message = payloads.text(exception, MESSAGE_LIMIT)
        return {"where": where, "exception": path, "message": message, "traceback": ""}
    frames = exception.__traceback__
    ours = ("peasy_jobs.", "asgiref.", "concurrent.")  # the last two call an async job
    while (
        frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith(ours)
    ):
        frames = frames.tb_next
    try:
        lines = "".join(traceback.format_exception(type(exception), exception, frames))
        summary = "".join(traceback.format_exception_only(exception)).strip()
        if isinstance(exception, TimeLimit):
            summary = str(exception)
        elif isinstance(exception, SystemExit):
            summary = f"The job called sys.exit({exception.code!r})."
    except Exception as error:  # formatting asks the exception, which is the job's own code
        lines = summary = f"{path}, which cannot be shown ({type(error).__name__})."
    return {
        "where": where,
        "exception": path,
        "message": payloads.text(summary, MESSAGE_LIMIT),
        # Of a long one the end says where the error is.
        "traceback": payloads.text(lines[-TRACEBACK_LIMIT:], TRACEBACK_LIMIT),
    }


def reset_context(clean: Context) -> Context:
    """What Django does between two requests: the next job of this worker must find nothing of the last one.

    clean: an empty context, then what this returned after the job before.
    """
    try:
        # What close_old_connections and reset_queries do, which would each look for the connections anew.
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                _drop(connection)
                continue
            if connection.connection is not None:
                with suppress(Exception):  # a broken one is closed below
                    connection.connection.rollback()  # a plain BEGIN, which Django does not know of
            connection.close_if_unusable_or_obsolete()
            connection.queries_log.clear()
        # Both live in context variables, and looking for them there costs more than to see that none was set. No value
        # is compared: it could be anything, a query for instance.
        if any(clean.get(variable) is not value for variable, value in copy_context().items()):
            translation.deactivate()
            timezone.deactivate()
            clean = copy_context()
    except Exception:
        logger.exception("Could not clean up after a job.")
    return clean


def _drop(connection: Any) -> None:
    """Roll back and close a connection that a job left inside a transaction."""
    logger.warning(
        "A job left a transaction open on database %r. It was rolled back.", connection.alias
    )
    connection.in_atomic_block = False
    connection.close()
    del connections[connection.alias]
