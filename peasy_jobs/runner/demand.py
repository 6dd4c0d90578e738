"""Decide when to look at the queue and when to claim.

A look is a query that takes no lock (`JobQuerySet.peek`). The runner claims if the last claim or
look left jobs behind, or if a wake-up has signalled new jobs. It looks at the queue after other
signals and at intervals. The loop calls `needs_look` and `should_claim`, which change nothing, and
reports what it did with `record_look` and `record_claim`.
"""

from __future__ import annotations

import random
import selectors
from typing import TYPE_CHECKING

from peasy_jobs.store import wakeup

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class Demand:
    """What is known about waiting jobs, and when to find out more."""

    def __init__(
        self,
        peek: wakeup.Peek,
        polling_interval: float,
        selector: selectors.BaseSelector,
        *,
        exit_on_empty: bool,
    ) -> None:
        self.peek = peek
        self.polling_interval = polling_interval
        self.selector = selector
        self.exit_on_empty = exit_on_empty
        self.wakeup: wakeup.Wakeup | None = None  # None while there is no connection
        self.backlog = True  # more jobs are known to be waiting
        self.signalled = True  # more may be waiting
        # Seconds until each further look after a signal: it may stand for several jobs, some of
        # which are committed a moment later.
        self.recheck_delays: list[float] = []
        self.look_at = 0.0  # when to look at the queue without a signal (`time.monotonic()`)

    def listen(self, connection: BaseDatabaseWrapper) -> None:
        """Start the wake-up of this connection, and look for jobs that were committed before."""
        self.wakeup = wakeup.watch(connection, self.peek, self.polling_interval)
        if self.wakeup.fileno() >= 0:
            self.selector.register(self.wakeup.fileno(), selectors.EVENT_READ, self.wakeup.readable)
        self.signalled = True

    @property
    def is_listening(self) -> bool:
        return self.wakeup is not None

    def stop_listening(self) -> None:
        """Stop the wake-up, because its connection is about to be closed."""
        if self.wakeup is not None and self.wakeup.fileno() >= 0:
            self.selector.unregister(self.wakeup.fileno())
        self.wakeup = None

    def poll_wakeup(self) -> None:
        """Take the signal of the wake-up, if there is one. May raise a database error."""
        if self.wakeup is not None and self.wakeup.has_signal():
            self.signalled = True

    def how_woken(self) -> str:
        """Say how this runner learns of new jobs, for the person who started it."""
        if self.wakeup is None:
            return "by nothing"
        and_polls = "" if self.wakeup.polls else f" and every {self.polling_interval:g} s"
        return f"{self.wakeup.description}{and_polls}"

    def needs_look(self, now: float, *, idle: bool) -> bool:
        """Return whether to look at the queue before claiming.

        idle: the runner holds no job and has written every outcome.
        """
        if self.backlog:
            return False
        if self.signalled:
            return not self._trusts_signal(now)
        return now >= self.look_at or (idle and self.exit_on_empty)

    def should_claim(self, now: float) -> bool:
        """Return whether to claim: jobs are known to wait, or a signal is as good as that."""
        return self.backlog or (self.signalled and self._trusts_signal(now))

    def record_look(
        self, now: float, *, waiting: bool, seconds_to_due: float | None, promoted: int
    ) -> None:
        """Record the result of a look.

        now: the time before the look (`time.monotonic()`).
        waiting: a job may run now.
        seconds_to_due: seconds until the next scheduled job is due, negative if it was due already.
        promoted: how many scheduled jobs were due and may run now.
        """
        self._take_signal()
        self.backlog = waiting or promoted > 0
        # A wake-up that polls finds all new jobs by itself, but not that a scheduled job is due.
        polls = self.wakeup is not None and self.wakeup.polls
        interval = float("inf") if polls and seconds_to_due is None else self.polling_interval
        self.look_at = now + interval * random.uniform(0.9, 1)
        self._plan_recheck(now)
        # Jobs are promoted in batches, so after a promotion more may be due. If a job was due and
        # none was promoted, another runner was faster.
        if seconds_to_due is not None and (seconds_to_due > 0 or promoted):
            self.look_at = min(self.look_at, now + seconds_to_due)

    def record_claim(self, now: float, *, backlog: bool) -> None:
        """Record a claim.

        now: the time before the claim (`time.monotonic()`).
        backlog: more jobs are known to be waiting.
        """
        if not self.backlog:  # the signal was the reason for the claim
            self._take_signal()
            self._plan_recheck(now)
        self.backlog = backlog

    def next_due(self, now: float, *, idle: bool) -> float:
        """Return when `needs_look` or `should_claim` is true without a further signal."""
        at_once = self.backlog or self.signalled or (idle and self.exit_on_empty)
        return now if at_once else self.look_at

    def _trusts_signal(self, now: float) -> bool:
        # A wake-up with recheck delays signals enqueued jobs and nothing else: claim without a
        # look, which saves a query. But look from `look_at` on, because only a look finds scheduled
        # jobs that are due.
        return bool(self.wakeup and self.wakeup.recheck_delays) and now < self.look_at

    def _take_signal(self) -> None:
        if self.signalled:
            self.signalled = False
            self.recheck_delays = list(self.wakeup.recheck_delays) if self.wakeup else []

    def _plan_recheck(self, now: float) -> None:
        if self.recheck_delays:
            self.look_at = min(self.look_at, now + self.recheck_delays.pop(0))
