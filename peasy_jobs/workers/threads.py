"""Workers that are threads of the runner."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable
from contextvars import Context
from time import monotonic

from peasy_jobs.store.values import Claim
from peasy_jobs.workers import execution
from peasy_jobs.workers.base import Event
from peasy_jobs.workers.cleanup import reset_context
from peasy_jobs.workers.progress import request_stop
from peasy_jobs.workers.protocol import Outcome, StopRequest, Ticket
from peasy_jobs.workers.startup import import_jobs


class ThreadWorker:
    """Runs jobs in a thread of the runner. It cannot be killed, and is never replaced."""

    room = float("inf")

    def __init__(self, number: int, report: Callable[[Event], None]) -> None:
        """report: hands an event to the runner's thread."""
        self.ready = True
        self.pending: dict[int, Claim] = {}
        self.busy_since = self.job_started = 0.0
        self.jobs: queue.SimpleQueue[Claim | None] = queue.SimpleQueue()  # None ends the thread
        self.report = report
        threading.Thread(target=self._run_jobs, name=f"peasy worker {number}", daemon=True).start()

    def hand_out(self, claims: list[Claim]) -> None:
        if not self.pending:
            self.busy_since = self.job_started = monotonic()
        for claim in claims:
            self.pending[claim.pk] = claim
            self.jobs.put(claim)

    def recall(self) -> list[Claim]:
        recalled: list[Claim] = []
        with contextlib.suppress(queue.Empty):
            while claim := self.jobs.get_nowait():
                recalled.append(self.pending.pop(claim.pk))
        return recalled

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        # Python cannot interrupt another thread: the job notices where it reports progress.
        request_stop(Ticket.of(claim), request, interrupt=False)

    def kill(self) -> bool:
        return False

    def finished(self, outcome: Outcome) -> None:
        """Remove a job from `pending`, unless the outcome is that of an earlier claim."""
        claim = self.pending.get(outcome.pk)
        if claim is not None and claim.fencing_token == outcome.fencing_token:
            del self.pending[outcome.pk]
            self.busy_since = self.job_started = monotonic()

    def _run_jobs(self) -> None:
        pid = os.getpid()
        clean_context = Context()
        while claim := self.jobs.get():
            outcome = execution.run(claim.run(), self.report)
            if os.getpid() != pid:
                # The job has forked, and the child has returned from the job function, too. The job
                # waits for its exit.
                os._exit(1 if outcome.error else 0)
            clean_context = reset_context(clean_context)
            self.report(outcome)


class ThreadWorkers:
    """Workers that are threads of this process."""

    def __init__(
        self, concurrency: int, selector: selectors.BaseSelector, max_jobs: int | None
    ) -> None:
        """max_jobs: not used, because a thread need not be replaced."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        # A byte in this socket ends the runner's wait when there is an event.
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.wake_w.setblocking(False)
        self.selector = selector
        selector.register(self.wake_r, selectors.EVENT_READ, self._clear_wake_up)
        import_jobs()
        self.workers = [ThreadWorker(number, self._add_event) for number in range(concurrency)]

    def collect(self) -> list[Event]:
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self.events.get_nowait())
        for outcome in [event for event in events if isinstance(event, Outcome)]:
            for worker in self.workers:
                worker.finished(outcome)
        return events

    def next_due(self) -> float:
        return float("inf")  # threads are never replaced

    def stop(self) -> None:
        """End idle threads. One that is running a job ends after it, or with the process."""
        for worker in self.workers:
            worker.jobs.put(None)
        self.selector.unregister(self.wake_r)
        self.wake_r.close()
        self.wake_w.close()

    def _add_event(self, event: Event) -> None:
        """Called from the threads."""
        self.events.put(event)
        # The socket is full, so that the runner wakes up anyway, or closed because the runner has
        # stopped.
        with contextlib.suppress(OSError):
            self.wake_w.send(b".")

    def _clear_wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wake_r.recv(1 << 16)
