"""What a worker is to its runner: hand out, recall, collect, kill. Knows nothing of the database. And threads.

A worker's `pending` are the jobs it was given and has not finished, in order; it runs the first of them. The rest can
be recalled until the moment it takes them: thread and runner share a queue, process and runner share a pipe.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from time import monotonic
from typing import NamedTuple, Protocol

from peasy_jobs.store.values import Claim
from peasy_jobs.workers import execution
from peasy_jobs.workers.execution import Outcome, Report
from peasy_jobs.workers.forkserver import import_jobs


class Death(NamedTuple):
    """A worker is gone. `victims` were running, `innocent` jobs had not begun. No `reason`: no job is to blame."""

    reason: str | None
    victims: list[Claim]
    innocent: list[Claim]
    since: float  # time.monotonic() when it began the first of `victims`
    pid: int


Event = Outcome | Report | Death


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

    def ask(self, claim: Claim, why: str, reason: str) -> None:
        """Ask the worker to stop this job, if it runs it."""

    def kill(self) -> bool:
        """End the worker and what its job has started; its death is collected. False: it cannot be ended."""


class Workers(Protocol):
    """All workers of a runner."""

    @property
    def workers(self) -> Sequence[Worker]: ...

    def collect(self) -> list[Event]:
        """What has happened since the last call. Replaces workers that are gone."""

    def stop(self) -> None: ...


def deal(claims: list[Claim], room: dict[Worker, int]) -> tuple[dict[Worker, list[Claim]], list[Claim]]:
    """Share out jobs, each to the worker that has the fewest then. Returns who gets which, and those left over."""
    ranges = [(worker, len(worker.pending), len(worker.pending) + more) for worker, more in room.items()]
    last = max((end for _, _, end in ranges), default=0)
    places = (worker for place in range(last) for worker, first, end in ranges if first <= place < end)
    batches: dict[Worker, list[Claim]] = {}
    for dealt, claim in enumerate(claims):
        worker = next(places, None)
        if worker is None:
            return batches, claims[dealt:]
        batches.setdefault(worker, []).append(claim)
    return batches, []


class ThreadWorker:
    """Runs jobs in a thread of the runner. It cannot be killed."""

    room = float("inf")

    def __init__(self, number: int, deliver: Callable[[Event], None]) -> None:
        self.ready = True
        self.pending: dict[int, Claim] = {}
        self.busy_since = self.began = 0.0
        self.jobs: queue.SimpleQueue[Claim | None] = queue.SimpleQueue()  # None ends the thread
        self.deliver = deliver
        threading.Thread(target=self._work, name=f"peasy worker {number}", daemon=True).start()

    def hand_out(self, claims: list[Claim]) -> None:
        if not self.pending:
            self.busy_since = self.began = monotonic()
        for claim in claims:
            self.pending[claim.pk] = claim
            self.jobs.put(claim)

    def recall(self) -> list[Claim]:
        recalled: list[Claim] = []
        with contextlib.suppress(queue.Empty):
            while claim := self.jobs.get_nowait():
                recalled.append(self.pending.pop(claim.pk))
        return recalled

    def ask(self, claim: Claim, why: str, reason: str) -> None:
        execution.ask(claim.pk, claim.claims, why, reason, interrupt=False)

    def kill(self) -> bool:
        return False

    def _work(self) -> None:
        pid, clean = os.getpid(), Context()
        while claim := self.jobs.get():
            outcome = execution.run(claim.run(), self.deliver)
            if os.getpid() != pid:
                os._exit(1 if outcome.error else 0)  # a fork that came back from the job: the job is its parent
            clean = execution.tidy(clean)
            self.deliver(outcome)


class ThreadWorkers:
    """Workers that are threads of this process."""

    def __init__(self, concurrency: int, selector: selectors.BaseSelector, max_jobs: int | None) -> None:
        self.arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.wake_w.setblocking(False)
        self.selector = selector
        selector.register(self.wake_r, selectors.EVENT_READ, self._woken)
        import_jobs()
        self.workers = [ThreadWorker(number, self._deliver) for number in range(concurrency)]

    def collect(self) -> list[Event]:
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self.arrived.get_nowait()
                if isinstance(event, Outcome):
                    for worker in self.workers:
                        claim = worker.pending.get(event.pk)
                        if claim is not None and claim.claims == event.claims:
                            del worker.pending[event.pk]
                            worker.busy_since = worker.began = monotonic()
                events.append(event)
        return events

    def stop(self) -> None:
        """End the threads that are idle. One that runs a job ends after it, or with the process."""
        for worker in self.workers:
            worker.jobs.put(None)
        self.selector.unregister(self.wake_r)
        self.wake_r.close()
        self.wake_w.close()

    def _deliver(self, event: Event) -> None:
        self.arrived.put(event)
        with contextlib.suppress(OSError):  # full, so that the runner wakes anyway; or closed: it has stopped
            self.wake_w.send(b".")

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wake_r.recv(65536)
