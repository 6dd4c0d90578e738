"""How many jobs each worker may hold at a time.

A worker holds one job, unless jobs are known to be short: then it holds enough for `LOOK_AHEAD`, so
that it does not wait for the runner between two jobs and jobs travel in batches.
"""

from __future__ import annotations

from collections.abc import Iterable

from peasy_jobs.workers.base import Worker

LOOK_AHEAD = 0.1  # seconds of work that may wait in a worker
LOOK_AHEAD_JOBS = 1000  # for each worker
LOOK_AHEAD_BYTES = 1 << 24  # of arguments, for each worker
SMOOTHING = 8  # each job counts for an eighth of the running average


class Capacity:
    """Decide how many more jobs each worker may be given."""

    def __init__(self) -> None:
        # The average duration of a job; None before the first has ended.
        self.average_seconds: float | None = None
        self.largest_payload = 1  # bytes of arguments, among the jobs that were claimed last
        # Jobs of dead runners that are still to be claimed. One of them may have killed its runner:
        # while there are any, jobs run one at a time, so that a crash is counted for that one only.
        self.recovered_jobs = 0
        # When the workers' events were last collected (`time.monotonic()`). Nothing is known of
        # what workers have done since, so they are judged as of this moment.
        self.as_of = 0.0

    def record_duration(self, seconds: float) -> None:
        """Record how long a job took."""
        if self.average_seconds is None:
            self.average_seconds = seconds
        else:
            self.average_seconds += (seconds - self.average_seconds) / SMOOTHING

    def record_rescue(self, count: int) -> None:
        """Record how many jobs of dead runners were put back into the queue."""
        self.recovered_jobs += count

    def record_claim(self, count: int, largest_payload: int) -> None:
        """Record how many jobs were claimed.

        largest_payload: bytes of the largest arguments among them.
        """
        self.recovered_jobs = max(0, self.recovered_jobs - count)
        self.largest_payload = largest_payload

    def free_slots(self, workers: Iterable[Worker]) -> dict[Worker, int]:
        """Return how many more jobs each worker may be given, without those that may get none.

        A worker is filled up when half of its jobs have ended, so that jobs travel in batches.
        """
        depth = self._depth()
        return {
            worker: int(min(depth - len(worker.pending), worker.room))
            for worker in workers
            if worker.ready and worker.room > 0 and self._takes_more(worker, depth)
        }

    def claim_size(self, free_slots: dict[Worker, int]) -> tuple[int, int]:
        """Return how many jobs to claim, and how many of them will wait behind another one.

        While jobs are claimed no outcome is written, and idle workers wait: claim in portions.
        """
        limit = min(sum(free_slots.values()), max(LOOK_AHEAD_JOBS, len(free_slots)))
        idle = sum(not worker.pending for worker in free_slots)
        return limit, limit - idle

    def is_held_up(self, worker: Worker) -> bool:
        """Return whether a worker's current job takes longer than all of its jobs should take."""
        return self.as_of - worker.busy_since > LOOK_AHEAD

    def next_due(self, workers: Iterable[Worker]) -> float:
        """Return when a worker will be held up with jobs that it has not started."""
        crowded = (worker.busy_since for worker in workers if len(worker.pending) > 1)
        return min(crowded, default=float("inf")) + LOOK_AHEAD

    def _takes_more(self, worker: Worker, depth: int) -> bool:
        if not worker.pending:
            return True
        return len(worker.pending) <= depth // 2 and not self.is_held_up(worker)

    def _depth(self) -> int:
        seconds = self.average_seconds
        if seconds is None or seconds >= LOOK_AHEAD / 2 or self.recovered_jobs:
            return 1
        by_time = int(LOOK_AHEAD / max(seconds, 1e-6))
        by_size = LOOK_AHEAD_BYTES // self.largest_payload + 1
        return min(LOOK_AHEAD_JOBS, by_time, by_size)
