"""A job function: what `@peasy.job` makes of a function."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connections, router
from django.utils import timezone

from peasy_jobs import conf, payloads
from peasy_jobs.policy import Policy
from peasy_jobs.store.clock import as_field, database_now

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

P = ParamSpec("P")
R = TypeVar("R")
TITLE_LIMIT, NAME_LIMIT, QUEUE_NAME_LIMIT = 255, 255, 64  # characters, as the columns are wide
ADVICE = {
    "generator": "Pass a list of plain values.",
    "function": "Pass the name of what to do, and look it up in the job.",
    "a queryset": "Pass the primary keys and load them in the job, which then sees the rows as they are by then.",
    "a model instance": "Pass its primary key and load it in the job, which then sees it as it is by then.",
}


def jobs_model() -> type[PeasyJobQueue]:
    """Return the model. Looked up late, because decorating must not need the app registry."""
    return apps.get_model("peasy_jobs", "PeasyJobQueue")


class Job(Generic[P, R]):
    """A job function: calling it enqueues.

    `job_pk` is filled in with the job's primary key if the function has that parameter and the caller gave none.
    """

    __wrapped__: Callable[P, R]

    def __init__(
        self, function: Callable[P, R], title: str, policy: Policy, **options: Any
    ) -> None:
        update_wrapper(
            self, function
        )  # first: an attribute of the function must not replace one of ours
        self.function, self.title, self.policy = function, title, policy
        self.module_spec = _module_spec(function)
        self.job_name = f"{function.__module__}.{function.__qualname__}"
        self.signature = inspect.signature(function)
        self.takes_pk = "job_pk" in self.signature.parameters
        self.fitting: set[int] = (
            set()
        )  # numbers of positional arguments that are known to bind without keywords
        self.options: dict[str, Any] = {}
        self._set(**options)

    def __call__(self, /, *args: Any, **kwargs: Any) -> PeasyJobQueue:
        """Enqueue a call with these arguments, in the caller's own transaction. Returns the job.

        Raises `TypeError` when the function does not take these arguments, and `PayloadError` (a `ValueError`) when
        one of them cannot be stored.
        """
        takes_none = not (args or kwargs or self.signature.parameters)
        args_data, kwargs_data = (None, None) if takes_none else self._encoded(args, kwargs)
        return jobs_model().objects.enqueue(
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
        return jobs_model().objects.enqueue_many(calls, **columns)

    def call(self, /, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without the queue. A `job_pk` that is not given is None."""
        return self.function(*args, **self.with_pk(None, args, kwargs))

    def with_pk(
        self, pk: int | None, args: Iterable[Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
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
                raise ValueError(
                    f"queue_name is {queue_name!r}. Give a name of 1 to {QUEUE_NAME_LIMIT} characters."
                )
            self.options["queue_name"] = queue_name
        if user is not None:
            if not isinstance(user, get_user_model()) and not getattr(user, "is_anonymous", False):
                raise TypeError(f"user is {user!r}. Give a user, such as request.user.")
            if user.pk is None and not user.is_anonymous:
                raise ValueError(f"user is {user!r}, which is not saved yet. Save the user first.")
            self.options["user_id"] = user.pk
        if run_after is not None:
            self.options["run_after"] = (
                run_after if isinstance(run_after, timedelta) else _moment(run_after)
            )
        if timeout is not None:
            if type(timeout) not in (int, float) or not 0 < timeout <= 10**9:
                raise ValueError(f"timeout is {timeout!r}. Give a number of seconds above 0.")
            self.options["timeout"] = timeout
        if crash_retries is not None:
            if type(crash_retries) is not int or not 0 <= crash_retries < 2**31:
                raise ValueError(
                    f"crash_retries is {crash_retries!r}. Give a whole number, 0 or more."
                )
            self.options["crash_retries"] = crash_retries

    def _options_now(self) -> dict[str, Any]:
        """The options of a call that is made now: a timedelta counts from here."""
        run_after = self.options.get("run_after")
        if isinstance(run_after, timedelta):
            now = database_now(connections[router.db_for_write(jobs_model())])
            try:
                run_after = as_field(now + run_after)
            except OverflowError:
                raise ValueError(f"run_after is {run_after!r}, which no date can hold.") from None
        return self.options if run_after is None else {**self.options, "run_after": run_after}

    def _encoded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes | None, bytes | None]:
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
        names = [
            name
            for name, parameter in self.signature.parameters.items()
            if parameter.kind in positional
        ]
        named = [
            (names[n] if n < len(names) else f"number {n + 1}", value)
            for n, value in enumerate(args)
        ]
        for name, value in [*named, *kwargs.items()]:
            try:
                self._dumps(value, payloads.ARGS)
            except payloads.PayloadError as blamed:
                reason, kind = str(blamed), type(value).__name__
                advice = (
                    ADVICE.get(reason)
                    or ADVICE.get(kind)
                    or "Pass plain values, such as a primary key."
                )
                if "PEASY_MAX_PAYLOAD" in reason:
                    advice = "Store the data first, in a file or a row, and pass its path or primary key."
                return payloads.PayloadError(
                    f"Cannot enqueue \"{self.title}\": argument '{name}' ({kind}) cannot be stored: {reason}. {advice}"
                )
        return payloads.PayloadError(
            f'Cannot enqueue "{self.title}": its arguments cannot be stored: {error}.'
        )


def _arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(item, dict):
        return (), item
    return item if isinstance(item, tuple) else (item,), {}


def _is_name(value: object, limit: int) -> bool:
    return (
        isinstance(value, str) and 0 < len(value) <= limit and payloads.text(value, limit) == value
    )


def _moment(run_after: datetime) -> datetime:
    if not isinstance(run_after, datetime):
        raise TypeError(f"run_after is {run_after!r}. Give a datetime, or a timedelta from now.")
    if timezone.is_aware(run_after):
        try:
            return as_field(run_after.astimezone(UTC))
        except OverflowError:
            raise ValueError(f"run_after is {run_after!r}, which no date can hold.") from None
    if conf.uses_time_zones():
        raise ValueError(
            f"run_after is {run_after!r}, which has no time zone. Give an aware datetime, or a timedelta."
        )
    return run_after


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
        raise ValueError(
            f"@peasy.job cannot decorate {job_name}: a name may have {NAME_LIMIT} characters."
        )
    earlier = getattr(sys.modules.get(function.__module__), name, None)
    if isinstance(earlier, Job) and earlier.module_spec is _module_spec(function):
        raise ValueError(
            f"There are two jobs named {job_name}: rename one, or the runner could run the wrong one."
        )


def _module_spec(function: Callable[..., Any]) -> object:
    """What tells one load of the function's module from the next: each may define the job."""
    return getattr(sys.modules.get(function.__module__), "__spec__", None)
