"""`manage.py run_peasy`: options in, `Runner` out."""

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
from peasy_jobs.runner import autoreload
from peasy_jobs.runner.healthcheck import problems
from peasy_jobs.runner.loop import Runner
from peasy_jobs.workers.startup import import_jobs, show_log


class Command(BaseCommand):
    help = "Runs jobs until it is stopped with Ctrl-C (SIGINT) or SIGTERM."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--concurrency",
            type=_concurrency,
            help="How many workers (default: PEASY_CONCURRENCY).",
        )
        parser.add_argument(
            "--worker-type",
            choices=("process", "thread"),
            help="What a worker is (default: PEASY_WORKER_TYPE).",
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
            help="Run nothing; say whether jobs are being run, for probes (exit code).",
        )
        parser.add_argument(
            "--noreload",
            action="store_false",
            dest="use_reloader",
            help="Do not start anew when code changes, which happens in DEBUG only.",
        )

    def get_check_kwargs(self, options: Any) -> dict[Any, Any]:
        # From Django 6.1 on the checks ask every database, but a runner waits for one that is away.
        return super().get_check_kwargs(options) | {"databases": []}

    def handle(self, **options: Any) -> None:
        given = {
            name: options[name]
            for name in ("concurrency", "worker_type")
            if options[name] is not None
        }
        if is_in_memory(alias := router.db_for_write(PeasyJobQueue)):
            raise CommandError(
                f"The jobs are in an in-memory database ({alias!r}), which run_peasy cannot see from its own process. "
                "Give DATABASES a file or a server."
            )
        if options["check"]:
            self._check(alias, options["queue"])
            return
        show_log((logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)[options["verbosity"]])
        if autoreload.is_trial():
            if not import_jobs():
                raise CommandError("Not all jobs can be imported.")
            return
        runner = Runner(
            replace(conf.get(), **given),
            self._say,
            queues=options["queue"],
            exit_on_empty=options["exit_on_empty"],
        )
        reloads = conf.is_debug() and options["use_reloader"] and not options["exit_on_empty"]
        reloader = autoreload.Reloader(runner.shutdown.signals, self._say) if reloads else None
        ended = runner.run()
        if reloader:
            reloader.restart()
        if not ended:
            # Threads still run jobs that are back in the queue, and only the end of the process ends them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _check(self, alias: str, queues: list[str]) -> None:
        try:
            wrong, told = problems(alias, queues)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database cannot be used: {str(error).strip()}") from None
        for line in told:
            self._say(line)
        if wrong:
            raise CommandError("\n".join(wrong))

    def _say(self, line: str) -> None:
        with suppress(
            OSError, ValueError
        ):  # nobody reads it any more; a job in a thread has closed it
            self.stdout.write(line)
            self.stdout.flush()


def _concurrency(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ArgumentTypeError(
            f"{value!r} is not a number of workers: give a whole number, 1 or more."
        )
    return int(value)
