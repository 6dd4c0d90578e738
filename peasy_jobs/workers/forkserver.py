"""The worker server: a process that has loaded the project once and forks a worker process whenever one is wanted.

A fork of a process that holds no connection and no thread takes milliseconds and shares its memory. Not the standard
library's forkserver: that one re-imports the main module in every worker, skips its preload silently from another
directory, needs a resource tracker process beside it and leaves the killing of a process to somebody who cannot know
whether its pid has been given away.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import ctypes
import logging
import marshal
import os
import select
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import Context
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from peasy_jobs.workers.channel import CHUNK, LENGTH, take_messages
from peasy_jobs.workers.protocol import StopReason, StopRequest
from peasy_jobs.workers.startup import import_jobs, show_log

if TYPE_CHECKING:
    from peasy_jobs.workers.execution import Outcome, Report

logger = logging.getLogger("peasy_jobs")

# From the runner: what to do, for which worker. A start comes with the worker's socket, ticket pipe and ask pipe.
REQUEST = struct.Struct("!cq")
START, ASK, KILL, CUT_OFF = b"S", b"A", b"K", b"C"
# To the runner: worker, pid, and one of these or, once it is gone, its wait status.
NEWS = struct.Struct("!qqq")
STARTED, NOT_STARTED, WAS_CUT_OFF = -2, -1, -3
TICKET = struct.Struct(
    "!qq"
)  # job and claim: a job that was recalled may come back under a new claim
# From the runner to a worker, in a pipe that a signal says to read: which job is to stop, why, and why in words.
ASKED = struct.Struct("!qq16p128p")
EXIT_TRIES, EXIT_PAUSE = 20, 0.005  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(control_fd: int, runner_pid: int, argv: list[str], level: int) -> None:
    """Serve one runner until it is gone."""
    _die_with_parent(runner_pid)
    for signum in SIGNALS:
        # systemd signals the whole group: the runner decides. Not SIG_IGN, which the programs that a job starts
        # would inherit.
        signal.signal(signum, _leave_it_to_the_runner)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.argv[:] = argv
    _load_project(level)
    with contextlib.suppress(ConnectionError), socket.socket(fileno=control_fd) as control:
        _listen(control, runner_pid)
    os._exit(0)


def _listen(control: socket.socket, runner_pid: int) -> None:
    """Do what the runner says, and tell it of workers that have ended, until it is gone. They go with it."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    os.set_blocking(wake_r, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Not SIGKILL any more, which would leave no time to end what the jobs have started.
    _die_with_parent(runner_pid, by=signal.SIGCHLD)
    workers: dict[int, int] = {}  # pid: worker
    cut_off: set[int] = set()  # pids of workers that lived on without their socket
    watched: list[Any] = [control, wake_r]
    try:
        while os.getppid() == runner_pid:
            ready, _, _ = select.select(watched, [], [])
            if wake_r in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_r, CHUNK)
                _report_dead(control, workers, cut_off)
            if control in ready:
                data, fds, _, _ = socket.recv_fds(control, REQUEST.size, 3)
                for fd in fds:
                    os.set_inheritable(fd, False)  # what a job starts must not keep them open
                while len(data) < REQUEST.size:
                    if not (more := control.recv(REQUEST.size - len(data))):
                        return
                    data += more
                what, worker = REQUEST.unpack(data)
                if what == START:
                    _start(control, workers, worker, fds)
                    continue
                for pid in [pid for pid, number in workers.items() if number == worker]:
                    if what == CUT_OFF and not _ends_by_itself(pid):
                        cut_off.add(pid)
                    _end_or_ask(pid, what)
    finally:
        for pid in workers:
            _end_or_ask(pid, KILL)


def _load_project(level: int) -> None:
    import django
    from django.db import connections

    django.setup()
    logger.disabled = (
        False  # LOGGING, by default, disables the loggers that exist before it is read
    )
    if level:
        show_log(level)
    import_jobs()
    connections.close_all()
    for connection in connections.all(initialized_only=True):
        if hasattr(
            connection, "close_pool"
        ):  # PostgreSQL's: workers would share the sockets that wait in it
            connection.close_pool()
    _flush()  # or every worker would print again what is still there


def _flush() -> bool:
    """Print now what was printed so far. False: a stream is closed, or otherwise of no use."""
    useful = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a job may have left anything there
            useful = False
    return useful


def _ends_by_itself(pid: int) -> bool:
    """Whether a process that has closed its socket is just ending: it is gone a moment later."""
    for _ in range(EXIT_TRIES):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        sleep(EXIT_PAUSE)
    return False


def _end_or_ask(pid: int, what: bytes) -> None:
    """Do this to a worker that was not reaped yet, so that the pid is still its own."""
    if what != ASK:
        _kill_group(
            pid
        )  # what its job has started; and maybe not the worker, which may have left its group
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM if what == ASK else signal.SIGKILL)


def _start(control: socket.socket, workers: dict[int, int], worker: int, fds: list[int]) -> None:
    server = os.getpid()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # a project may have started threads of its own
            pid = os.fork()
    except OSError as error:
        logger.error("Could not start a worker process: %s.", error)
        control.sendall(NEWS.pack(worker, 0, NOT_STARTED))
    else:
        if pid == 0:
            try:
                control.close()
                _work(server, *fds)
            except BaseException:
                logger.exception("A worker process failed.")
            finally:
                os._exit(1)  # whatever happens, this process must not go on as a second server
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # in both, so that it is done when either needs it
        workers[pid] = worker
        control.sendall(NEWS.pack(worker, pid, STARTED))
    for fd in fds:
        os.close(fd)


def _report_dead(control: socket.socket, workers: dict[int, int], cut_off: set[int]) -> None:
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        worker = workers.pop(pid, None)
        if worker is not None:
            _kill_group(pid)  # what the job had started goes with it
            status = WAS_CUT_OFF if pid in cut_off else status
            control.sendall(NEWS.pack(worker, pid, status))
            cut_off.discard(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _work(server: int, socket_fd: int, ticket_fd: int, ask_fd: int) -> None:
    """The life of a worker process: take a ticket, run its job, hand over the outcome. Never returns."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # so that ending a job ends what it started
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_release_signals,
        after_in_child=_be_an_ordinary_process,
    )
    _die_with_parent(server)
    if sys.platform != "linux":
        threading.Thread(target=_watch_parent, args=[server], daemon=True).start()
    try:
        with socket.socket(fileno=socket_fd) as connection:
            _run_jobs(connection, ticket_fd, ask_fd)
    except OSError:
        # The runner is gone, and ends us; or our job has closed what we talk over, which the server is about to hear.
        sleep(10 * EXIT_TRIES * EXIT_PAUSE)
    os._exit(0)


def _asked_reader(ask_fd: int) -> Callable[[int, object], None]:
    from peasy_jobs.workers import execution

    def read_asked(signum: int, frame: object) -> None:
        # Systemd and others send SIGTERM to every process: without a word from the runner it means nothing.
        with contextlib.suppress(BlockingIOError):
            for pk, fencing_token, why, reason in ASKED.iter_unpack(
                os.read(ask_fd, ASKED.size * 16)
            ):
                request = StopRequest(StopReason(why.decode()), reason.decode())
                execution.request_stop(pk, fencing_token, request, interrupt=True)

    return read_asked


def _take_signals_back(read_asked: Callable[[int, object], None]) -> None:
    """What the last job did with signals must not hit the next: its handlers, its mask, its alarm."""
    # What is asked for each job by `_signal`: `signal` looks every answer up in an enum, ours in vain.
    signal.alarm(0)
    for signum, handler in zip(SIGNALS, (_leave_it_to_the_runner, read_asked), strict=True):
        if _signal.getsignal(signum) is not handler:
            signal.signal(signum, handler)
    _signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _run_jobs(connection: socket.socket, ticket_fd: int, ask_fd: int) -> None:
    from peasy_jobs.store.values import Run
    from peasy_jobs.workers import execution

    send, read_asked = _Sender(connection), _asked_reader(ask_fd)
    inbox = bytearray()
    jobs: dict[tuple[int, int], Run] = {}
    first: tuple[int, int] | None = None  # the job that the runner waits to hear the beginning of
    pid, prints = os.getpid(), _flush()
    clean = execution.reset_context(Context())  # an app may have chosen a language while it loaded
    _take_signals_back(read_asked)
    while (ticket := _next_ticket(ticket_fd)) is not None:
        while ticket not in jobs:
            chunk = connection.recv(CHUNK)
            if not chunk:
                os._exit(0)
            inbox += chunk
            for recalled, handed_out, idle in take_messages(inbox):
                for stale in recalled:
                    jobs.pop(stale, None)
                jobs.update({job[:2]: Run(*job) for job in handed_out})
                first = handed_out[0][:2] if idle else first
        if ticket == first:
            send(Begun(monotonic()))
        _take_signals_back(read_asked)
        running = execution.Execution(jobs.pop(ticket), send)
        outcome = execution.run_job(running)
        forked = os.getpid() != pid
        if not forked:
            send(outcome)
        still_prints = _flush()  # what a job prints is wanted now, not when the worker ends
        if forked:
            os._exit(
                1 if outcome.error else 0
            )  # it came back from the job, but the job is its parent
        # It may have been in the middle of anything, or the next job could not print: another worker takes its place.
        if running.stop_raised or (prints and not still_prints):
            os._exit(0)
        clean = execution.reset_context(clean)


class _Sender:
    """Sends whole messages, from whichever thread of the job."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.lock = connection, threading.Lock()

    def __call__(self, message: Outcome | Report | Begun) -> None:
        data = marshal.dumps((type(message).__name__, *message))
        with self.lock:
            self.connection.sendall(LENGTH.pack(len(data)) + data)


class Begun(NamedTuple):
    """A worker that the runner knew to be idle has begun the job that it was given."""

    at: float  # time.monotonic()


def _next_ticket(ticket_fd: int) -> tuple[int, int] | None:
    """The job to run next; None when the runner is gone.

    Tickets lie in a pipe that the runner reads too when it wants jobs back: the kernel gives each to one of us.
    """
    while True:
        try:
            ticket = os.read(ticket_fd, TICKET.size)
        except BlockingIOError:
            select.select([ticket_fd], [], [])
        else:
            return TICKET.unpack(ticket) if ticket else None


def _leave_it_to_the_runner(signum: int, frame: object) -> None:
    pass


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _be_an_ordinary_process() -> None:
    """What a job forks must end on SIGTERM like any process, from its first moment."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    _release_signals()


def _die_with_parent(parent: int, by: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent dies. Returns normally only while `parent` lives."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _watch_parent(server: int) -> None:
    while os.getppid() == server:
        sleep(0.5)
    os.killpg(0, signal.SIGKILL)
