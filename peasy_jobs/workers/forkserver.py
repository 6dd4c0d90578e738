"""The fork server: a process that loads the project once and forks worker processes.

Forking a process that holds no connection and runs no thread takes milliseconds, and the workers
share its memory.

Why not the forkserver of `multiprocessing`: it imports the main module again in every worker,
silently skips its preloading when it is started from another directory, needs a resource tracker
process, and leaves killing to the runner, which cannot know whether a pid has been reused. This
server reaps its workers itself, so that it can.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import warnings
from importlib import import_module
from time import sleep

from peasy_jobs.workers.protocol import (
    SERVER_REQUEST_SIZE,
    NoticeKind,
    RequestKind,
    ServerNotice,
    ServerRequest,
)
from peasy_jobs.workers.startup import (
    SIGNALS,
    die_with_parent,
    flush_output,
    ignore_signal,
    import_jobs,
    show_log,
)

logger = logging.getLogger("peasy_jobs")

EXIT_CHECKS = 20  # together 0.1 s
EXIT_CHECK_EVERY = 0.005  # seconds


def main(control_fd: int, runner_pid: int, argv: list[str], log_level: int) -> None:
    """Serve one runner until it is gone. Never returns.

    control_fd: the control socket.
    argv: `sys.argv` of the runner.
    log_level: the level at which the runner shows its log on the terminal, 0 if it does not.
    """
    die_with_parent(runner_pid)
    for signum in SIGNALS:
        signal.signal(signum, ignore_signal)
    # The runner has blocked them in this process until these handlers were there.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.argv[:] = argv
    _load_project(log_level)
    with contextlib.suppress(ConnectionError), socket.socket(fileno=control_fd) as control:
        ForkServer(control, runner_pid).serve()
    os._exit(0)


def _load_project(log_level: int) -> None:
    import django
    from django.db import connections

    django.setup()
    # By default, LOGGING disables the loggers that exist before it is read.
    logger.disabled = False
    if log_level:
        show_log(log_level)
    import_jobs()
    # Needs Django. Loaded here, because a worker that loads it takes longer to start, and after an
    # upgrade of the package would run other code than its runner.
    import_module("peasy_jobs.workers.workerprocess")
    connections.close_all()
    for connection in connections.all(initialized_only=True):
        # PostgreSQL's pool would be shared by the workers, with the sockets in it.
        if hasattr(connection, "close_pool"):
            connection.close_pool()
    flush_output()  # or every worker would print again what is still in the buffer


class ForkServer:
    """Forks, kills and reaps worker processes for its runner, and tells it what happens to them."""

    def __init__(self, control: socket.socket, runner_pid: int) -> None:
        self.control = control
        self.runner_pid = runner_pid
        # The number of each worker by its pid. They are not reaped yet, so the kernel cannot have
        # reused the pid.
        self.workers: dict[int, int] = {}
        self.disconnected: set[int] = set()  # pids of workers that went on without their job socket

    def serve(self) -> None:
        """Handle requests and reap workers until the runner is gone; then kill all workers."""
        child_exited = _wake_up_on_child_exit()
        sources: list[socket.socket | int] = [self.control, child_exited]
        # Until here the kernel killed this process when the runner died. From now on it only wakes
        # it up, so that there is time to kill the programs that jobs have started.
        die_with_parent(self.runner_pid, by=signal.SIGCHLD)
        try:
            while os.getppid() == self.runner_pid:
                readable, _, _ = select.select(sources, [], [])
                if child_exited in readable:
                    _drain(child_exited)
                    self._reap_workers()
                if self.control in readable and not self._handle_request():
                    return
        finally:
            for pid in self.workers:
                _kill(pid)

    def _handle_request(self) -> bool:
        """Receive a request and do what it says. Return False if the runner is gone."""
        received = self._receive_request()
        if received is None:
            return False
        request, fds = received
        if request.kind is RequestKind.START:
            self._start_worker(request.worker, fds)
            return True
        for pid in [pid for pid, number in self.workers.items() if number == request.worker]:
            self._signal(pid, request.kind)
        return True

    def _receive_request(self) -> tuple[ServerRequest, list[int]] | None:
        """Return the next request and the descriptors sent along, or None if the runner is gone."""
        data, fds, _, _ = socket.recv_fds(self.control, SERVER_REQUEST_SIZE, 3)
        for fd in fds:
            os.set_inheritable(fd, False)  # programs that a job starts must not keep them open
        while len(data) < SERVER_REQUEST_SIZE:
            more = self.control.recv(SERVER_REQUEST_SIZE - len(data))
            if not more:
                return None
            data += more
        return ServerRequest.unpack(data), fds

    def _signal(self, pid: int, kind: RequestKind) -> None:
        """Interrupt or kill a worker."""
        if kind is RequestKind.STOP_JOB:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            return
        if kind is RequestKind.DISCONNECTED and not _exits_by_itself(pid):
            self.disconnected.add(pid)
        _kill(pid)

    def _start_worker(self, number: int, fds: list[int]) -> None:
        server_pid = os.getpid()
        try:
            with warnings.catch_warnings():
                # Python warns about a fork beside threads, which the project may have started.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as error:
            logger.error("Could not start a worker process: %s.", error)
            self._notify(ServerNotice(NoticeKind.NOT_STARTED, number))
        else:
            if pid == 0:
                self._become_worker(server_pid, fds)
            # The worker does this as well, so that it is done before either of them relies on it.
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            self.workers[pid] = number
            self._notify(ServerNotice(NoticeKind.STARTED, number, pid))
        for fd in fds:
            os.close(fd)

    def _become_worker(self, server_pid: int, fds: list[int]) -> None:
        """Run jobs in this forked process. Never returns: it must not go on as a second server."""
        try:
            self.control.close()
            # Not at the top: it needs Django. `_load_project` has imported it.
            from peasy_jobs.workers import workerprocess

            workerprocess.main(server_pid, *fds)
        except BaseException:
            logger.exception("A worker process failed.")
        finally:
            os._exit(1)

    def _reap_workers(self) -> None:
        while self.workers:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self.workers.pop(pid, None)
            if number is None:
                continue
            _kill_group(pid)  # whatever its job has started
            kind = NoticeKind.DISCONNECTED if pid in self.disconnected else NoticeKind.EXITED
            self.disconnected.discard(pid)
            self._notify(ServerNotice(kind, number, pid, wait_status))

    def _notify(self, notice: ServerNotice) -> None:
        self.control.sendall(notice.pack())


def _wake_up_on_child_exit() -> int:
    """Return a descriptor that becomes readable when a worker exits.

    SIGCHLD writes a byte into a pipe. A handler is needed for that, even one that does nothing.
    Neither end of the pipe blocks: a full pipe is readable.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, ignore_signal)
    return read_fd


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 1 << 16)


def _exits_by_itself(pid: int) -> bool:
    """Return whether a process that has closed its socket exits within 0.1 s. Does not reap it."""
    for _ in range(EXIT_CHECKS):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        sleep(EXIT_CHECK_EVERY)
    return False


def _kill(pid: int) -> None:
    """Kill a worker that was not reaped, and the programs that its job has started."""
    _kill_group(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # its job may have left the process group


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
