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
from peasy_jobs.workers.execution import Outcome
from peasy_jobs.workers.protocol import StopRequest
from peasy_jobs.workers.startup import import_jobs


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

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        execution.request_stop(claim.pk, claim.fencing_token, request, interrupt=False)

    def kill(self) -> bool:
        return False

    def _work(self) -> None:
        pid, clean = os.getpid(), Context()
        while claim := self.jobs.get():
            outcome = execution.run(claim.run(), self.deliver)
            if os.getpid() != pid:
                os._exit(
                    1 if outcome.error else 0
                )  # a fork that came back from the job: the job is its parent
            clean = execution.reset_context(clean)
            self.deliver(outcome)


class ThreadWorkers:
    """Workers that are threads of this process."""

    def __init__(
        self, concurrency: int, selector: selectors.BaseSelector, max_jobs: int | None
    ) -> None:
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
                        if claim is not None and claim.fencing_token == event.fencing_token:
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
        with contextlib.suppress(
            OSError
        ):  # full, so that the runner wakes anyway; or closed: it has stopped
            self.wake_w.send(b".")

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wake_r.recv(65536)
