"""The exceptions that jobs raise, or that say why a job failed."""

from __future__ import annotations

from peasy_jobs.conf import LONGEST_SECONDS


class Retry(Exception):
    """Raise this in a job to run it again later, as `peasy.Retry`.

    It does not count as a failed attempt.

    after: seconds from now, 0 or more.
    Raises `ValueError` if `after` is anything else.
    """

    def __init__(self, after: float = 60) -> None:
        self.after = after
        super().__init__(f"to run again in {self.seconds():g} seconds")

    def seconds(self) -> float:
        """Return the seconds until the job runs again.

        Raises `ValueError` if `after` is invalid.
        """
        if not isinstance(self.after, int | float) or not 0 <= self.after < LONGEST_SECONDS:
            raise ValueError(f"after is {self.after!r}. Give a number of seconds, 0 or more.")
        return float(self.after)


class Cancel(Exception):
    """Raise this in a job to end it as CANCELLED, as `peasy.Cancel`."""


class Stop(BaseException):
    """Raised once inside a running job that has to stop, as `peasy.Stop`; its text says why.

    A job may catch it to clean up, and should raise it again. A job in a process that is still
    running a second later is killed. It is not an `Exception`, so that a job which catches those
    and goes on is stopped all the same.
    """


class Failure(Exception):
    """A job failed for a reason that its own code has not raised. Stored without a traceback."""


class Fail(Failure):
    """Raise this in a job to end it as FAILED without a retry, as `peasy.Fail`.

    Its text is shown as the error.
    """


class TimeLimit(Failure):
    """A job exceeded its time limit, as `peasy.TimeLimit`, which `retry_on` may name.

    Unlike other failures it is stored with a traceback if there is one: it shows where the job was
    when it was stopped.
    """


class JobFunctionNotFound(Failure):
    """There is no job function of this name, or not yet: a deployment may be under way."""

    def __init__(self, job_name: str) -> None:
        super().__init__(
            f"Cannot import {job_name}. If it was renamed after this job was enqueued, "
            "keep its old name as well until no job needs it."
        )


class NotStorable(Failure):
    """A job finished, but its result cannot be stored. Its work is done, so it is not run again."""
