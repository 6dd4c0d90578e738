"""Workers that are processes, as the runner sees them. Their own side is in `workerprocess.py`."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from time import monotonic

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.base import Event, WorkerExit
from peasy_jobs.workers.channel import RunnerChannel
from peasy_jobs.workers.protocol import (
    SERVER_NOTICE_SIZE,
    JobBatch,
    JobStarted,
    NoticeKind,
    Outcome,
    RequestKind,
    ServerNotice,
    ServerRequest,
    StopOrder,
    StopRequest,
    Ticket,
    unpack_worker_message,
)
from peasy_jobs.workers.startup import SIGNALS, log_level

logger = logging.getLogger("peasy_jobs")

START_RETRY_AFTER = 1.0  # seconds after a worker, or the fork server, could not be started
# Seconds after which a job's time limit counts even if its worker has not reported the start.
BEGIN_TIMEOUT = 10.0
SERVER_EXIT_TIMEOUT = 2.0  # seconds for a fork server to exit by itself


class Pipe:
    """A pipe of which neither end blocks."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self.write_fd, False)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class TicketPipe(Pipe):
    """The tickets of a worker's jobs.

    The worker reads one whenever it is free. The runner reads all of them to recall jobs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsent = bytearray()  # those that did not fit into the pipe

    def add(self, tickets: list[Ticket]) -> None:
        self.unsent += b"".join([ticket.pack() for ticket in tickets])
        self.flush()

    def flush(self) -> None:
        """Write as many tickets as the pipe holds.

        Linux makes a pipe as small as a page for a user who has a thousand of them.
        """
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                # Up to PIPE_BUF bytes are written together or not at all, so no ticket is ever cut
                # in two.
                del self.unsent[: os.write(self.write_fd, self.unsent[: select.PIPE_BUF])]

    def take_back(self) -> list[Ticket]:
        """Remove all tickets that the worker has not read, and return them."""
        unread = b""
        with contextlib.suppress(BlockingIOError):
            unread = os.read(self.read_fd, 1 << 16)
        tickets = Ticket.unpack_all(unread + self.unsent)
        self.unsent.clear()
        return tickets


class ProcessWorker:
    """Runs jobs in a process of its own, which the fork server forks, kills and reaps."""

    def __init__(
        self,
        number: int,
        send_request: Callable[[RequestKind, ProcessWorker], None],
        max_jobs: int | None,
    ) -> None:
        """send_request: sends a request about this worker to the fork server.

        max_jobs: how many jobs it runs before it is replaced; None: any number.
        """
        self.number = number
        self.pid = 0  # until the fork server has reported it
        self.send_request = send_request
        self.max_jobs = float("inf") if max_jobs is None else max_jobs
        self.finished = 0  # jobs
        self.ready = False
        self.stop_requested = False  # one of its jobs was told to stop: the worker is replaced then
        self.pending: dict[int, Claim] = {}
        self.busy_since = self.job_started = 0.0
        connection, self.worker_socket = socket.socketpair()
        self.channel = RunnerChannel(connection)
        self.ticket_pipe = TicketPipe()
        self.stop_pipe = Pipe()
        self.recalled: list[Ticket] = []  # of jobs that the worker holds and must forget

    @property
    def room(self) -> float:
        return self.max_jobs - self.finished - len(self.pending)

    def hand_out(self, claims: list[Claim]) -> None:
        idle = not self.pending
        if idle:
            self.busy_since = monotonic()
            self.job_started = self.busy_since + BEGIN_TIMEOUT
        self.pending.update({claim.pk: claim for claim in claims})
        batch = JobBatch(self.recalled, [claim.run() for claim in claims], report_start=idle)
        self.recalled = []
        self.channel.send(batch.pack())
        self.ticket_pipe.add([Ticket.of(claim) for claim in claims])

    def recall(self) -> list[Claim]:
        tickets = self.ticket_pipe.take_back()
        self.recalled += tickets
        return [self.pending.pop(ticket.pk) for ticket in tickets]

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        order = StopOrder(Ticket.of(claim), request)
        # `Stop` may interrupt code that is not prepared for it, so this process must not run
        # another job.
        self.stop_requested = True
        self.ready = False
        # The pipe is full only if the worker does not read it, and then it will be killed.
        with contextlib.suppress(BlockingIOError):
            os.write(self.stop_pipe.write_fd, order.pack())
        self.send_request(RequestKind.STOP_JOB, self)

    def kill(self) -> bool:
        self.ready = False
        self.send_request(RequestKind.KILL, self)
        return True

    def receive(self) -> list[Event]:
        """Return what the worker has sent since the last call."""
        events: list[Event] = []
        for data in self.channel.receive():
            message = unpack_worker_message(data)
            if isinstance(message, JobStarted):
                self.busy_since = self.job_started = message.at
                continue
            if isinstance(message, Outcome):
                self._finish(message)
            events.append(message)
        self.ticket_pipe.flush()
        return events

    def _finish(self, outcome: Outcome) -> None:
        claim = self.pending.get(outcome.pk)
        # This runner may have lost the job while it was suspended, and claimed it again.
        if claim is not None and claim.fencing_token == outcome.fencing_token:
            del self.pending[outcome.pk]
        self.busy_since = self.job_started = monotonic()
        self.finished += 1

    def close(self) -> None:
        """Close the runner's ends. An idle worker exits when it sees that."""
        self.channel.close()
        self.ticket_pipe.close()
        self.stop_pipe.close()


class ProcessWorkers:
    """Workers that are processes, and the server that forks them."""

    def __init__(
        self, concurrency: int, selector: selectors.BaseSelector, max_jobs: int | None
    ) -> None:
        """max_jobs: how many jobs a worker runs before it is replaced; None: any number."""
        self.concurrency = concurrency
        self.selector = selector
        self.max_jobs = max_jobs
        self.workers: list[ProcessWorker] = []
        self.events: list[Event] = []
        self.last_number = 0  # of a worker: numbers are not used twice
        self.server: subprocess.Popen[bytes] | None = None
        self.server_started = self.start_at = float("-inf")
        self._start_missing()

    def collect(self) -> list[Event]:
        for worker in self.workers.copy():
            if not worker.pending and (worker.room <= 0 or worker.stop_requested):
                self.workers.remove(worker)
                self._release(worker)
        self._start_missing()
        for worker in self.workers:
            if worker.channel.outbox:
                worker.channel.flush()
            self._watch(worker)
        events, self.events = self.events, []
        return events

    def next_due(self) -> float:
        if self.server is None:
            return self.server_started + START_RETRY_AFTER
        is_complete = len(self.workers) >= self.concurrency
        return float("inf") if is_complete else self.start_at

    def stop(self) -> None:
        """Stop the fork server, which kills every worker."""
        for worker in self.workers:
            self._release(worker)
        self.workers = []
        if self.server is None:
            return
        self.selector.unregister(self.control)
        self.control.close()
        try:
            self.server.wait(SERVER_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:  # it hangs while it loads the project, for instance
            self.server.kill()
            self.server.wait()
        self.server = None

    # Starting

    def _start_missing(self) -> None:
        """Start the fork server and the workers that are missing, pausing after a failure."""
        if self.server is None:
            if monotonic() < self.server_started + START_RETRY_AFTER:
                return
            self._start_server()
        while len(self.workers) < self.concurrency and monotonic() >= self.start_at:
            self._start_worker()

    def _start_server(self) -> None:
        self.server_started = monotonic()
        self.control, server_socket = socket.socketpair()
        # The runner's sys.path, so that the project is found from whichever directory the runner
        # was started in.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from peasy_jobs.workers import forkserver; "
            f"forkserver.main({server_socket.fileno()}, {os.getpid()}, {sys.argv!r}, {log_level()})"
        )
        # The interpreter options of the runner, such as -O.
        options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        # Ctrl-C is sent to the whole group. The server starts with these signals blocked, and
        # unblocks them when it has handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.server = subprocess.Popen(  # noqa: S603
                [sys.executable, *options, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[server_socket.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        server_socket.close()
        self.selector.register(self.control, selectors.EVENT_READ, self._receive_notices)

    def _start_worker(self) -> None:
        self.last_number += 1
        worker = ProcessWorker(self.last_number, self._send_request, self.max_jobs)
        self.workers.append(worker)
        self.selector.register(
            worker.channel.connection,
            selectors.EVENT_READ,
            lambda: self._receive_from(worker),
        )
        ends = [
            worker.worker_socket.fileno(),
            worker.ticket_pipe.read_fd,
            worker.stop_pipe.read_fd,
        ]
        self._send_request(RequestKind.START, worker, ends)
        worker.worker_socket.close()

    def _send_request(
        self, kind: RequestKind, worker: ProcessWorker, fds: Sequence[int] = ()
    ) -> None:
        request = ServerRequest(kind, worker.number)
        with contextlib.suppress(OSError):  # the server is gone, which its socket reports as well
            socket.send_fds(self.control, [request.pack()], fds)

    # Receiving

    def _receive_from(self, worker: ProcessWorker) -> None:
        """Receive from a worker whose socket is readable."""
        if worker not in self.workers:
            return  # removed a moment ago, because of another event of the same wait
        self.events += worker.receive()
        if worker.channel.closed:
            self.selector.unregister(worker.channel.connection)
            # It is dead or about to exit. Or its job has closed the socket: then it must not
            # continue, because the runner would not receive its outcomes.
            self._send_request(RequestKind.DISCONNECTED, worker)

    def _receive_notices(self) -> None:
        """Receive from the fork server, whose socket is readable."""
        data = self._read_notices()
        if not data and self.server is not None:
            self._remove_dead_server(self.server)
        for notice in ServerNotice.unpack_all(data):
            for worker in [each for each in self.workers if each.number == notice.worker]:
                if notice.kind is NoticeKind.STARTED:
                    worker.pid = notice.pid
                    worker.ready = not worker.stop_requested
                else:
                    self._remove_dead(worker, _exit_reason(notice))

    def _read_notices(self) -> bytes:
        """Return whole notices, or nothing if the fork server is gone."""
        try:
            data = self.control.recv(SERVER_NOTICE_SIZE * 64)
            while missing := -len(data) % SERVER_NOTICE_SIZE:
                more = self.control.recv(missing)
                if not more:
                    return b""
                data += more
        except OSError:
            return b""
        return data

    def _watch(self, worker: ProcessWorker) -> None:
        """Wait for the worker's socket to be writable only while there is data to send."""
        if worker.channel.closed:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.channel.outbox else 0)
        key = self.selector.get_key(worker.channel.connection)
        if key.events != events:
            self.selector.modify(worker.channel.connection, events, key.data)

    # Removing

    def _remove_dead_server(self, server: subprocess.Popen[bytes]) -> None:
        self.selector.unregister(self.control)
        self.control.close()
        server.kill()
        logger.error("The fork server died (exit code %s). Starting another.", server.wait())
        self.server = None
        for worker in list(self.workers):
            if worker.pid:
                # The kernel kills the workers with their parent, but may not have done so yet.
                with contextlib.suppress(OSError):
                    os.killpg(worker.pid, signal.SIGKILL)
            self._remove_dead(worker, None)

    def _remove_dead(self, worker: ProcessWorker, reason: str | None) -> None:
        """Remove a worker that has died. `reason` is None if no job is to blame for it."""
        self.events += worker.receive()  # what it had sent before
        not_started = worker.recall()
        if not worker.finished and not worker.pending:
            # It exited before it ran a job, and the next worker may do the same.
            if reason:
                logger.error(
                    "A worker process ended before it ran a job (%s). Starting another.", reason
                )
            self.start_at = monotonic() + START_RETRY_AFTER
        running = list(worker.pending.values())
        self.events.append(WorkerExit(reason, running, not_started, worker.busy_since, worker.pid))
        self.workers.remove(worker)
        self._release(worker)

    def _release(self, worker: ProcessWorker) -> None:
        with contextlib.suppress(KeyError):  # it is not registered if its socket was closed
            self.selector.unregister(worker.channel.connection)
        worker.close()


def _exit_reason(notice: ServerNotice) -> str:
    """Return how a worker has died, in words."""
    if notice.kind is NoticeKind.NOT_STARTED:
        return "could not be started"
    if notice.kind is NoticeKind.DISCONNECTED:
        return "its job closed the connection to the runner"
    exit_code = os.waitstatus_to_exitcode(notice.wait_status)
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    signum = -exit_code
    # Real-time signals have no name.
    name = next((known.name for known in signal.Signals if known == signum), f"signal {signum}")
    hint = "; often out of memory" if signum == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
