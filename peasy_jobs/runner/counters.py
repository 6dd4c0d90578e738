"""How many jobs ended in each minute, and how long they had waited and ran. Nothing in here may harm a job.

Each runner counts in its memory and adds that to the row of the minute now and then: no query per job, and what a
runner has counted within the last seconds is lost when it is killed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError, IntegrityError, InterfaceError, connections
from django.db.models import F
from django.db.models.functions import Coalesce, Greatest
from django.utils.timezone import make_naive

from peasy_jobs.models import PeasyMinute
from peasy_jobs.statuses import CANCELLED
from peasy_jobs.store import vendors
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.durations import ENDED, LONGEST, RUN, WAITED, bucket

if TYPE_CHECKING:
    from peasy_jobs.store.values import JobUpdate

logger = logging.getLogger("peasy_jobs")

AGES = 1e9  # no time is kept as longer: on PostgreSQL a job may have waited since '-infinity'
KEPT = 48 * 60  # minutes
BATCH = 100  # old minutes that are deleted at a time


class Tally:
    """What a runner has counted and not written yet: for each minute how much to add to which column.

    And `longest`: for each minute the longest times, of those columns that have one.
    """

    def __init__(self, alias: str, clock: Clock) -> None:
        self.minutes, self.clock = PeasyMinute.objects.using(alias), clock
        self.zone = connections[alias].timezone  # that of the columns, None without USE_TZ
        self.counts: dict[int, Counter[str]] = {}
        self.longest: dict[int, dict[str, float]] = {}
        self.told = False

    def count(self, endings: Sequence[JobUpdate]) -> None:
        """These ends of jobs were written. One that runs again does not count."""
        minute, columns = self._minute(), list[str]()
        waited, run = list[float](), list[float]()
        for ending in endings:
            column = ENDED.get(CANCELLED if ending.cancelled else ending.status)
            if column:
                columns.append(column)
            if column and ending.started and ending.completed:
                run.append((ending.completed - ending.started).total_seconds())
                columns.append(RUN[bucket(run[-1])])
                if ending.claim.since is not None:
                    # make_naive costs as much as all the rest of this loop, and most columns are in UTC.
                    elsewhere = self.zone not in (None, UTC)
                    started = make_naive(ending.started, self.zone) if elsewhere else ending.started
                    waited.append(started.replace(tzinfo=UTC).timestamp() - ending.claim.since)
                    columns.append(WAITED[bucket(waited[-1])])
        if columns:
            self.counts.setdefault(minute, Counter()).update(columns)
        for column, times in zip(LONGEST, (waited, run), strict=True):
            if times:
                longest = self.longest.setdefault(minute, {})
                longest[column] = min(max(*times, longest.get(column, 0.0)), AGES)

    def write(self) -> None:
        """Add what was counted to the table and delete what is too old. Raises what an outage raises, and keeps it."""
        try:
            for minute in sorted(self.counts):
                self._add(minute, self.counts[minute], self.longest.get(minute, {}))
                del self.counts[minute]
                self.longest.pop(minute, None)
            old = (
                self.minutes.filter(pk__lt=self._minute() - KEPT)
                .order_by("pk")
                .values_list("pk", flat=True)
            )
            if pks := list(old[:BATCH]):
                self.minutes.filter(pk__in=pks).delete()
        except (DatabaseError, InterfaceError) as error:
            if vendors.is_locked(error):
                return  # it has time until the next call: the jobs do not
            if vendors.is_outage(error):
                raise
            self.counts.clear()
            self.longest.clear()
            if not self.told:
                self.told = True
                logger.warning("Statistics cannot be written: %s", str(error).strip())

    def _add(self, minute: int, counts: Counter[str], longest: dict[str, float]) -> None:
        # Each statement is a transaction of its own that locks one row: runners cannot wait for each other in a circle.
        row, added = (
            self.minutes.filter(pk=minute),
            {column: F(column) + count for column, count in counts.items()},
        )
        # Coalesce: with NULL the greatest is the other one on PostgreSQL and NULL elsewhere.
        grown = {column: Greatest(Coalesce(column, time), time) for column, time in longest.items()}
        if not row.update(**added, **grown):
            try:
                self.minutes.create(minute=minute, **counts, **longest)
            except IntegrityError:  # another runner was faster
                row.update(**added, **grown)

    def _minute(self) -> int:
        return int(monotonic() + self.clock.offset) // 60
