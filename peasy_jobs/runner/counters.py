"""How many jobs ended in each minute, and how long they had waited and ran. Nothing in here may harm a job.

Each runner counts in its memory and adds that to the row of the minute now and then: no query per job, and what a
runner has counted within the last seconds is lost when it is killed.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf
from operator import add
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from django.db import DatabaseError, IntegrityError, InterfaceError, connections
from django.db.models import F
from django.db.models.functions import Coalesce, Greatest
from django.utils.timezone import make_naive

from peasy_jobs.models import PeasyMinute
from peasy_jobs.store import vendors
from peasy_jobs.store.querysets import CANCELLED, COMPLETED, FAILED

if TYPE_CHECKING:
    from peasy_jobs.store.values import Ending

logger = logging.getLogger("peasy_jobs")

# Seconds: where one of the twelve buckets ends and the next begins, each about four times as long as the last.
BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
bucket = partial(bisect_right, BOUNDS)  # in which of them a time is counted
EDGES = (0.0002, *BOUNDS, 18_000.0)  # the first has no lower end and the last no upper one: these stand for them
AGES = 1e9  # no time is kept as longer: on PostgreSQL a job may have waited since '-infinity'
KEPT = 48 * 60  # minutes
BATCH = 100  # old minutes that are deleted at a time

ENDED = {COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled"}
WAITED, RUN = ([f"{kind}{bucket}" for bucket in range(len(BOUNDS) + 1)] for kind in "wr")
COLUMNS = [*ENDED.values(), *WAITED, *RUN]
LONGEST = ("waited_max", "run_max")


class Tally:
    """What a runner has counted and not written yet: for each minute how much to add to which column.

    And `longest`: for each minute the longest times, of those columns that have one.
    """

    def __init__(self, alias: str, clock: vendors.Clock) -> None:
        self.minutes, self.clock = PeasyMinute.objects.using(alias), clock
        self.zone = connections[alias].timezone  # that of the columns, None without USE_TZ
        self.counts: dict[int, Counter[str]] = {}
        self.longest: dict[int, dict[str, float]] = {}
        self.told = False

    def count(self, endings: Sequence[Ending]) -> None:
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
            old = self.minutes.filter(pk__lt=self._minute() - KEPT).order_by("pk").values_list("pk", flat=True)
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
        row, added = self.minutes.filter(pk=minute), {column: F(column) + count for column, count in counts.items()}
        # Coalesce: with NULL the greatest is the other one on PostgreSQL and NULL elsewhere.
        grown = {column: Greatest(Coalesce(column, time), time) for column, time in longest.items()}
        if not row.update(**added, **grown):
            try:
                self.minutes.create(minute=minute, **counts, **longest)
            except IntegrityError:  # another runner was faster
                row.update(**added, **grown)

    def _minute(self) -> int:
        return int(monotonic() + self.clock.offset) // 60


class Point(NamedTuple):
    """What ended within some minutes. Times are seconds, None where nothing ended."""

    start: datetime
    minutes: int
    completed: int
    failed: int
    cancelled: int
    waited_median: float | None
    waited_p95: float | None
    run_median: float | None
    run_p95: float | None


def last_hour(now: datetime) -> list[Point]:
    """A point for each of sixty minutes, the last of them `now` (aware: `database.database_now`). One query."""
    return _points(now, count=60, minutes=1)


def last_day(now: datetime) -> list[Point]:
    """A point for each quarter of an hour of a day, the last of them `now` (aware). One query."""
    return _points(now, count=96, minutes=15)


def quantile(counts: Sequence[int], share: float, longest: float = EDGES[-1]) -> float | None:
    """The time that this share of what was counted did not exceed, as if evenly spread over the log of its bucket.

    No bucket ends above the longest time, and the last one ends there.
    """
    rank = share * sum(counts)
    for count, low, end in zip(counts, EDGES, (*BOUNDS, inf), strict=False):
        if count and rank <= count:
            high = max(low, min(end, longest))
            return float(low * (high / low) ** (rank / count))
        rank -= count
    return None


def _points(now: datetime, count: int, minutes: int) -> list[Point]:
    newest = int(now.timestamp()) // 60 // minutes
    oldest = newest - count + 1
    rows = PeasyMinute.objects.filter(minute__gte=oldest * minutes, minute__lt=(newest + 1) * minutes)
    sums, longest = [[0] * len(COLUMNS)] * count, [[0.0] * len(LONGEST)] * count
    for minute, waited_max, run_max, *counts in rows.values_list("minute", *LONGEST, *COLUMNS):
        place, (_, waited, run) = minute // minutes - oldest, _parts(counts)
        sums[place] = list(map(add, sums[place], counts))
        longest[place] = list(map(max, longest[place], (_longest(waited, waited_max), _longest(run, run_max))))
    points = enumerate(zip(sums, longest, strict=True))
    return [_point((oldest + place) * minutes, minutes, *figures) for place, figures in points]


def _parts(counts: list[int]) -> tuple[list[int], list[int], list[int]]:
    return counts[: len(ENDED)], counts[len(ENDED) : -len(RUN)], counts[-len(RUN) :]


def _longest(spread: list[int], known: float | None) -> float:
    """None of these times was longer: in a row from before migration 0007 than the end of its last bucket."""
    if known is not None:
        return known
    return max((end for count, end in zip(spread, EDGES[1:], strict=True) if count), default=0.0)


def _point(minute: int, minutes: int, counts: list[int], longest: list[float]) -> Point:
    ended, *spreads = _parts(counts)
    limits = zip(spreads, longest, strict=True)
    times = [quantile(spread, share, limit) for spread, limit in limits for share in (0.5, 0.95)]
    return Point(vendors.as_field(datetime.fromtimestamp(minute * 60, UTC)), minutes, *ended, *times)
