"""Run one job: find its function, load the arguments, call it, decide the outcome."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from inspect import isawaitable
from time import monotonic
from typing import Any

from asgiref.sync import async_to_sync
from django.apps import apps

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
from peasy_jobs.workers import progress
from peasy_jobs.workers.errors import error_entry
from peasy_jobs.workers.progress import Execution
from peasy_jobs.workers.protocol import Outcome, Report, StopReason

logger = logging.getLogger("peasy_jobs")

BROKEN_BACKOFF_DELAY = 60.0  # seconds until a job runs again whose `backoff` cannot be used


def run(run: Run, send: Callable[[Report], None]) -> Outcome:
    """Run one job and return its outcome. Never raises.

    send: hands a report of the running job to the runner.
    """
    return run_job(Execution(run, send))


def run_job(execution: Execution) -> Outcome:
    """Run one job and return its outcome. Never raises, whatever the job does."""
    run = execution.run
    token = progress.enter(execution)
    status, result, error, delay = COMPLETED, None, None, 0.0
    started = monotonic()
    job = None
    function_missing = False
    try:
        job = find_job_function(run.job_name)
        args, kwargs = _load_arguments(run)
        value = _call(job, args, kwargs, execution)
        result = _dump_result(value, run.job_name)
        _fail_if_over_time_limit(execution)
    except BaseException as exception:  # sys.exit() in a job does not end the worker
        result = None
        function_missing = job is None and isinstance(exception, JobFunctionNotFound)
        status, delay, error = _outcome_of_exception(exception, execution, job)
    progress.leave(execution, token)
    return Outcome(
        run.pk,
        run.fencing_token,
        started,
        monotonic(),
        status,
        result,
        error,
        delay,
        function_missing,
    )


def find_job_function(job_name: str) -> Job[..., Any]:
    """Return the job function that a row names.

    Its module is imported if it is inside an installed app.

    Raises `JobFunctionNotFound` if there is no such function, and `Failure` for whatever is not a
    job function: a row in the database must not be able to name an arbitrary callable. Importing
    the module may raise anything.
    """
    module_name, _, name = job_name.rpartition(".")
    is_loaded = sys.modules.get(module_name) is not None
    if not is_loaded and (not module_name or apps.get_containing_app_config(module_name) is None):
        raise Failure(
            f"{job_name} is not inside an installed app, so the runner will not import it."
        )
    try:
        # Also if it is in `sys.modules`: another thread may still be importing it, which this waits
        # for.
        names = vars(import_module(module_name))
    except ModuleNotFoundError as error:
        # The module itself or a package that contains it; not a module that it imports.
        if not error.name or not (module_name + ".").startswith(error.name + "."):
            raise
        names = {}
    if name not in names:
        raise JobFunctionNotFound(job_name)
    job = names[name]
    if not isinstance(job, Job):
        raise Failure(
            f"{job_name} is not decorated with @peasy.job, so the runner will not call it."
        )
    return job


def _load_arguments(run: Run) -> tuple[Any, Any]:
    """Return positional and keyword arguments. Raises `PayloadRefused`."""
    if run.args is None and run.kwargs is None:
        return (), {}
    how = {"job_name": run.job_name, "serializer": conf.get().serializer}
    args = payloads.loads(run.args, column=payloads.ARGS, **how) if run.args else ()
    kwargs = payloads.loads(run.kwargs, column=payloads.KWARGS, **how) if run.kwargs else {}
    return args, kwargs


def _call(job: Job[..., Any], args: Any, kwargs: Any, execution: Execution) -> Any:
    """Call the job function and return its result. Only this call can be interrupted."""
    try:
        execution.interruptible = True
        execution.check()  # for a request that arrived earlier
        result = job.function(*args, **job.with_pk(execution.run.pk, args, kwargs))
        if isawaitable(result):
            result = _run_awaitable(result)
        return result
    finally:
        execution.interruptible = False


def _run_awaitable(awaitable: Any) -> Any:
    """Return the result of an async job.

    asgiref runs it in another thread while this one waits, and only this one is interrupted by
    `Stop`. So `Stop` cancels the task of the job, which is how async code is stopped.
    """
    tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    ended = threading.Event()

    async def wait() -> Any:
        task = asyncio.current_task()
        if task is not None:
            tasks.append((asyncio.get_running_loop(), task))
        try:
            return await awaitable
        finally:
            ended.set()

    try:
        return async_to_sync(wait)()
    except Stop:
        for loop, task in tasks:
            with suppress(RuntimeError):  # the loop has just closed
                loop.call_soon_threadsafe(task.cancel)
                ended.wait()  # for its clean-up; the runner kills this worker if it takes too long
        raise


def _dump_result(result: Any, job_name: str) -> bytes | None:
    """Return the result as it is stored. Raises `NotStorable`."""
    if result is None:
        return None
    settings = conf.get()
    try:
        return payloads.dumps(
            result,
            job_name=job_name,
            column=payloads.RESULT,
            serializer=settings.serializer,
            max_bytes=settings.max_payload,
        )
    except payloads.PayloadError as error:
        kind = type(result).__name__
        raise NotStorable(
            f"The job finished, but its result ({kind}) cannot be stored: {error}. "
            "Return plain values."
        ) from None


def _fail_if_over_time_limit(execution: Execution) -> None:
    """Raise `TimeLimit` if the job exceeded its limit but has returned normally.

    A thread may do that, because it is only asked to stop.
    """
    request = execution.stop_request
    if request and request.reason is StopReason.TIME_LIMIT:
        raise TimeLimit(request.message)


def _outcome_of_exception(
    exception: BaseException, execution: Execution, job: Job[..., Any] | None
) -> tuple[str, float, dict[str, str] | None]:
    """Return the new status of a job that has raised, its delay in seconds, and the stored error.

    job: None if it was not found.
    """
    try:
        # A job that was stopped may raise anything while it cleans up. What counts is why it was
        # stopped.
        if execution.stop_raised and (request := execution.stop_request):
            if request.reason is not StopReason.TIME_LIMIT:
                return ENQUEUED, 0.0, None
            if not isinstance(exception, TimeLimit):
                exception = TimeLimit(request.message).with_traceback(exception.__traceback__)
        status, delay = decide_outcome(job, exception, execution.run.failures)
        error = None if isinstance(exception, Retry | Cancel) else error_entry(exception)
        return status, delay, error
    except BaseException as broken:  # from the exception's own code, such as `__str__`
        name, broken_name = type(exception).__name__, type(broken).__name__
        failure = Failure(f"{name}, which cannot be shown ({broken_name}).")
        return FAILED, 0.0, error_entry(failure)


def decide_outcome(
    job: Job[..., Any] | None, exception: BaseException, failures: int
) -> tuple[str, float]:
    """Return the status of a job that has raised an exception, and the seconds until it runs again.

    job: None if it was not found.
    failures: its failed attempts, this one included.
    """
    if isinstance(exception, Retry):
        return SCHEDULED, exception.seconds()
    if isinstance(exception, Cancel):
        return CANCELLED, 0.0
    is_final = isinstance(
        exception, Fail | NotStorable | JobFunctionNotFound | payloads.PayloadRefused
    )
    if is_final or job is None or failures > job.policy.retries:
        return FAILED, 0.0
    if not isinstance(exception, job.policy.retry_on):
        return FAILED, 0.0
    try:
        return SCHEDULED, job.policy.delay(failures)
    except Exception:
        logger.exception(
            "The backoff of %s cannot be used; it runs again in a minute.", job.job_name
        )
        return SCHEDULED, BROKEN_BACKOFF_DELAY
