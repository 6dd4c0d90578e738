"""What ended within the last hour and day, for the charts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from operator import add
from typing import NamedTuple

from peasy_jobs.models import PeasyMinute
from peasy_jobs.store.clock import as_field
from peasy_jobs.store.durations import BOUNDS, COLUMNS, EDGES, ENDED, LONGEST, RUN


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
    rows = PeasyMinute.objects.filter(
        minute__gte=oldest * minutes, minute__lt=(newest + 1) * minutes
    )
    sums, longest = [[0] * len(COLUMNS)] * count, [[0.0] * len(LONGEST)] * count
    for minute, waited_max, run_max, *counts in rows.values_list("minute", *LONGEST, *COLUMNS):
        place, (_, waited, run) = minute // minutes - oldest, _parts(counts)
        sums[place] = list(map(add, sums[place], counts))
        longest[place] = list(
            map(max, longest[place], (_longest(waited, waited_max), _longest(run, run_max)))
        )
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
    return Point(as_field(datetime.fromtimestamp(minute * 60, UTC)), minutes, *ended, *times)
