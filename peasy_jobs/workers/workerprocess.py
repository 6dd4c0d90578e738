"""A worker process: run one job after the other, and send the runner what becomes of them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from time import monotonic, sleep

from peasy_jobs.store.values import Run
from peasy_jobs.workers.channel import WorkerChannel
from peasy_jobs.workers.cleanup import reset_context
from peasy_jobs.workers.execution import run_job
from peasy_jobs.workers.progress import Execution, request_stop
from peasy_jobs.workers.protocol import (
    STOP_ORDER_SIZE,
    TICKET_SIZE,
    JobBatch,
    JobStarted,
    StopOrder,
    Ticket,
    WorkerMessage,
    pack_worker_message,
)
from peasy_jobs.workers.startup import SIGNALS, die_with_parent, flush_output, ignore_signal

# Seconds that a worker without a connection waits to be killed: ten times as long as the server
# waits for it to exit.
KILL_TIMEOUT = 1.0
PARENT_CHECK_EVERY = 0.5  # seconds

SignalHandler = Callable[[int, object], None]


def main(server_pid: int, socket_fd: int, ticket_fd: int, stop_fd: int) -> None:
    """Run jobs until the runner is gone or this worker has to be replaced. Never returns.

    socket_fd, ticket_fd, stop_fd: this worker's ends of its job socket, ticket pipe and stop pipe.
    """
    # A process group of its own, so that killing it kills the programs that its job has started.
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    _leave_signals_of_server()
    _keep_signals_from_forks()
    die_with_parent(server_pid)
    if sys.platform != "linux":
        threading.Thread(target=_watch_parent, args=[server_pid], daemon=True).start()
    try:
        with socket.socket(fileno=socket_fd) as connection:
            run_jobs(WorkerChannel(connection), ticket_fd, stop_fd)
    except OSError:
        # Either the runner is gone and the server is about to kill this process, or a job has
        # closed the socket, and the server is about to hear of it: it kills this process and
        # reports why, if it is still there.
        sleep(KILL_TIMEOUT)
    os._exit(0)


def run_jobs(channel: WorkerChannel, ticket_fd: int, stop_fd: int) -> None:
    """Run jobs until the runner is gone or this worker has to be replaced."""

    def send(message: WorkerMessage) -> None:
        channel.send(pack_worker_message(message))

    assigned_jobs = AssignedJobs(channel, ticket_fd)
    on_sigterm = _stop_order_handler(stop_fd)
    pid = os.getpid()
    could_print = flush_output()
    # An app may have activated a language while the project was loaded.
    clean_context = reset_context(Context())
    _restore_signals(on_sigterm)
    while (run := assigned_jobs.next()) is not None:
        _restore_signals(on_sigterm)
        execution = Execution(run, send)
        outcome = run_job(execution)
        forked_by_job = os.getpid() != pid
        if not forked_by_job:
            send(outcome)
        can_print = flush_output()  # output is wanted now, not when the worker exits
        if forked_by_job:
            # The job has forked, and the child has returned from the job function, too. The job
            # waits for its exit.
            os._exit(1 if outcome.error else 0)
        if execution.stop_raised or (could_print and not can_print):
            # Interrupted code may have left anything half done, and without output the next job
            # could not print. This worker exits, and the runner starts another one.
            return
        clean_context = reset_context(clean_context)


class AssignedJobs:
    """The jobs that were given to this worker. The runner may recall those with unread tickets."""

    def __init__(self, channel: WorkerChannel, ticket_fd: int) -> None:
        self.channel = channel
        self.ticket_fd = ticket_fd
        # The keys equal tickets; plain tuples are made faster, and this is done for each job.
        self.jobs: dict[tuple[int, int], Run] = {}
        self.report_start_of: Ticket | None = None

    def next(self) -> Run | None:
        """Wait for a ticket and return its job, or None if the runner is gone."""
        ticket = self._next_ticket()
        if ticket is None:
            return None
        while ticket not in self.jobs:
            messages = self.channel.receive()
            if messages is None:
                return None
            for message in messages:
                self._add(JobBatch.unpack(message))
        if ticket == self.report_start_of:
            self.channel.send(pack_worker_message(JobStarted(monotonic())))
        return self.jobs.pop(ticket)

    def _next_ticket(self) -> Ticket | None:
        # The pipe does not block, because the runner reads from it, too. A ticket that `select` has
        # announced may be gone by the time it is read.
        while True:
            try:
                data = os.read(self.ticket_fd, TICKET_SIZE)
            except BlockingIOError:
                select.select([self.ticket_fd], [], [])
            else:
                return Ticket.unpack(data) if data else None

    def _add(self, batch: JobBatch) -> None:
        for ticket in batch.recalled:
            self.jobs.pop(ticket, None)
        self.jobs.update({(job.pk, job.fencing_token): job for job in batch.jobs})
        if batch.report_start:
            self.report_start_of = Ticket.of(batch.jobs[0])


# Signals


def _leave_signals_of_server() -> None:
    """Undo what the fork server has set up to hear of its workers' exits."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _stop_order_handler(stop_fd: int) -> SignalHandler:
    """Return a handler for SIGTERM that stops the running job if the stop pipe says so.

    systemd and others send SIGTERM to every process of a service. Without an order in the pipe it
    means nothing.
    """

    def read_stop_orders(signum: int, frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            for order in StopOrder.unpack_all(os.read(stop_fd, STOP_ORDER_SIZE * 16)):
                request_stop(order.ticket, order.request, interrupt=True)

    return read_stop_orders


def _restore_signals(on_sigterm: SignalHandler) -> None:
    """Undo what the last job did with signals, so that it does not affect the next job.

    `_signal` is what `signal` is written around. This runs before every job, and `signal` spends 5
    µs on looking up each answer in an enum.
    """
    signal.alarm(0)
    for signum, handler in zip(SIGNALS, (ignore_signal, on_sigterm), strict=True):
        if _signal.getsignal(signum) is not handler:
            signal.signal(signum, handler)
    _signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _keep_signals_from_forks() -> None:
    """Have processes that a job forks end on SIGTERM like any other, from their first moment.

    They inherit the handlers of the worker. A signal that arrives before those are replaced would
    be lost, or would read the worker's stop pipe, so both signals are blocked during the fork.
    """
    os.register_at_fork(
        before=_block_signals,
        after_in_parent=_unblock_signals,
        after_in_child=_use_default_handlers,
    )


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _use_default_handlers() -> None:
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    _unblock_signals()


def _watch_parent(server_pid: int) -> None:
    """Kill this process group when the fork server is gone, where the kernel does not."""
    while os.getppid() == server_pid:
        sleep(PARENT_CHECK_EVERY)
    os.killpg(0, signal.SIGKILL)
