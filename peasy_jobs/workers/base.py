"""The interface between a runner and its workers, which are threads or processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.protocol import Outcome, Report, StopRequest


class WorkerExit(NamedTuple):
    """A worker is gone, and another one takes its place."""

    reason: str | None  # None if no job is to blame, as when the fork server died
    running: list[Claim]  # jobs that were running, or may have been
    not_started: list[Claim]  # jobs that it had not started
    busy_since: float  # time.monotonic() when it started the first of `running`
    pid: int


Event = Outcome | Report | WorkerExit


class Worker(Protocol):
    """One worker. It runs the first of `pending`; the others can be recalled until they start."""

    pending: dict[int, Claim]  # jobs it was given and has not finished, in order, by primary key
    # time.monotonic() when it was given the first of `pending`, or finished the job before.
    busy_since: float
    # time.monotonic() when it started the first of `pending`. A worker that was idle reports the
    # start; until then this is a future deadline, from when its time limit counts in any case.
    job_started: float
    ready: bool  # whether it may be given jobs

    @property
    def room(self) -> float:
        """How many more jobs it may be given before it is replaced."""

    def hand_out(self, claims: list[Claim]) -> None:
        """Give jobs to the worker, to run after those in `pending`."""

    def recall(self) -> list[Claim]:
        """Take back the jobs that the worker has not started, and return them."""

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        """Ask the worker to stop this job, if it is running it."""

    def kill(self) -> bool:
        """Kill the worker and whatever its job has started. Return False if it cannot be killed.

        A `WorkerExit` follows.
        """


class Workers(Protocol):
    """All workers of a runner."""

    @property
    def workers(self) -> Sequence[Worker]:
        """The workers at present: some may not be ready, or may have to be started again."""

    def collect(self) -> list[Event]:
        """Return what has happened since the last call. Replace workers that are gone."""

    def next_due(self) -> float:
        """Return when `collect` next replaces a worker by itself (`time.monotonic()`)."""

    def stop(self) -> None:
        """Stop all workers: kill processes, and let threads end after the jobs they are running."""


def distribute(
    claims: list[Claim], room: dict[Worker, int]
) -> tuple[dict[Worker, list[Claim]], list[Claim]]:
    """Share out jobs in order, each to the worker that has the fewest by then.

    room: how many more jobs each worker may be given.
    Return the jobs of each worker, and those that are left over.
    """
    batches: dict[Worker, list[Claim]] = {}
    remaining = iter(claims)
    last_depth = max((len(worker.pending) + more for worker, more in room.items()), default=0)
    # Level by level: whoever has `depth` jobs, and room for one more, gets the next one.
    for depth in range(last_depth):
        for worker, more in room.items():
            if not len(worker.pending) <= depth < len(worker.pending) + more:
                continue
            claim = next(remaining, None)
            if claim is None:
                return batches, []
            batches.setdefault(worker, []).append(claim)
    return batches, list(remaining)
