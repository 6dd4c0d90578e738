"""Periodic maintenance of the queue as a whole, in small batches so that jobs are not delayed.

Every runner does it. What two of them do at the same time is harmless.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django.db import IntegrityError

from peasy_jobs import statuses
from peasy_jobs.runner.counters import Counters
from peasy_jobs.runner.jitter import jittered
from peasy_jobs.store import querysets

if TYPE_CHECKING:
    from peasy_jobs.conf import Conf
    from peasy_jobs.store.clock import Clock

logger = logging.getLogger("peasy_jobs")

PROMOTE_EVERY = 1.0  # seconds
PRUNE_EVERY = 10.0  # seconds
COUNTERS_EVERY = 10.0  # seconds


class Maintenance:
    """Promote scheduled jobs that are due, prune finished jobs and write the statistics.

    Each of these has a timer, a moment on `time.monotonic()`.
    """

    def __init__(self, jobs: querysets.JobQuerySet, clock: Clock, conf: Conf) -> None:
        self.jobs = jobs
        self.clock = clock
        self.conf = conf
        self.counters = Counters(jobs.db, clock)
        self.promote_at = 0.0
        self.prune_at = 0.0
        self.counters_at = monotonic() + COUNTERS_EVERY

    def run_due(self, *, backlog: bool) -> None:
        """Do what is due.

        backlog: more jobs wait than were claimed. The runner does not look at the queue then, and a
            look is what usually promotes the scheduled jobs that are due.
        """
        now = monotonic()
        if backlog and now >= self.promote_at:
            self.promote_at = now + PROMOTE_EVERY
            self.jobs.promote(self.clock.at(now))
        if now >= self.prune_at:
            self.prune_at = now + jittered(PRUNE_EVERY)
            if self.prune(self.conf.prune_grace):
                self.prune_at = now  # there may be another batch
        if now >= self.counters_at:
            self.counters_at = now + jittered(COUNTERS_EVERY)
            self.counters.write()

    def next_due(self, *, backlog: bool) -> float:
        """Return when `run_due` has something to do (`time.monotonic()`)."""
        first = min(self.prune_at, self.counters_at)
        return min(first, self.promote_at) if backlog else first

    def prune(self, grace: float) -> int:
        """Delete a batch of the finished jobs beyond the maxima. Return how many rows were changed.

        Call it again until it returns 0. It also completes what a site has done to rows by itself,
        which counts as a change.

        grace: keep jobs that finished less than this many seconds ago.
        """
        maxima = (self.conf.max_completed, self.conf.max_failed, self.conf.max_cancelled)
        before = self.clock.at(monotonic() - grace)
        changed = self.jobs.normalise_external_changes(self.clock.at(monotonic()))
        try:
            for status, maximum in zip(statuses.FINISHED, maxima, strict=True):
                changed += self.jobs.prune(status, maximum, before)
        except IntegrityError as error:  # a foreign key of the site refers to one of the jobs
            logger.warning("Finished jobs cannot be pruned: %s", error.args[0])
        return changed
