"""What a worker is to its runner: hand out, recall, collect, kill. Knows nothing of the database. And threads.

A worker's `pending` are the jobs it was given and has not finished, in order; it runs the first of them. The rest can
be recalled until the moment it takes them: thread and runner share a queue, process and runner share a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.execution import Outcome, Report
from peasy_jobs.workers.protocol import StopRequest


class WorkerExit(NamedTuple):
    """A worker is gone. `running` were running, `not_started` jobs had not begun. No `reason`: no job is to blame."""

    reason: str | None
    running: list[Claim]
    not_started: list[Claim]
    since: float  # time.monotonic() when it began the first of `running`
    pid: int


Event = Outcome | Report | WorkerExit


class Worker(Protocol):
    """One worker. `busy_since` is the `time.monotonic()` when it was given the first of `pending`, or ended the last.

    `began` is when it began that job. One that was idle says so itself: until then it lies in the future.
    """

    pending: dict[int, Claim]
    busy_since: float
    began: float
    ready: bool

    @property
    def room(self) -> float:
        """How many more jobs it may be given before it is replaced."""

    def hand_out(self, claims: list[Claim]) -> None: ...

    def recall(self) -> list[Claim]:
        """Take back what the worker has not begun."""

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        """Ask the worker to stop this job, if it is running it."""

    def kill(self) -> bool:
        """End the worker and what its job has started; its death is collected. False: it cannot be ended."""


class Workers(Protocol):
    """All workers of a runner."""

    @property
    def workers(self) -> Sequence[Worker]: ...

    def collect(self) -> list[Event]:
        """What has happened since the last call. Replaces workers that are gone."""

    def stop(self) -> None: ...


def distribute(
    claims: list[Claim], room: dict[Worker, int]
) -> tuple[dict[Worker, list[Claim]], list[Claim]]:
    """Share out jobs, each to the worker that has the fewest then. Returns who gets which, and those left over."""
    ranges = [
        (worker, len(worker.pending), len(worker.pending) + more) for worker, more in room.items()
    ]
    last = max((end for _, _, end in ranges), default=0)
    places = (
        worker for place in range(last) for worker, first, end in ranges if first <= place < end
    )
    batches: dict[Worker, list[Claim]] = {}
    for dealt, claim in enumerate(claims):
        worker = next(places, None)
        if worker is None:
            return batches, claims[dealt:]
        batches.setdefault(worker, []).append(claim)
    return batches, []
