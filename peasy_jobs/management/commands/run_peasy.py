"""`manage.py run_peasy`: read the options and run a `Runner`, or answer `--check`."""

import logging
import os
import sys
from argparse import ArgumentTypeError
from contextlib import suppress
from dataclasses import replace
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, router

from peasy_jobs import conf
from peasy_jobs.checks import is_in_memory
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import autoreload, healthcheck
from peasy_jobs.runner.loop import Runner
from peasy_jobs.workers.startup import import_jobs, show_log

# The log level of each --verbosity.
LOG_LEVELS = (logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)


class Command(BaseCommand):
    help = "Run jobs until Ctrl-C (SIGINT) or SIGTERM stops it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--concurrency",
            type=_concurrency,
            help="Number of workers (default: PEASY_CONCURRENCY).",
        )
        parser.add_argument(
            "--worker-type",
            choices=("process", "thread"),
            help="Run each worker as a process or a thread (default: PEASY_WORKER_TYPE).",
        )
        parser.add_argument(
            "--queue",
            action="append",
            default=[],
            help="Run only jobs of this queue; may be given several times.",
        )
        parser.add_argument(
            "--exit-on-empty", action="store_true", help="Exit when no job may run now."
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="Run nothing. Exit with 1 unless jobs are being run, and say why: for probes.",
        )
        parser.add_argument(
            "--noreload",
            action="store_false",
            dest="use_reloader",
            help="Do not restart when the code changes, which is done with DEBUG only.",
        )

    def get_check_kwargs(self, options: Any) -> dict[Any, Any]:
        # From Django 6.1 on the checks connect to every database, but a runner waits for one that
        # cannot be used.
        return super().get_check_kwargs(options) | {"databases": []}

    def handle(self, **options: Any) -> None:
        alias = router.db_for_write(PeasyJobQueue)
        if is_in_memory(alias):
            raise CommandError(
                f"The jobs are in an in-memory database ({alias!r}), which run_peasy cannot see "
                "from its own process. Give DATABASES a file or a server."
            )
        if options["check"]:
            self._check(alias, options["queue"])
            return
        show_log(LOG_LEVELS[options["verbosity"]])
        if autoreload.is_trial():
            if not import_jobs():
                raise CommandError("Not all jobs can be imported.")
            return
        self._run(options)

    def _run(self, options: dict[str, Any]) -> None:
        names = ("concurrency", "worker_type")
        given = {name: options[name] for name in names if options[name] is not None}
        runner = Runner(
            replace(conf.get(), **given),
            self._say,
            queues=options["queue"],
            exit_on_empty=options["exit_on_empty"],
        )
        reloader = None
        if conf.is_debug() and options["use_reloader"] and not options["exit_on_empty"]:
            reloader = autoreload.Reloader(runner.shutdown.signals, self._say)
        is_clean = runner.run()
        if reloader:
            reloader.restart()
        if not is_clean:
            # Threads still run jobs that were given back. Only the end of the process ends them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _check(self, alias: str, queues: list[str]) -> None:
        try:
            health = healthcheck.check(alias, queues)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database cannot be used: {str(error).strip()}") from None
        for fact in health.facts:
            self._say(fact)
        if health.problems:
            raise CommandError("\n".join(health.problems))

    def _say(self, line: str) -> None:
        # Ignore a closed pipe, and a stdout that a job in a thread has closed.
        with suppress(OSError, ValueError):
            self.stdout.write(line)
            self.stdout.flush()


def _concurrency(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ArgumentTypeError(
            f"{value!r} is not a number of workers: give a whole number, 1 or more."
        )
    return int(value)
