"""Apps that make a runner's life harder: installed in the process of a test's `run_peasy` only."""

import os
import time
from datetime import timedelta

from django.apps import AppConfig


class Deaf(AppConfig):
    """No hint of new work ever comes."""

    name = "tests.deaf"

    def ready(self) -> None:
        from peasy_jobs import wakeup

        class Nothing(wakeup.Look):
            description, interval = "by nothing", None

            def hinted(self) -> bool:
                return False

        wakeup.watch = lambda connection: Nothing()


class TwoHoursAhead(AppConfig):
    """The clock of this host is wrong."""

    name = "tests.deaf"

    def ready(self) -> None:
        from django.utils import timezone

        now, today = time.time, timezone.now
        time.time = lambda: now() + 7200
        timezone.now = lambda: today() + timedelta(hours=2)


class NoForks(AppConfig):
    """The system has no process left to give, until the file that `FREE` names exists."""

    name = "tests.deaf"

    def ready(self) -> None:
        fork = os.fork

        def fails() -> int:
            if not os.path.exists(os.environ["FREE"]):
                raise BlockingIOError("Resource temporarily unavailable")
            return fork()

        os.fork = fails


class BrokenWorkers(AppConfig):
    """No worker process gets as far as a job, until the file that `FREE` names exists."""

    name = "tests.deaf"

    def ready(self) -> None:
        from peasy_jobs import server

        run_jobs = server._run_jobs

        def fails(*args: object) -> None:
            if not os.path.exists(os.environ["FREE"]):
                raise RuntimeError("broken")
            run_jobs(*args)

        server._run_jobs = fails
