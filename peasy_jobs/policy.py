"""The retry policy of a job function: how often, after which exceptions, and when it runs again."""

import random
from collections.abc import Callable, Sequence

from peasy_jobs.conf import LONGEST_SECONDS

Backoff = Sequence[float] | Callable[[int], float] | None

FIRST_DELAY = 10.0  # seconds
LONGEST_DELAY = 3600.0  # seconds
MOST_DOUBLINGS = 20  # more would not change the delay, and could overflow a float
JITTER = (0.75, 1.25)  # factors, so that jobs which failed together are not retried together


class RetryPolicy:
    """How often, after which exceptions, and when a failed job runs again.

    The parameters are those of `@peasy.job`. Raise `TypeError` or `ValueError` for an invalid one.
    """

    def __init__(
        self,
        retries: int,
        backoff: Backoff,
        retry_on: type[BaseException] | tuple[type[BaseException], ...],
    ) -> None:
        check_retries(retries)
        check_backoff(backoff)
        check_retry_on(retry_on)
        self.retries = retries
        self.backoff = backoff
        self.retry_on = retry_on

    def delay(self, failures: int) -> float:
        """Return the seconds until the next attempt.

        failures: failed attempts so far.
        Raise `ValueError` if a callable `backoff` returns anything but a number of seconds, and
        whatever that callable raises.
        """
        if callable(self.backoff):
            return valid_delay(self.backoff(failures))
        attempt = max(failures, 1)
        if self.backoff:
            return float(self.backoff[min(attempt, len(self.backoff)) - 1])
        exponential = FIRST_DELAY * 2.0 ** min(attempt - 1, MOST_DOUBLINGS)
        return min(exponential, LONGEST_DELAY) * random.uniform(*JITTER)


def check_retries(retries: object) -> None:
    if type(retries) is not int or retries < 0:
        raise ValueError(f"retries is {retries!r}. Give a whole number, 0 or more.")


def check_backoff(backoff: object) -> None:
    if backoff is None or callable(backoff):
        return
    if not isinstance(backoff, list | tuple) or not backoff:
        raise TypeError(
            f"backoff is {backoff!r}. Give a list of seconds, or a callable that returns them."
        )
    for seconds in backoff:
        valid_delay(seconds)


def check_retry_on(retry_on: object) -> None:
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TypeError(f"retry_on is {retry_on!r}. Give an exception class, or a tuple of them.")


def valid_delay(seconds: object) -> float:
    """Return `seconds` as a float. Raise `ValueError` if it is not a number of seconds."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < LONGEST_SECONDS:
        raise ValueError(f"backoff gives {seconds!r}. Give a number of seconds, 0 or more.")
    return float(seconds)
