"""Workers that are processes: how the runner hands them jobs and hears of them. Their own side is in `server.py`."""

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
from collections.abc import Callable
from time import monotonic

from peasy_jobs.store.values import Claim
from peasy_jobs.workers.base import Event, WorkerExit
from peasy_jobs.workers.channel import Channel
from peasy_jobs.workers.execution import Outcome, Report
from peasy_jobs.workers.forkserver import (
    ASK,
    ASKED,
    CUT_OFF,
    KILL,
    NEWS,
    NOT_STARTED,
    REQUEST,
    SIGNALS,
    START,
    STARTED,
    TICKET,
    WAS_CUT_OFF,
)
from peasy_jobs.workers.protocol import StopRequest
from peasy_jobs.workers.startup import log_level

logger = logging.getLogger("peasy_jobs")

START_RETRY = (
    1.0  # seconds until a worker server, or a worker, that could not be started is tried again
)
BEGIN_TIMEOUT = 10.0  # seconds that an idle worker has to begin what it is given before its time counts all the same
STOP_TIMEOUT = 2.0  # seconds for a worker server to end by itself


class ProcessWorker:
    """Runs jobs in a process of their own. The worker server forks it, reports its end, and kills it when told to."""

    def __init__(
        self, number: int, request: Callable[[bytes, ProcessWorker], None], max_jobs: int | None
    ) -> None:
        self.max_jobs = float("inf") if max_jobs is None else max_jobs
        self.pending: dict[int, Claim] = {}
        self.busy_since = self.began = 0.0
        self.done = 0
        self.number, self.pid, self.ready, self.asked = number, 0, False, False
        self.request = request
        ours, self.theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.ticket_r, self.ticket_w = os.pipe()
        self.ask_r, self.ask_w = os.pipe()
        for fd in (self.ticket_r, self.ticket_w, self.ask_r, self.ask_w):
            os.set_blocking(fd, False)
        self.tickets = bytearray()  # those that are not in the pipe yet
        self.recalled: list[
            tuple[int, int]
        ] = []  # tickets of what the worker holds and must forget

    def hand_out(self, claims: list[Claim]) -> None:
        idle = not self.pending
        if idle:
            self.busy_since = monotonic()
            self.began = self.busy_since + BEGIN_TIMEOUT
        jobs = [tuple(claim.run()) for claim in claims]
        self.pending.update({claim.pk: claim for claim in claims})
        self.channel.send((self.recalled, jobs, idle))
        self.recalled = []
        self.tickets += b"".join(TICKET.pack(claim.pk, claim.fencing_token) for claim in claims)
        self._issue()

    def _issue(self) -> None:
        """Put tickets into the pipe, as many as it takes: Linux gives small ones to a user who has a thousand."""
        with contextlib.suppress(BlockingIOError):
            while self.tickets:  # up to PIPE_BUF bytes are written together or not at all
                del self.tickets[: os.write(self.ticket_w, self.tickets[: select.PIPE_BUF])]

    def recall(self) -> list[Claim]:
        tickets = b""
        with contextlib.suppress(BlockingIOError):
            tickets = os.read(self.ticket_r, 1 << 16)
        recalled = list(TICKET.iter_unpack(tickets + self.tickets))
        self.tickets.clear()
        self.recalled += recalled
        return [self.pending.pop(pk) for pk, _ in recalled]

    def request_stop(self, claim: Claim, request: StopRequest) -> None:
        with contextlib.suppress(BlockingIOError):
            self.asked, self.ready = (
                True,
                False,
            )  # interrupted in the middle of anything: not to be used again
            why, reason = request.reason.value.encode(), request.message.encode()
            os.write(self.ask_w, ASKED.pack(claim.pk, claim.fencing_token, why, reason))
        self.request(ASK, self)

    def kill(self) -> bool:
        self.ready = False
        self.request(KILL, self)
        return True

    @property
    def room(self) -> float:
        return self.max_jobs - self.done - len(self.pending)

    def receive(self) -> list[Event]:
        events: list[Event] = []
        for kind, *values in self.channel.receive():
            if kind == "Outcome":
                outcome = Outcome(*values)
                if (
                    claim := self.pending.get(outcome.pk)
                ) and claim.fencing_token == outcome.fencing_token:  # not a later claim
                    del self.pending[outcome.pk]
                self.busy_since = self.began = monotonic()
                self.done += 1
                events.append(outcome)
            elif kind == "Begun":
                self.busy_since = self.began = values[0]
            else:
                events.append(Report(*values))
        self._issue()
        return events

    def close(self) -> None:
        self.channel.close()
        for fd in (self.ticket_r, self.ticket_w, self.ask_r, self.ask_w):
            os.close(fd)


class ProcessWorkers:
    """Workers that are processes, and the server that forks them."""

    def __init__(
        self, concurrency: int, selector: selectors.BaseSelector, max_jobs: int | None
    ) -> None:
        self.concurrency, self.selector, self.max_jobs = concurrency, selector, max_jobs
        self.workers: list[ProcessWorker] = []
        self.events: list[Event] = []
        self.started = 0  # workers so far: numbers are not used twice
        self.server: subprocess.Popen[bytes] | None = None
        self.server_started = self.fill_at = float("-inf")
        self._fill()

    def collect(self) -> list[Event]:
        spent = [
            worker
            for worker in self.workers
            if not worker.pending and (worker.room <= 0 or worker.asked)
        ]
        for worker in spent:
            self.workers.remove(worker)
            self._forget(worker)  # it sees that and ends
        self._fill()
        for worker in self.workers:
            if worker.channel.outbox:
                worker.channel.flush()
            self._watch(worker)
        events, self.events = self.events, []
        return events

    def stop(self) -> None:
        """End the worker server, and with it every worker."""
        for worker in self.workers:
            self._forget(worker)
        self.workers = []
        if self.server is not None:
            self.selector.unregister(self.control)
            self.control.close()
            try:
                self.server.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:  # stuck in the project's own imports, say
                self.server.kill()
                self.server.wait()
            self.server = None

    def _fill(self) -> None:
        if self.server is None:
            if monotonic() < self.server_started + START_RETRY:
                return
            self._start_server()
        while len(self.workers) < self.concurrency and monotonic() >= self.fill_at:
            self.started += 1
            worker = ProcessWorker(self.started, self._request, self.max_jobs)
            self.workers.append(worker)
            self.selector.register(
                worker.channel.connection, selectors.EVENT_READ, lambda w=worker: self._receive(w)
            )
            self._request(START, worker, [worker.theirs.fileno(), worker.ticket_r, worker.ask_r])
            worker.theirs.close()

    def _start_server(self) -> None:
        self.server_started = monotonic()
        self.control, theirs = socket.socketpair()
        # Our sys.path, so that the project is found from whichever directory the runner was started in.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from peasy_jobs.workers import forkserver; "
            f"forkserver.main({theirs.fileno()}, {os.getpid()}, {sys.argv!r}, {log_level()})"
        )
        options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # such as -O
        # Ctrl-C goes to the whole group: it must not hit the server before it has handlers, so the server unblocks it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.server = subprocess.Popen(  # noqa: S603
                [sys.executable, *options, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.selector.register(self.control, selectors.EVENT_READ, self._hear_server)

    def _request(self, what: bytes, worker: ProcessWorker, fds: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # the server is gone, which its socket tells us as well
            socket.send_fds(self.control, [REQUEST.pack(what, worker.number)], fds or [])

    def _hear_server(self) -> None:
        try:
            data = self.control.recv(NEWS.size * 64)
            while len(data) % NEWS.size:
                if not (more := self.control.recv(NEWS.size - len(data) % NEWS.size)):
                    raise ConnectionError("The worker server is gone in the middle of its news.")
                data += more
        except OSError:
            data = b""
        if not data and self.server is not None:
            self._lose_server(self.server)
        for number, pid, status in NEWS.iter_unpack(data):
            for worker in [worker for worker in self.workers if worker.number == number]:
                if status == STARTED:
                    worker.pid, worker.ready = pid, not worker.asked
                else:
                    self._bury(worker, _how(status))

    def _lose_server(self, server: subprocess.Popen[bytes]) -> None:
        self.selector.unregister(self.control)
        self.control.close()
        server.kill()
        logger.error("The worker server died (exit code %s). Starting another.", server.wait())
        self.server = None
        for worker in list(self.workers):
            if worker.pid:
                with contextlib.suppress(OSError):
                    os.killpg(
                        worker.pid, signal.SIGKILL
                    )  # the kernel does so too, but maybe not yet
            self._bury(worker, None)

    def _receive(self, worker: ProcessWorker) -> None:
        if worker not in self.workers:
            return  # buried a moment ago, by an earlier event of the same wait
        self.events += worker.receive()
        if worker.channel.closed:
            self.selector.unregister(worker.channel.connection)
            self._request(
                CUT_OFF, worker
            )  # dead, or soon: a job that closed the socket must not live on unheard

    def _watch(self, worker: ProcessWorker) -> None:
        """Wait for room to write to a worker only while there is something to write."""
        if not worker.channel.closed:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.channel.outbox else 0)
            key = self.selector.get_key(worker.channel.connection)
            if key.events != wanted:
                self.selector.modify(worker.channel.connection, wanted, key.data)

    def _bury(self, worker: ProcessWorker, reason: str | None) -> None:
        self.events += worker.receive()
        not_started = worker.recall()
        if (
            not worker.done and not worker.pending
        ):  # it never got as far as a job, and neither might the next
            if reason:
                logger.error(
                    "A worker process ended before it ran a job (%s). Starting another.", reason
                )
            self.fill_at = monotonic() + START_RETRY
        self.events.append(
            WorkerExit(
                reason, list(worker.pending.values()), not_started, worker.busy_since, worker.pid
            )
        )
        self.workers.remove(worker)
        self._forget(worker)

    def _forget(self, worker: ProcessWorker) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(worker.channel.connection)
        worker.close()


def _how(status: int) -> str:
    if status == NOT_STARTED:
        return "could not be started"
    if status == WAS_CUT_OFF:
        return "its job closed the connection to the runner"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return (
        f"killed by {name}; often out of memory" if -code == signal.SIGKILL else f"killed by {name}"
    )
