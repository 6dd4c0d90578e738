"""Apps that inject a fault into the `run_peasy` process of a test.

Some end their fault once the file named by the environment variable `FAULT_ENDS_FILE` exists.
"""

import os
import signal
import socket
import sys
import time
from datetime import timedelta
from typing import Any, NoReturn

from django.apps import AppConfig


class NoWakeups(AppConfig):
    """No wake-up ever signals new work."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.store import wakeup

        class Nothing(wakeup.PollWakeup):
            description = "by nothing"
            polls = False

            def __init__(self, connection: Any, peek: Any, polling_interval: float) -> None:
                super().__init__(peek, polling_interval)

            def has_signal(self) -> bool:
                self.check_at = float("inf")
                return False

        wakeup.watch = Nothing  # type: ignore[assignment]


class ClockTwoHoursAhead(AppConfig):
    """The clock of this host is two hours fast."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from django.utils import timezone

        now, today = time.time, timezone.now
        time.time = lambda: now() + 7200
        timezone.now = lambda: today() + timedelta(hours=2)


class NoPatience(AppConfig):
    """A runner that stops abandons its jobs as soon as it has stopped them."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.runner import shutdown

        shutdown.ABANDON_AFTER = 0.1


class SignalAtInterpreterExit(AppConfig):
    """Another SIGINT arrives while the interpreter shuts down."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        class Last:
            def __del__(
                self, kill: Any = os.kill, pid: int = os.getpid(), signum: int = signal.SIGINT
            ) -> None:
                kill(pid, signum)

        sys.modules[__name__].last = Last()  # type: ignore[attr-defined]


class ForkFails(AppConfig):
    """The system allows no further process."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        fork = os.fork

        def fails() -> int:
            if not os.path.exists(os.environ["FAULT_ENDS_FILE"]):
                raise BlockingIOError("Resource temporarily unavailable")
            return fork()

        os.fork = fails


class WorkersStartLate(AppConfig):
    """A worker process does not reach its first job."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.workers import workerprocess

        run_jobs = workerprocess.run_jobs

        def late(*args: Any) -> None:
            while not os.path.exists(os.environ["FAULT_ENDS_FILE"]):
                time.sleep(0.01)
            run_jobs(*args)

        workerprocess.run_jobs = late


class WorkersRaiseAtStart(AppConfig):
    """Every worker process raises an exception before its first job."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.workers import workerprocess

        run_jobs = workerprocess.run_jobs

        def fails(*args: object) -> None:
            if not os.path.exists(os.environ["FAULT_ENDS_FILE"]):
                raise RuntimeError("broken")
            run_jobs(*args)

        workerprocess.run_jobs = fails


class WorkersDieAtStart(AppConfig):
    """Every worker process is killed as soon as it exists."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.workers import workerprocess

        run_jobs = workerprocess.run_jobs

        def dies(*args: object) -> None:
            if not os.path.exists(os.environ["FAULT_ENDS_FILE"]):
                os.kill(os.getpid(), signal.SIGKILL)
            run_jobs(*args)

        workerprocess.run_jobs = dies


class TruncatedReport(AppConfig):
    """The fork server stops in the middle of a message."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.workers.forkserver import ForkServer

        start = ForkServer._start_worker

        def fails(server: ForkServer, *args: Any) -> None:
            if not os.path.exists(os.environ["FAULT_ENDS_FILE"]):
                server.control.sendall(b"half")
                server.control.shutdown(socket.SHUT_WR)
                time.sleep(600)
            start(server, *args)

        ForkServer._start_worker = fails


class OtherProcessesHidden(AppConfig):
    """All other processes belong to another user, and /proc is mounted with hidepid."""

    name = "tests.fault_apps"

    def ready(self) -> None:
        from peasy_jobs.runner import lease

        started, kill = lease._started, os.kill

        def hidden(pid: int) -> str:
            if pid != os.getpid():
                raise FileNotFoundError(f"/proc/{pid}/stat")
            return started(pid)

        def forbidden(pid: int, signum: int) -> NoReturn:
            kill(pid, 0)  # raises ProcessLookupError if it does not exist
            raise PermissionError

        lease._started, os.kill = hidden, forbidden
