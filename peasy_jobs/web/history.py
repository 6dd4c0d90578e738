"""The statistics of the last hour and day, for the charts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any, NamedTuple

from peasy_jobs.models import PeasyMinute
from peasy_jobs.store.clock import as_field
from peasy_jobs.store.durations import BOUNDS, COLUMNS, EDGES, ENDED, LONGEST, RUN, WAITED


class Point(NamedTuple):
    """What ended within some minutes. Times are in seconds, and None if nothing ended."""

    start: datetime
    minutes: int
    completed: int
    failed: int
    cancelled: int
    waited_median: float | None
    waited_p95: float | None
    run_median: float | None
    run_p95: float | None


class Spread:
    """How many durations fell into each bucket, and the longest of them."""

    def __init__(self, size: int) -> None:
        self.counts = [0] * size
        self.longest = 0.0

    def add(self, counts: Sequence[int], longest: float | None) -> None:
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]
        self.longest = max(self.longest, _end(counts) if longest is None else longest)

    def quantile(self, share: float) -> float | None:
        return quantile(self.counts, share, self.longest)


class Total:
    """What ended within the minutes of one point."""

    def __init__(self) -> None:
        self.ended = dict.fromkeys(ENDED.values(), 0)
        self.waited = Spread(len(WAITED))
        self.run = Spread(len(RUN))

    def add(self, row: Any) -> None:
        for word in self.ended:
            self.ended[word] += getattr(row, word)
        self.waited.add([getattr(row, column) for column in WAITED], row.waited_max)
        self.run.add([getattr(row, column) for column in RUN], row.run_max)


def last_hour(now: datetime) -> list[Point]:
    """Return a point for each of 60 minutes, the last containing `now` (aware). One query."""
    return _points(now, count=60, minutes=1)


def last_day(now: datetime) -> list[Point]:
    """Return a point for each of 96 quarters of an hour, the last containing `now`. One query."""
    return _points(now, count=96, minutes=15)


def quantile(counts: Sequence[int], share: float, longest: float = EDGES[-1]) -> float | None:
    """Return the duration in seconds that this share of the counted ones did not exceed.

    Durations are assumed to be spread evenly over the logarithm of their bucket. No bucket ends
    above `longest`, and the last one ends there. None if nothing was counted.
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
    totals = [Total() for _ in range(count)]
    rows = PeasyMinute.objects.filter(
        minute__gte=oldest * minutes, minute__lt=(newest + 1) * minutes
    )
    for row in rows.values_list("minute", *COLUMNS, *LONGEST, named=True):
        totals[row.minute // minutes - oldest].add(row)
    return [
        _point((oldest + place) * minutes, minutes, total) for place, total in enumerate(totals)
    ]


def _end(counts: Sequence[int]) -> float:
    """Return the end of the last bucket in use: rows from before migration 0007 know no longest."""
    return max((end for count, end in zip(counts, EDGES[1:], strict=True) if count), default=0.0)


def _point(first_minute: int, minutes: int, total: Total) -> Point:
    return Point(
        start=as_field(datetime.fromtimestamp(first_minute * 60, UTC)),
        minutes=minutes,
        **total.ended,
        waited_median=total.waited.quantile(0.5),
        waited_p95=total.waited.quantile(0.95),
        run_median=total.run.quantile(0.5),
        run_p95=total.run.quantile(0.95),
    )
