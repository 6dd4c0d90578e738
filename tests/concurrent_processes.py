"""Somebody else at the same database: second connections of this process, and processes that compete."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from peasy_jobs.models import PeasyJobQueue
from tests.processes import REPOSITORY

TABLE = PeasyJobQueue._meta.db_table


@contextmanager
def second_connection() -> Iterator[BaseDatabaseWrapper]:
    """Another connection to the database of the running test."""
    other = connection.copy("rival")
    try:
        yield other
    finally:
        other.close()


@contextmanager
def default_database(settings: dict[str, Any]) -> Iterator[None]:
    """The default database of this process is another one meanwhile."""
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
    """These jobs, or the whole file on SQLite, are locked by a transaction of another connection."""
    with second_connection() as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            for pk in pks:
                cursor.execute(f"UPDATE {TABLE} SET title = title WHERE id = %s", [pk])
        yield other
        other.rollback()


class ConcurrentProcess:
    """A process that plays one part of `tests/concurrent_tasks.py`, once all that compete are ready."""

    def __init__(self, part: str, **options: Any) -> None:
        self.part = part
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.concurrent_tasks",
                part,
                json.dumps(options),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hears(self) -> str:
        """What it says next; it waits for a word then, unless these are its results."""
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return line.rstrip()
        _, errors = self.process.communicate(timeout=90)
        raise AssertionError(f"{self.part} ended with {self.process.returncode}:\n{errors}")


def run_concurrently(*rivals: ConcurrentProcess) -> list[Any]:
    """Let all of them start at the same moment. Returns what each of them says it has done.

    They meet again at least after the first step of each. Fails when no two of them worked at the same time after
    that: whatever they have done then shows nothing.
    """
    try:
        while "begun" in (said := [rival.hears() for rival in rivals]) or "ready" in said:
            assert len(set(said)) == 1, f"They do not meet: {said}"
            for rival in rivals:
                rival.tell("go")
        results = [json.loads(line) for line in said]
        spans = [span for _, span in results if span]
        overlap = [max(one[0], two[0]) < min(one[1], two[1]) for one, two in combinations(spans, 2)]
        assert any(overlap), f"No two of them worked at the same time: {spans}"
        return [did for did, _ in results]
    finally:
        for rival in rivals:
            rival.process.kill()
            rival.process.communicate()
