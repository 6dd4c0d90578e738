"""What a site imports: `peasy`, and the `Job` that `@peasy.job` makes of a function. Runs nothing itself."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import UTC, datetime, timedelta
from functools import update_wrapper
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from django.contrib.auth import get_user_model
from django.db import connections, router
from django.utils import timezone

from peasy_jobs import conf, payloads
from peasy_jobs.policy import Backoff, Policy
from peasy_jobs.store import querysets, vendors
from peasy_jobs.workers import execution

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

P = ParamSpec("P")
R = TypeVar("R")

TITLE_LIMIT, NAME_LIMIT, QUEUE_NAME_LIMIT = 255, 255, 64  # characters, as the columns are wide
TRACK_EVERY = 0.1  # seconds
ADVICE = {
    "generator": "Pass a list of plain values.",
    "function": "Pass the name of what to do, and look it up in the job.",
    "a queryset": "Pass the primary keys and load them in the job, which then sees the rows as they are by then.",
    "a model instance": "Pass its primary key and load it in the job, which then sees it as it is by then.",
}


def _models() -> type[PeasyJobQueue]:
    from peasy_jobs.models import PeasyJobQueue  # late: decorating must not need the app registry

    return PeasyJobQueue


class Job(Generic[P, R]):
    """A job function: calling it enqueues.

    `job_pk` is filled in with the job's primary key if the function has that parameter and the caller gave none.
    """

    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R], title: str, policy: Policy, **options: Any) -> None:
        update_wrapper(self, function)  # first: an attribute of the function must not replace one of ours
        self.function, self.title, self.policy = function, title, policy
        self.module_spec = _module_spec(function)
        self.job_name = f"{function.__module__}.{function.__qualname__}"
        self.signature = inspect.signature(function)
        self.takes_pk = "job_pk" in self.signature.parameters
        self.fitting: set[int] = set()  # numbers of positional arguments that are known to bind without keywords
        self.options: dict[str, Any] = {}
        self._set(**options)

    def __call__(self, /, *args: Any, **kwargs: Any) -> PeasyJobQueue:
        """Enqueue a call with these arguments, in the caller's own transaction. Returns the job.

        Raises `TypeError` when the function does not take these arguments, and `PayloadError` (a `ValueError`) when
        one of them cannot be stored.
        """
        from peasy_jobs.models import PeasyJobQueue  # late, as in _models(), which would be one more step for every job

        takes_none = not (args or kwargs or self.signature.parameters)
        args_data, kwargs_data = (None, None) if takes_none else self._encoded(args, kwargs)
        return PeasyJobQueue.objects.enqueue(
            title=self.title,
            job_name=self.job_name,
            args_data=args_data,
            kwargs_data=kwargs_data,
            **(self.options if "run_after" not in self.options else self._options_now()),
        )

    def map(self, items: Iterable[Any]) -> list[PeasyJobQueue]:
        """Enqueue a call for each item, all of them or none. Returns the jobs, in the order of the items.

        items: the arguments of each call: a tuple of positional ones, a dictionary of keyword ones, or a single value.
        Raises what a call raises, before anything is enqueued.
        """
        calls = [self._encoded(*_arguments(item)) for item in items]
        columns = {"title": self.title, "job_name": self.job_name, **self._options_now()}
        return _models().objects.enqueue_many(calls, **columns)

    def call(self, /, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without the queue. A `job_pk` that is not given is None."""
        return self.function(*args, **self.with_pk(None, args, kwargs))

    def with_pk(self, pk: int | None, args: Iterable[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a call that runs as the job with this primary key."""
        if self.takes_pk and "job_pk" not in self.signature.bind_partial(*args, **kwargs).arguments:
            return {**kwargs, "job_pk": pk}
        return kwargs

    def using(
        self,
        *,
        user: Any = None,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | timedelta | None = None,
    ) -> Job[P, R]:
        """The same job function with other options for its calls; `None` leaves an option as it is.

        user: who asks for the job; an anonymous user counts as none.
        priority: −100 to 100, higher first.
        queue_name: the queue whose runners run it.
        run_after: not before this time, or this long from now.
        Raises `TypeError` or `ValueError` for a value that is none of these.
        """
        job = copy.copy(self)
        job.options = dict(self.options)
        job._set(user=user, priority=priority, queue_name=queue_name, run_after=run_after)
        return job

    def _set(
        self,
        *,
        priority: int | None,
        queue_name: str | None,
        user: Any = None,
        run_after: datetime | timedelta | None = None,
        timeout: float | None = None,
        crash_retries: int | None = None,
    ) -> None:
        if priority is not None:
            if type(priority) is not int or not -100 <= priority <= 100:
                raise ValueError(f"priority is {priority!r}. Give a whole number from -100 to 100.")
            self.options["priority"] = priority
        if queue_name is not None:
            if not _is_name(queue_name, QUEUE_NAME_LIMIT):
                raise ValueError(f"queue_name is {queue_name!r}. Give a name of 1 to {QUEUE_NAME_LIMIT} characters.")
            self.options["queue_name"] = queue_name
        if user is not None:
            if not isinstance(user, get_user_model()) and not getattr(user, "is_anonymous", False):
                raise TypeError(f"user is {user!r}. Give a user, such as request.user.")
            if user.pk is None and not user.is_anonymous:
                raise ValueError(f"user is {user!r}, which is not saved yet. Save the user first.")
            self.options["user_id"] = user.pk
        if run_after is not None:
            self.options["run_after"] = run_after if isinstance(run_after, timedelta) else _moment(run_after)
        if timeout is not None:
            if type(timeout) not in (int, float) or not 0 < timeout <= 10**9:
                raise ValueError(f"timeout is {timeout!r}. Give a number of seconds above 0.")
            self.options["timeout"] = timeout
        if crash_retries is not None:
            if type(crash_retries) is not int or not 0 <= crash_retries < 2**31:
                raise ValueError(f"crash_retries is {crash_retries!r}. Give a whole number, 0 or more.")
            self.options["crash_retries"] = crash_retries

    def _options_now(self) -> dict[str, Any]:
        """The options of a call that is made now: a timedelta counts from here."""
        run_after = self.options.get("run_after")
        if isinstance(run_after, timedelta):
            now = vendors.database_now(connections[router.db_for_write(_models())])
            try:
                run_after = vendors.as_field(now + run_after)
            except OverflowError:
                raise ValueError(f"run_after is {run_after!r}, which no date can hold.") from None
        return self.options if run_after is None else {**self.options, "run_after": run_after}

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes | None, bytes | None]:
        """The arguments of a call as they are stored. Raises `TypeError` or `PayloadError`."""
        if kwargs or len(args) not in self.fitting:
            try:
                self.signature.bind(*args, **self.with_pk(None, args, kwargs))
            except TypeError as error:
                raise TypeError(f'Cannot enqueue "{self.title}": {error}.') from None
            if not kwargs:
                self.fitting.add(len(args))
        try:
            args_data = self._dumps(list(args), payloads.ARGS) if args else None
            return args_data, self._dumps(kwargs, payloads.KWARGS) if kwargs else None
        except payloads.PayloadError as error:
            raise self._cannot_enqueue(error, args, kwargs) from error

    def _dumps(self, value: Any, column: str) -> bytes:
        settings = conf.get()
        how = {"job_name": self.job_name, "serializer": settings.serializer}
        return payloads.dumps(value, column=column, max_bytes=settings.max_payload, **how)

    def _cannot_enqueue(
        self, error: payloads.PayloadError, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> payloads.PayloadError:
        """The same error, naming the argument that is to blame."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, parameter in self.signature.parameters.items() if parameter.kind in positional]
        named = [(names[n] if n < len(names) else f"number {n + 1}", value) for n, value in enumerate(args)]
        for name, value in [*named, *kwargs.items()]:
            try:
                self._dumps(value, payloads.ARGS)
            except payloads.PayloadError as blamed:
                reason, kind = str(blamed), type(value).__name__
                advice = ADVICE.get(reason) or ADVICE.get(kind) or "Pass plain values, such as a primary key."
                if "PEASY_MAX_PAYLOAD" in reason:
                    advice = "Store the data first, in a file or a row, and pass its path or primary key."
                return payloads.PayloadError(
                    f"Cannot enqueue \"{self.title}\": argument '{name}' ({kind}) cannot be stored: {reason}. {advice}"
                )
        return payloads.PayloadError(f'Cannot enqueue "{self.title}": its arguments cannot be stored: {error}.')


def _arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(item, dict):
        return (), item
    return item if isinstance(item, tuple) else (item,), {}


def _is_name(value: object, limit: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= limit and payloads.text(value, limit) == value


def _moment(run_after: datetime) -> datetime:
    if not isinstance(run_after, datetime):
        raise TypeError(f"run_after is {run_after!r}. Give a datetime, or a timedelta from now.")
    if timezone.is_aware(run_after):
        try:
            return vendors.as_field(run_after.astimezone(UTC))
        except OverflowError:
            raise ValueError(f"run_after is {run_after!r}, which no date can hold.") from None
    if conf.uses_time_zones():
        raise ValueError(f"run_after is {run_after!r}, which has no time zone. Give an aware datetime, or a timedelta.")
    return run_after


class Peasy:
    """The job queue as seen from a site's code. There is one, `peasy`."""

    Retry, Fail, Cancel = execution.Retry, execution.Fail, execution.Cancel
    Stop, TimeLimit = execution.Stop, execution.TimeLimit

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
            raise TypeError('@peasy.job needs a title: write @peasy.job("export data"), not @peasy.job.')
        if not _is_name(title, TITLE_LIMIT):
            raise TypeError(f"@peasy.job needs a title of 1 to {TITLE_LIMIT} characters, not {title!r}.")

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
        message = None if status_msg is None else payloads.text(status_msg, querysets.STATUS_MSG_LIMIT)
        text = None if extra is None else _extra_text(extra)
        running = execution.current(job_pk)
        if running is None:
            _models().objects.report(job_pk, message, text)
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
        return bool(_models().objects.cancel(job_pk))

    def cancelled(self, job_pk: int | None) -> bool:
        """Whether this job is to stop, cancelled or for another reason: a thread has to ask. False for None."""
        if job_pk is None:
            return False
        running = execution.current(job_pk)
        if running is not None:
            return bool(running.asked)
        return _models().objects.filter(pk=job_pk, status=querysets.CANCELLED).exists()

    def track(self, job_pk: int | None, items: Iterable[R], message: str = "", total: int | None = None) -> Iterator[R]:
        """Go through `items` and show how far it is, a few times a second.

        Sets `extra["progress"]` (0 to 100) where the number of items is known, and leaves the rest of `extra`. Raises
        `peasy.Stop` when the job is to stop.
        message: what is being done; the count is added.
        total: how many items there are, if `items` has no length.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        shown, number = float("-inf"), 0
        running = None if job_pk is None else execution.current(job_pk)
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
        running = execution.current(job_pk)
        if running is not None and running.knows_extra:
            extra = running.extra
        else:
            extra = _models().objects.filter(pk=job_pk).values_list("extra", flat=True).first()
        progress = min(100, 100 * number // total) if total else 100
        self.update_status(job_pk, text, {**(extra or {}), "progress": progress})


def _extra_text(extra: dict[str, Any]) -> str:
    if not isinstance(extra, dict):
        raise TypeError(f"extra is {extra!r}. Give a dictionary of JSON values.")
    try:
        return payloads.json_text(extra)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"extra cannot be stored as JSON: {error}. Give a dictionary of JSON values.") from None


def _check_findable(function: Callable[..., Any]) -> None:
    if not inspect.isfunction(function):
        raise TypeError(f"@peasy.job cannot decorate {function!r}: it is not a function.")
    name = function.__qualname__
    if function.__module__ == "__main__":
        raise ValueError(
            f"@peasy.job cannot decorate '{name}' in a script: "
            "the runner has to import it by name. Move it to a module."
        )
    if "." in name or name == "<lambda>":
        raise ValueError(
            f"@peasy.job cannot decorate '{name}': the runner has to import it by name. "
            "Define it at the top level of a module."
        )
    job_name = f"{function.__module__}.{name}"
    if len(job_name) > NAME_LIMIT:
        raise ValueError(f"@peasy.job cannot decorate {job_name}: a name may have {NAME_LIMIT} characters.")
    earlier = getattr(sys.modules.get(function.__module__), name, None)
    if isinstance(earlier, Job) and earlier.module_spec is _module_spec(function):
        raise ValueError(f"There are two jobs named {job_name}: rename one, or the runner could run the wrong one.")


def _module_spec(function: Callable[..., Any]) -> object:
    """What tells one load of the function's module from the next: each may define the job."""
    return getattr(sys.modules.get(function.__module__), "__spec__", None)


peasy = Peasy()
