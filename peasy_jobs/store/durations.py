"""Buckets in which durations of jobs are counted, each a column of `PeasyMinute`."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial

from peasy_jobs.statuses import STATUSES

# Seconds where one of the twelve buckets ends and the next begins, each about four times the last.
BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
bucket = partial(bisect_right, BOUNDS)  # returns the number of the bucket of a duration
# All ends of the buckets. The first bucket has no lower end and the last no upper one: 0.2 ms and
# five hours stand for them.
EDGES = (0.0002, *BOUNDS, 18_000.0)
ENDED = {status.letter: status.word for status in STATUSES if status.is_finished}
WAITED = [f"w{number}" for number in range(len(BOUNDS) + 1)]
RUN = [f"r{number}" for number in range(len(BOUNDS) + 1)]
COLUMNS = [*ENDED.values(), *WAITED, *RUN]
LONGEST = ("waited_max", "run_max")
