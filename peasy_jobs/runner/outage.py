"""When the database cannot be used: what the log says and when the runner tries again."""

from __future__ import annotations

import logging
import random
from time import monotonic

from peasy_jobs.store import vendors

logger = logging.getLogger("peasy_jobs")

LOCK_WARNING_AFTER = 3.0  # seconds: shorter locks are normal on SQLite
RETRY_BETWEEN = (0.1, 0.5)  # seconds, at random so that runners do not all try at once


class Outage:
    """The time since the database last worked: one warning when it begins, one when it ends."""

    def __init__(self) -> None:
        self.since: float | None = None  # `time.monotonic()`; None while the database works
        self.retry_at = 0.0
        self.warned = False

    @property
    def is_on(self) -> bool:
        return self.since is not None

    def is_waiting(self) -> bool:
        """Return whether it is too early to try again."""
        return self.is_on and monotonic() < self.retry_at

    def record_failure(self, error: Exception) -> None:
        """Record that this error aborted an iteration. Try again after a moment."""
        now = monotonic()
        if self.since is None:
            self.since, self.warned = now, False
        is_worth_a_warning = not vendors.is_locked(error) or now - self.since > LOCK_WARNING_AFTER
        if is_worth_a_warning and not self.warned:
            self.warned = True
            logger.warning(
                "Cannot use the database (%s). Trying until it works again.", str(error).strip()
            )
        self.retry_at = now + random.uniform(*RETRY_BETWEEN)

    def record_success(self) -> None:
        """Record that an iteration has used the database without an error."""
        if self.since is not None and self.warned:
            logger.warning("The database works again after %.1f s.", monotonic() - self.since)
        self.since = None

    def next_due(self) -> float:
        """Return when to try again (`time.monotonic()`), infinity while the database works."""
        return float("inf") if self.since is None else self.retry_at
