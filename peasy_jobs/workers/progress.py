"""Jobs that are running in this process: send their progress to the runner, and stop them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

from peasy_jobs.exceptions import Stop
from peasy_jobs.store.values import Run
from peasy_jobs.workers.protocol import Report, StopRequest, Ticket


class Execution:
    """One run of a job in this process."""

    def __init__(self, run: Run, send: Callable[[Report], None]) -> None:
        """send: hands a report to the runner; called from whichever thread of the job reports."""
        self.run = run
        self.send = send
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.extra: dict[str, Any] | None = None  # as last reported from this process; None: never
        self.stop_request: StopRequest | None = None
        # `Stop` is raised only once, because code that cleans up after it may report progress, too.
        self.stop_raised = False
        # While the job's own code is running. A signal may interrupt nothing else.
        self.interruptible = False

    def report(self, status_msg: str | None, extra: str | None) -> None:
        """Send progress to the runner. Raise `Stop` if the job has to stop."""
        report = Report(self.run.pk, self.run.fencing_token, status_msg, extra)
        if threading.get_ident() != self.thread:  # signals interrupt the main thread only
            self.send(report)
            return
        # An interruption in the middle of a message would leave half of it in the socket, and the
        # runner could not read anything that follows.
        interruptible, self.interruptible = self.interruptible, False
        try:
            self.send(report)
        finally:
            self.interruptible = interruptible
        self.check()  # for a request that arrived meanwhile

    def check(self) -> None:
        """Raise `Stop` if the job has to stop and it was not raised before."""
        if self.stop_request and not self.stop_raised:
            self.stop_raised = True
            raise Stop(self.stop_request.message)


# A thread may start a job while another is still running an earlier claim of it, which the runner
# lost while it was suspended. So the primary key alone does not identify an execution.
# The keys equal tickets; plain tuples are made faster, twice for each job.
_executions: dict[tuple[int, int], Execution] = {}  # by primary key and fencing token
_current: ContextVar[Execution | None] = ContextVar("peasy_jobs", default=None)


def enter(execution: Execution) -> Token[Execution | None]:
    """Register an execution as running, in this context. Pass what this returns to `leave`."""
    run = execution.run
    _executions[run.pk, run.fencing_token] = execution
    return _current.set(execution)


def leave(execution: Execution, token: Token[Execution | None]) -> None:
    """Unregister an execution."""
    _current.reset(token)
    run = execution.run
    _executions.pop((run.pk, run.fencing_token), None)


def current_execution(pk: int) -> Execution | None:
    """Return the execution of this job if it is running in this process, otherwise None.

    In a process that the job has forked, it is None: only the process that was given the job may
    report for it.
    """
    pid = os.getpid()
    executions = [
        execution
        for execution in _executions.copy().values()
        if execution.run.pk == pk and execution.pid == pid
    ]
    own = _current.get()
    if own in executions:
        return own
    # A thread that the job has started has no execution in its context. The last one is the latest
    # claim.
    return executions[-1] if executions else None


def request_stop(ticket: Ticket, request: StopRequest, *, interrupt: bool) -> None:
    """Ask a job to stop, unless it is not running in this process or was asked before.

    interrupt: raise `Stop` right here if the job's own code is running. Only a signal handler may
    do so, which Python calls in the thread that runs the job.
    """
    execution = _executions.get(ticket)
    if execution is None or execution.stop_request is not None:
        return
    execution.stop_request = request
    if interrupt and execution.interruptible:
        execution.check()
