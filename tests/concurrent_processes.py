"""Concurrent access to the test database: further connections, locks, and other processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from peasy_jobs.models import PeasyJobQueue
from tests.processes import REPOSITORY

TABLE = PeasyJobQueue._meta.db_table


@contextmanager
def second_connection() -> Iterator[BaseDatabaseWrapper]:
    """Open another connection to the database of the running test."""
    other = connection.copy("second")
    try:
        yield other
    finally:
        other.close()


@contextmanager
def default_database(settings: dict[str, Any]) -> Iterator[None]:
    """Replace the default database of this process by one with these settings."""
    own = connections["default"]
    other = own.copy()
    other.settings_dict = {**own.settings_dict, **settings}
    connections["default"] = other
    try:
        yield
    finally:
        other.close()
        connections["default"] = own


@contextmanager
def locked(*pks: int) -> Iterator[BaseDatabaseWrapper]:
    """Lock these jobs, on SQLite the whole file, in a transaction of another connection."""
    with second_connection() as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            for pk in pks:
                cursor.execute(f"UPDATE {TABLE} SET title = title WHERE id = %s", [pk])
        yield other
        other.rollback()


class ConcurrentProcess:
    """A process that runs one task of `tests/concurrent_tasks.py`, in step with others."""

    def __init__(self, task: str, **options: Any) -> None:
        self.task = task
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.concurrent_tasks",
                task,
                json.dumps(options),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def let_continue(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        """Return the next line: the name of a step before which it waits, or its results."""
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return line.rstrip()
        _, errors = self.process.communicate(timeout=90)
        raise AssertionError(f"{self.task} ended with {self.process.returncode}:\n{errors}")


class Result(NamedTuple):
    """What a process has done, and from when to when (monotonic seconds) it worked."""

    done: Any
    span: tuple[float, float] | None


def run_concurrently(*processes: ConcurrentProcess) -> list[Any]:
    """Start all processes at the same moment. Return the result of each.

    They wait for each other again at least after their first step. Fail if no two of them worked
    at the same time after that, because then the test shows nothing.
    """
    try:
        lines = [process.read_line() for process in processes]
        while "begun" in lines or "ready" in lines:
            assert len(set(lines)) == 1, f"The processes are not in step: {lines}"
            for process in processes:
                process.let_continue()
            lines = [process.read_line() for process in processes]
        results = [Result(*json.loads(line)) for line in lines]
        spans = [result.span for result in results if result.span]
        overlaps = [
            max(one[0], two[0]) < min(one[1], two[1]) for one, two in combinations(spans, 2)
        ]
        assert any(overlaps), f"No two processes worked at the same time: {spans}"
        return [result.done for result in results]
    finally:
        for process in processes:
            process.process.kill()
            process.process.communicate()
