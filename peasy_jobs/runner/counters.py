"""Count how many jobs end in each minute, and how long they have waited and run.

Each runner counts in memory and adds its numbers to the row of the minute from time to time: no
query per job. What a runner has counted in the last seconds is lost when it is killed. A failure
here must not affect any job.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError, IntegrityError, InterfaceError, connections
from django.db.models import F
from django.db.models.functions import Coalesce, Greatest
from django.utils.timezone import make_naive

from peasy_jobs.models import PeasyMinute
from peasy_jobs.store import vendors
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.durations import ENDED, LONGEST, RUN, WAITED, bucket

if TYPE_CHECKING:
    from peasy_jobs.store.values import JobUpdate

logger = logging.getLogger("peasy_jobs")

MAX_SECONDS = 1e9  # of a duration: on PostgreSQL a job may have waited since '-infinity'
KEPT_MINUTES = 48 * 60
DELETE_BATCH = 100  # old minutes deleted at a time


class Counters:
    """What a runner has counted and not written yet.

    counts: for each minute, how much to add to which column.
    longest: for each minute, the longest time seen, by column. Only some columns keep one.
    """

    def __init__(self, alias: str, clock: Clock) -> None:
        self.minutes = PeasyMinute.objects.using(alias)
        self.clock = clock
        self.zone = connections[alias].timezone  # of the columns; None without USE_TZ
        self.counts: dict[int, Counter[str]] = {}
        self.longest: dict[int, dict[str, float]] = {}
        self.has_warned = False

    def count(self, updates: Sequence[JobUpdate]) -> None:
        """Count the jobs that these updates have ended. A job that runs again does not count."""
        minute = self._minute()
        columns: list[str] = []
        waited: list[float] = []
        run: list[float] = []
        for update in updates:
            column = ENDED.get(update.status)
            if column is None:
                continue
            columns.append(column)
            if update.started and update.completed:
                run.append((update.completed - update.started).total_seconds())
                columns.append(RUN[bucket(run[-1])])
                if update.claim.runnable_since is not None:
                    waited.append(self._seconds(update.started) - update.claim.runnable_since)
                    columns.append(WAITED[bucket(waited[-1])])
        if columns:
            self.counts.setdefault(minute, Counter()).update(columns)
        for column, times in zip(LONGEST, (waited, run), strict=True):
            if times:
                longest = self.longest.setdefault(minute, {})
                longest[column] = min(max(*times, longest.get(column, 0.0)), MAX_SECONDS)

    def write(self) -> None:
        """Add what was counted to the table and delete old minutes.

        Raises what an outage raises. Nothing is lost then, nor if a lock is in the way.
        """
        try:
            for minute in sorted(self.counts):
                self._add(minute, self.counts[minute], self.longest.get(minute, {}))
                del self.counts[minute]
                self.longest.pop(minute, None)
            self._delete_old()
        except (DatabaseError, InterfaceError) as error:
            if vendors.is_locked(error):
                return  # this can wait until the next call; the jobs cannot
            if vendors.is_outage(error):
                raise
            self.counts.clear()
            self.longest.clear()
            if not self.has_warned:
                self.has_warned = True
                logger.warning("Statistics could not be written: %s", str(error).strip())

    def _add(self, minute: int, counts: Counter[str], longest: dict[str, float]) -> None:
        # Each statement is a transaction that locks one row, so that runners cannot deadlock.
        row = self.minutes.filter(pk=minute)
        added = {column: F(column) + count for column, count in counts.items()}
        # Coalesce: Greatest ignores NULL on PostgreSQL, and is NULL elsewhere.
        grown = {column: Greatest(Coalesce(column, time), time) for column, time in longest.items()}
        if not row.update(**added, **grown):
            try:
                self.minutes.create(minute=minute, **counts, **longest)
            except IntegrityError:  # another runner has just created it
                row.update(**added, **grown)

    def _delete_old(self) -> None:
        old = self.minutes.filter(pk__lt=self._minute() - KEPT_MINUTES).order_by("pk")
        if pks := list(old.values_list("pk", flat=True)[:DELETE_BATCH]):
            self.minutes.filter(pk__in=pks).delete()

    def _seconds(self, time: datetime) -> float:
        """Return a time like `Claim.runnable_since`: seconds since 1970 in the columns' zone."""
        # make_naive takes as long as everything else in `count`, and most columns are in UTC.
        if self.zone not in (None, UTC):
            time = make_naive(time, self.zone)
        return time.replace(tzinfo=UTC).timestamp()

    def _minute(self) -> int:
        return int(monotonic() + self.clock.offset) // 60
