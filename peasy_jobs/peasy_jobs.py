"""What a site imports: `peasy`, and the `Job` that `@peasy.job` makes of a function. Runs nothing itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sized
from time import monotonic
from typing import Any

from peasy_jobs import exceptions, payloads, statuses
from peasy_jobs.job import (
    TITLE_LIMIT,
    Job,
    P,
    R,
    _check_findable,
    _is_name,
    jobs_model,
)
from peasy_jobs.policy import Backoff, Policy
from peasy_jobs.store import querysets
from peasy_jobs.workers.progress import current_execution

TRACK_EVERY = 0.1  # seconds


class Peasy:
    """The job queue as seen from a site's code. There is one, `peasy`."""

    Retry, Fail, Cancel = exceptions.Retry, exceptions.Fail, exceptions.Cancel
    Stop, TimeLimit = exceptions.Stop, exceptions.TimeLimit

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
        """Decorate a module-level function: calling it then enqueues, and `run_peasy` runs it.

        title: what people see.
        priority: −100 to 100, higher first.
        queue_name: the queue whose runners run it.
        retries: how often it runs again after it failed.
        backoff: seconds until then: a list with one for each retry, the last one for all further ones, or a callable
        that is given the number of failed attempts. Otherwise 10, 20, 40 … up to an hour, more or less a quarter.
        retry_on: the exceptions after which it runs again.
        timeout: seconds after which it is stopped and counts as failed; None: `PEASY_JOB_TIMEOUT`.
        crash_retries: how often it runs again after its worker or runner died; None: `PEASY_CRASH_RETRIES`.
        Raises `TypeError` or `ValueError` when the function could not be found again by its name.
        """
        if callable(title):
            raise TypeError(
                '@peasy.job needs a title: write @peasy.job("export data"), not @peasy.job.'
            )
        if not _is_name(title, TITLE_LIMIT):
            raise TypeError(
                f"@peasy.job needs a title of 1 to {TITLE_LIMIT} characters, not {title!r}."
            )

        policy = Policy(retries, backoff, retry_on)
        budget = {"timeout": timeout, "crash_retries": crash_retries}

        def decorate(function: Callable[P, R]) -> Job[P, R]:
            _check_findable(function)
            return Job(function, title, policy, priority=priority, queue_name=queue_name, **budget)

        return decorate

    def update_status(
        self, job_pk: int | None, status_msg: str | None = None, extra: dict[str, Any] | None = None
    ) -> None:
        """Show how far a job is. What is left out stays; `extra` replaces the stored dictionary.

        status_msg: cut to 255 characters.
        extra: a dictionary of JSON values; `extra["progress"]`, 0 to 100, is what progress bars show.
        Does nothing when `job_pk` is None, as under `.call()`. Raises `TypeError` or `ValueError` when `extra` is not
        a dictionary of JSON values, and `peasy.Stop`, once, when the job is to stop.
        """
        if job_pk is None:
            return
        message = (
            None if status_msg is None else payloads.text(status_msg, querysets.STATUS_MSG_LIMIT)
        )
        text = None if extra is None else _extra_text(extra)
        running = current_execution(job_pk)
        if running is None:
            jobs_model().objects.report(job_pk, message, text)
            return
        if text is not None:
            running.extra = json.loads(text)
            running.knows_extra = True
        running.report(message, text)

    def cancel(self, job_pk: int) -> bool:
        """Cancel a job. One that waits never runs; one that runs is stopped. Returns False if it had ended already.

        In a process the job is interrupted by `peasy.Stop`, and killed if it goes on. A thread can only be asked:
        `peasy.track` and `peasy.update_status` raise `peasy.Stop` then, and `peasy.cancelled` says so.
        """
        return bool(jobs_model().objects.cancel(job_pk))

    def cancelled(self, job_pk: int | None) -> bool:
        """Whether this job is to stop, cancelled or for another reason: a thread has to ask. False for None."""
        if job_pk is None:
            return False
        running = current_execution(job_pk)
        if running is not None:
            return running.stop_request is not None
        return jobs_model().objects.filter(pk=job_pk, status=statuses.CANCELLED).exists()

    def track(
        self, job_pk: int | None, items: Iterable[R], message: str = "", total: int | None = None
    ) -> Iterator[R]:
        """Go through `items` and show how far it is, a few times a second.

        Sets `extra["progress"]` (0 to 100) where the number of items is known, and leaves the rest of `extra`. Raises
        `peasy.Stop` when the job is to stop.
        message: what is being done; the count is added.
        total: how many items there are, if `items` has no length.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        shown, number = float("-inf"), 0
        running = None if job_pk is None else current_execution(job_pk)
        for number, item in enumerate(items):
            if running is not None:
                running.check()
            if job_pk is not None and monotonic() - shown >= TRACK_EVERY:
                self._show(job_pk, message, number, total)
                shown = monotonic()
            yield item
            number += 1
        if job_pk is not None:
            self._show(job_pk, message, number, total)

    def _show(self, job_pk: int, message: str, number: int, total: int | None) -> None:
        count = f"{number:,}" if total is None else f"{number:,} of {total:,}"
        text = f"{message}: {count}" if message else count
        if total is None:
            self.update_status(job_pk, text)
            return
        running = current_execution(job_pk)
        if running is not None and running.knows_extra:
            extra = running.extra
        else:
            extra = jobs_model().objects.filter(pk=job_pk).values_list("extra", flat=True).first()
        progress = min(100, 100 * number // total) if total else 100
        self.update_status(job_pk, text, {**(extra or {}), "progress": progress})


def _extra_text(extra: dict[str, Any]) -> str:
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
