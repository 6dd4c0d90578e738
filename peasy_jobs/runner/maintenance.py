"""What every runner does now and then for the queue as a whole, in small batches, off the way of the jobs."""

from __future__ import annotations

import logging
import random
from time import monotonic
from typing import TYPE_CHECKING

from django.db import IntegrityError

from peasy_jobs import statuses
from peasy_jobs.runner.counters import Tally
from peasy_jobs.store import querysets

if TYPE_CHECKING:
    from peasy_jobs.conf import Conf
    from peasy_jobs.store.clock import Clock

logger = logging.getLogger("peasy_jobs")

PROMOTE_EVERY, PRUNE_EVERY, TALLY_EVERY = 1.0, 10.0, 10.0  # seconds


class Maintenance:
    """Promotes scheduled jobs that are due, prunes finished ones, writes the statistics."""

    def __init__(self, jobs: querysets.JobQuerySet, clock: Clock, conf: Conf) -> None:
        self.jobs, self.clock, self.conf = jobs, clock, conf
        self.tally = Tally(jobs.db, clock)
        self.promote_at = self.prune_at = 0.0
        self.tally_at = monotonic() + TALLY_EVERY

    def run_due(self, *, backlog: bool) -> None:
        """Do what is due.

        backlog: there is more than was claimed, so that nobody looks for jobs that are due.
        """
        now = monotonic()
        if backlog and now >= self.promote_at:
            self.promote_at = now + PROMOTE_EVERY
            self.jobs.promote(self.clock.at(now))
        if now >= self.prune_at:
            self.prune_at = now + PRUNE_EVERY * random.uniform(0.8, 1.2)
            if self.prune(self.conf.prune_grace):
                self.prune_at = now
        if now >= self.tally_at:
            self.tally_at = now + TALLY_EVERY * random.uniform(0.8, 1.2)
            self.tally.write()

    def next_due(self, *, backlog: bool) -> float:
        return self.prune_at

    def prune(self, grace: float) -> int:
        """Delete finished jobs beyond the maxima, none that finished less than `grace` seconds ago.

        Returns how many jobs it has deleted, or finished for a site. In batches: call it again until there are none.
        """
        maxima = (self.conf.max_completed, self.conf.max_failed, self.conf.max_cancelled)
        before = self.clock.at(monotonic() - grace)
        changed = self.jobs.normalise_external_changes(self.clock.at(monotonic()))
        try:
            for status, maximum in zip(statuses.FINISHED, maxima, strict=True):
                changed += self.jobs.prune(status, maximum, before)
        except IntegrityError as error:  # a table of the site refers to a job
            logger.warning("Finished jobs cannot be pruned: %s", error.args[0])
        return changed
