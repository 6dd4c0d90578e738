"""The API for sites: `peasy`. Decorate a function with `@peasy.job`, and call it to enqueue it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from time import monotonic
from typing import Any

from peasy_jobs import exceptions, payloads, statuses
from peasy_jobs.job import Job, P, R, check_importable, check_title, jobs_model
from peasy_jobs.options import JobOptions
from peasy_jobs.policy import Backoff, RetryPolicy
from peasy_jobs.store import querysets
from peasy_jobs.workers.progress import current_execution

TRACK_INTERVAL = 0.1  # seconds between two reports of `track`


class Peasy:
    """The job queue as the code of a site sees it. Use its only instance, `peasy`."""

    Retry = exceptions.Retry
    Fail = exceptions.Fail
    Cancel = exceptions.Cancel
    Stop = exceptions.Stop
    TimeLimit = exceptions.TimeLimit

    def job(
        self,
        title: str,
        *,
        priority: int = 0,
        queue_name: str = "default",
        retries: int = 0,
        backoff: Backoff = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
        timeout: float | None = None,
        crash_retries: int | None = None,
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Make a function a job function: calling it enqueues the call, and `run_peasy` runs it.

        The function must be defined at the top level of a module, because the runner imports it by
        its name. If it has a parameter `job_pk`, it receives the primary key of its job.

        title: what people see, up to 255 characters.
        priority: from -100 to 100. Jobs with a higher priority run first.
        queue_name: the queue whose runners run the jobs, up to 64 characters.
        retries: how many times a job runs again after it failed.
        backoff: seconds before each retry: a list, whose last value is used for all further
        retries, or a callable that receives the number of failed attempts and returns seconds.
        By default 10, 20, 40 … seconds up to one hour, each varied at random by up to a quarter.
        retry_on: an exception class, or a tuple of them. A job that raised another exception is not
        retried.
        timeout: time limit of an attempt in seconds. An attempt that exceeds it is stopped and has
        failed with `peasy.TimeLimit`. None means `PEASY_JOB_TIMEOUT`.
        crash_retries: how many times a job runs again after its worker or runner died. None means
        `PEASY_CRASH_RETRIES`.

        Raise `TypeError` or `ValueError` for an invalid option, and for a function that the runner
        could not import.
        """
        check_title(title)
        policy = RetryPolicy(retries, backoff, retry_on)
        options = JobOptions().changed(
            priority=priority,
            queue_name=queue_name,
            timeout=timeout,
            crash_retries=crash_retries,
        )

        def decorate(function: Callable[P, R]) -> Job[P, R]:
            check_importable(function)
            return Job(function, title, policy, options)

        return decorate

    def update_status(
        self, job_pk: int | None, status_msg: str | None = None, extra: dict[str, Any] | None = None
    ) -> None:
        """Show what a job is doing, on its page, in the admin and to whoever watches it.

        Do nothing if `job_pk` is None, as in a function that runs by `.call()`.

        job_pk: primary key of the job, which may be another job than the caller.
        status_msg: a message, cut to 255 characters. None leaves the stored one as it is.
        extra: a dictionary of JSON values that replaces the stored one. None leaves it as it is.
        Progress bars show `extra["progress"]`, a number from 0 to 100.

        Raise `TypeError` or `ValueError` if `extra` is not a dictionary of JSON values, and
        `peasy.Stop` once if the job has been asked to stop.
        """
        if job_pk is None:
            return
        message = None
        if status_msg is not None:
            message = payloads.text(status_msg, querysets.STATUS_MSG_LIMIT)
        extra_text = None if extra is None else _extra_text(extra)
        running = current_execution(job_pk)
        if running is None:
            jobs_model().objects.report(job_pk, message, extra_text)
            return
        if extra_text is not None:
            running.extra = json.loads(extra_text)
        running.report(message, extra_text)

    def track(
        self, job_pk: int | None, items: Iterable[R], message: str = "", total: int | None = None
    ) -> Iterator[R]:
        """Iterate over `items` and show the progress of the job, up to ten times a second.

        Set the status message, such as "Importing rows: 3 of 40". If the number of items is known,
        also set `extra["progress"]`, from 0 to 100, and leave the rest of `extra` as it is.

        job_pk: primary key of the job. None shows nothing.
        items: any iterable, such as a list, a queryset or a generator.
        message: what the job is doing; the count is appended.
        total: number of items, if `items` has no length.

        Raise `peasy.Stop` if the job has been asked to stop.
        """
        if job_pk is None:
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = len(items)
        running = current_execution(job_pk)
        done = 0
        next_report = float("-inf")
        for item in items:
            if running is not None:
                running.check()
            if monotonic() >= next_report:
                self._report_progress(job_pk, message, done, total)
                next_report = monotonic() + TRACK_INTERVAL
            yield item
            done += 1
        self._report_progress(job_pk, message, done, total)

    def cancel(self, job_pk: int) -> bool:
        """Cancel a job. Return False if it had already ended, or does not exist.

        A waiting job never runs. A running job is stopped: in a worker process, `peasy.Stop` is
        raised in it, and the process is killed if the job does not end. In a worker thread, the
        job's next call of `peasy.track` or `peasy.update_status` raises `peasy.Stop`, and
        `peasy.cancelled` returns True; a job that calls none of them runs to its end.
        """
        return bool(jobs_model().objects.cancel(job_pk))

    def cancelled(self, job_pk: int | None) -> bool:
        """Return whether a job has been asked to stop: cancelled, timed out, or at a shutdown.

        Call it in long loops of jobs that run in worker threads. Return False if `job_pk` is None.
        """
        if job_pk is None:
            return False
        running = current_execution(job_pk)
        if running is not None:
            return running.stop_request is not None
        return jobs_model().objects.filter(pk=job_pk, status=statuses.CANCELLED).exists()

    def _report_progress(self, job_pk: int, message: str, done: int, total: int | None) -> None:
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        text = f"{message}: {count}" if message else count
        if total is None:
            self.update_status(job_pk, text)
            return
        percentage = min(100, 100 * done // total) if total else 100
        self.update_status(job_pk, text, {**_current_extra(job_pk), "progress": percentage})


def _current_extra(job_pk: int) -> dict[str, Any]:
    """Return the job's `extra` as it was last set; empty if it was never set."""
    running = current_execution(job_pk)
    if running is not None and running.extra is not None:
        return running.extra  # the runner may not have written it yet
    stored = jobs_model().objects.filter(pk=job_pk).values_list("extra", flat=True).first()
    return stored or {}


def _extra_text(extra: dict[str, Any]) -> str:
    """Return `extra` as JSON text. Raise `TypeError` or `ValueError` if that is not possible."""
    if not isinstance(extra, dict):
        raise TypeError(f"extra is {extra!r}. Give a dictionary of JSON values.")
    try:
        return payloads.json_text(extra)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"extra cannot be stored as JSON: {error}. Give a dictionary of JSON values."
        ) from None


peasy = Peasy()
