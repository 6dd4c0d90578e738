"""How often a job function runs again after it failed, after which exceptions, and when. The engine asks, no more."""

import random
from collections.abc import Callable, Sequence

Backoff = Sequence[float] | Callable[[int], float] | None

FIRST_DELAY, LONGEST_DELAY = 10.0, 3600.0  # seconds


class Policy:
    """How often a job function runs again after it failed, after what, and when."""

    def __init__(
        self,
        retries: int,
        backoff: Backoff,
        retry_on: type[BaseException] | tuple[type[BaseException], ...],
    ) -> None:
        if type(retries) is not int or retries < 0:
            raise ValueError(f"retries is {retries!r}. Give a whole number, 0 or more.")
        if not (
            backoff is None or callable(backoff) or (isinstance(backoff, list | tuple) and backoff)
        ):
            raise TypeError(
                f"backoff is {backoff!r}. Give a list of seconds, or a callable that returns them."
            )
        if isinstance(backoff, list | tuple):
            for seconds in backoff:
                _checked(seconds)
        self.retry_on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        if not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.retry_on
        ):
            raise TypeError(
                f"retry_on is {retry_on!r}. Give an exception class, or a tuple of them."
            )
        self.retries, self.backoff = retries, backoff

    def delay(self, failures: int) -> float:
        """Seconds until the next attempt after so many failed ones. Raises what a callable `backoff` raises."""
        if callable(self.backoff):
            seconds = self.backoff(failures)
            return _checked(seconds)
        if self.backoff:
            return float(self.backoff[min(max(failures, 1), len(self.backoff)) - 1])
        # Jitter, so that a thousand jobs which failed together do not come back together.
        return min(
            FIRST_DELAY * 2.0 ** min(max(failures, 1) - 1, 20), LONGEST_DELAY
        ) * random.uniform(0.75, 1.25)


def _checked(seconds: object) -> float:
    if not isinstance(seconds, int | float) or not 0 <= seconds < 10**9:
        raise ValueError(f"backoff gives {seconds!r}. Give a number of seconds, 0 or more.")
    return float(seconds)
