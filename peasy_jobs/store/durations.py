"""How durations are counted: in buckets, each a column of `PeasyMinute`."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial

from peasy_jobs.statuses import STATUSES

# Seconds: where one of the twelve buckets ends and the next begins, each about four times as long as the last.
BOUNDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
bucket = partial(bisect_right, BOUNDS)  # in which of them a time is counted
EDGES = (
    0.0002,
    *BOUNDS,
    18_000.0,
)  # the first has no lower end and the last no upper one: these stand for them
ENDED = {status.letter: status.word for status in STATUSES if status.is_finished}
WAITED, RUN = ([f"{kind}{bucket}" for bucket in range(len(BOUNDS) + 1)] for kind in "wr")
COLUMNS = [*ENDED.values(), *WAITED, *RUN]
LONGEST = ("waited_max", "run_max")
