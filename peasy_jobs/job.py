"""A job function: what `@peasy.job` makes of a function. Calling it enqueues the call."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import update_wrapper
from types import FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from django.apps import apps

from peasy_jobs import conf, payloads
from peasy_jobs.options import JobOptions
from peasy_jobs.payloads import PayloadError
from peasy_jobs.policy import RetryPolicy

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

P = ParamSpec("P")
R = TypeVar("R")

TITLE_LIMIT = 255  # characters, the width of the column
NAME_LIMIT = 255  # characters, the width of the column

# What to pass instead of a value of this type.
ADVICE: dict[type, str] = {
    GeneratorType: "Pass a list of plain values.",
    FunctionType: "Pass the name of what to do, and look it up in the job.",
}


class StoredArguments(NamedTuple):
    """The arguments of a call as their columns store them; None if there are none."""

    args_data: bytes | None
    kwargs_data: bytes | None


class Job(Generic[P, R]):
    """A job function. Calling it enqueues the call.

    If the function has a parameter `job_pk` and the caller passes none, it receives the primary key
    of its job.
    """

    __wrapped__: Callable[P, R]

    def __init__(
        self,
        function: Callable[P, R],
        title: str,
        policy: RetryPolicy,
        options: JobOptions,
    ) -> None:
        # First, so that an attribute of the function cannot replace one of these.
        update_wrapper(self, function)
        self.function = function
        self.title = title
        self.policy = policy
        self.options = options
        self.job_name = f"{function.__module__}.{function.__qualname__}"
        self.module_spec = module_spec(function)
        self.signature = inspect.signature(function)
        self.takes_pk = "job_pk" in self.signature.parameters
        # Numbers of positional arguments that are known to fit the signature: binding is slow.
        self.known_counts: set[int] = set()

    def __call__(self, /, *args: Any, **kwargs: Any) -> PeasyJobQueue:
        """Enqueue a call with these arguments in the current transaction. Return the job.

        The job is created only if the transaction commits.
        Raise `TypeError` if the function does not accept these arguments, and `PayloadError` (a
        `ValueError`) if one of them cannot be stored.
        """
        stored = self._store(args, kwargs)
        return jobs_model().objects.enqueue(
            title=self.title,
            job_name=self.job_name,
            args_data=stored.args_data,
            kwargs_data=stored.kwargs_data,
            **self.options.columns(),
        )

    def map(self, items: Iterable[Any]) -> list[PeasyJobQueue]:
        """Enqueue one call for each item in one transaction. Return the jobs in the same order.

        items: the arguments of each call: a tuple of positional arguments, a dictionary of keyword
        arguments, or any other value as the only argument.
        Raise what a call raises. In that case no job is enqueued.
        """
        calls = [self._store(*call_arguments(item)) for item in items]
        return jobs_model().objects.enqueue_many(
            calls, title=self.title, job_name=self.job_name, **self.options.columns()
        )

    def call(self, /, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now, without the queue. Return what it returns.

        `job_pk` is None unless it is passed.
        """
        return self.function(*args, **self.with_pk(None, args, kwargs))

    def using(
        self,
        *,
        user: Any = None,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | timedelta | None = None,
    ) -> Job[P, R]:
        """Return the same job function with other options for its calls. None changes nothing.

        user: the user who asks for the job, such as `request.user`. An anonymous user means none.
        priority: from -100 to 100. Jobs with a higher priority run first.
        queue_name: the queue whose runners run the job, up to 64 characters.
        run_after: when the job may run at the earliest: a datetime, aware if `USE_TZ` is set, or a
        timedelta from the call on.
        Raise `TypeError` or `ValueError` for an invalid value.
        """
        job = copy.copy(self)
        job.options = self.options.changed(
            user=user, priority=priority, queue_name=queue_name, run_after=run_after
        )
        return job

    def with_pk(
        self, pk: int | None, args: Iterable[Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the keyword arguments of a call that runs as the job with this primary key."""
        if not self.takes_pk:
            return kwargs
        if "job_pk" in self.signature.bind_partial(*args, **kwargs).arguments:
            return kwargs
        return {**kwargs, "job_pk": pk}

    def _store(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StoredArguments:
        self._check_signature(args, kwargs)
        try:
            return StoredArguments(
                self._dumps(list(args), payloads.ARGS) if args else None,
                self._dumps(kwargs, payloads.KWARGS) if kwargs else None,
            )
        except PayloadError as error:
            raise self._explain(error, args, kwargs) from error

    def _check_signature(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `TypeError` if the function does not accept these arguments."""
        if not kwargs and len(args) in self.known_counts:
            return
        try:
            self.signature.bind(*args, **self.with_pk(None, args, kwargs))
        except TypeError as error:
            raise TypeError(f'Cannot enqueue "{self.title}": {error}.') from None
        if not kwargs:
            self.known_counts.add(len(args))

    def _dumps(self, value: Any, column: str) -> bytes:
        site = conf.get()
        return payloads.dumps(
            value,
            job_name=self.job_name,
            column=column,
            max_bytes=site.max_payload,
            serializer=site.serializer,
        )

    def _explain(
        self, error: PayloadError, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PayloadError:
        """Return an error that names the argument that cannot be stored, and what to pass."""
        for name, value in self._named_arguments(args, kwargs):
            try:
                self._dumps(value, payloads.ARGS)
            except PayloadError as reason:
                kind = type(value)
                return PayloadError(
                    f'Cannot enqueue "{self.title}": argument {name} ({kind.__name__}) '
                    f"cannot be stored: {reason}. {ADVICE.get(kind, reason.advice)}"
                )
        return PayloadError(
            f'Cannot enqueue "{self.title}": its arguments cannot be stored together: {error}. '
            f"{error.advice}"
        )

    def _named_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the arguments with their names, or with a number if they are one of `*args`."""
        names = [
            parameter.name
            for parameter in self.signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        for index, value in enumerate(args):
            yield f"'{names[index]}'" if index < len(names) else f"number {index + 1}", value
        for name, value in kwargs.items():
            yield f"'{name}'", value


def jobs_model() -> type[PeasyJobQueue]:
    """Return the model. Not imported: a site may decorate functions before models are loaded."""
    return apps.get_model("peasy_jobs", "PeasyJobQueue")


def call_arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an item of `map` means."""
    if isinstance(item, dict):
        return (), item
    return item if isinstance(item, tuple) else (item,), {}


def check_title(title: object) -> None:
    """Raise `TypeError` if this cannot be the title of a job."""
    if callable(title):
        raise TypeError(
            '@peasy.job needs a title: write @peasy.job("export data"), not @peasy.job.'
        )
    if not payloads.is_storable_text(title, TITLE_LIMIT):
        raise TypeError(
            f"@peasy.job needs a title of 1 to {TITLE_LIMIT} characters, not {title!r}."
        )


def check_importable(function: Callable[..., Any]) -> None:
    """Raise `TypeError` or `ValueError` if a runner could not import this function by its name."""
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
            f"@peasy.job cannot decorate {job_name}: its dotted name has {len(job_name)} "
            f"characters. Shorten it to {NAME_LIMIT} or fewer."
        )
    earlier = getattr(sys.modules.get(function.__module__), name, None)
    if isinstance(earlier, Job) and earlier.module_spec is module_spec(function):
        raise ValueError(
            f"Two jobs are named {job_name}, so the runner could run the wrong one. Rename one."
        )


def module_spec(function: Callable[..., Any]) -> object:
    """Return the spec of the function's module. It is a new object each time the module is loaded.

    A module that is loaded again may define the same job again.
    """
    return getattr(sys.modules.get(function.__module__), "__spec__", None)
