"""The exceptions that jobs raise, or that say why a job failed."""

from __future__ import annotations


class Failure(Exception):
    """A job failed for a reason that is not an exception of its own code."""


class JobFunctionNotFound(Failure):
    """There is no such job function here: maybe not yet, while a new version is being deployed."""


class NotStorable(Failure):
    """A job finished, but its result cannot be stored. Its work is done, so it is not run again."""


class TimeLimit(Failure):
    """A job took longer than its time limit."""


class Stop(BaseException):
    """Raised inside a job that is to end now: it may catch this to clean up, and is killed if that takes too long.

    Not an `Exception`, so that a job which catches those and goes on ends all the same.
    """


class Retry(Exception):
    """Raise this in a job to have it run again later. It does not count as a failed attempt.

    after: seconds from now.
    """

    def __init__(self, after: float = 60) -> None:
        self.after = after
        super().__init__(f"to run again in {self.seconds():g} seconds")

    def seconds(self) -> float:
        """Until it runs again. Raises `ValueError` when `after` is not that."""
        if not isinstance(self.after, int | float) or not 0 <= self.after < 10**9:
            raise ValueError(f"after is {self.after!r}. Give a number of seconds, 0 or more.")
        return float(self.after)


class Fail(Failure):
    """Raise this in a job to have it FAILED at once, with this message and without further attempts."""


class Cancel(Exception):
    """Raise this in a job to have it CANCELLED."""
