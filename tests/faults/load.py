"""Two runners that work while their database fails, and the checks of their jobs afterwards."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import transaction

from peasy_jobs.statuses import COMPLETED
from tests import jobs
from tests.faults.test_database_trouble import (
    LATE,
    LEASE,
    SHORT_LEASE,
    assert_each_ran_once,
    assert_one_episode,
)
from tests.jobs import notes
from tests.rows import finished
from tests.waiting import wait_until

LONG, SHORT = 2, 200


class Load:
    """Enqueue short jobs and two long ones, one to end during the failure and one after it."""

    def __init__(
        self, run_peasy: Callable[..., Any], directory: Path, database: dict[str, Any]
    ) -> None:
        self.directory, self.record = directory, directory / "record"
        self.longs = [directory / f"long {number}" for number in range(LONG)]
        # A third of the lease is the time limit of a query: a busy machine must not reach it.
        own = {**SHORT_LEASE, "PEASY_LEASE": 3 * LEASE, "DATABASES": {"default": database}}
        self.runners = [
            run_peasy("--concurrency", "3", settings=own, ready=False) for _ in range(2)
        ]
        for command in self.runners:
            command.ready()
        with transaction.atomic():
            self.todo = [
                jobs.wait_for.using(priority=9)(
                    str(directory / f"go {number}"), str(self.longs[number])
                )
                for number in range(LONG)
            ]
            self.todo += [jobs.start_and_end(str(self.record), number) for number in range(SHORT)]
        wait_until(lambda: all(map(notes, self.longs)) and len(notes(self.record)) > SHORT / 4)

    def meets_trouble(self, said: str) -> None:
        """Both runners have noticed, in the middle of it, and the first of the long jobs ends."""
        for command in self.runners:
            command.wait_for_output(said)
        assert len(notes(self.record)) < 2 * SHORT
        Path(self.directory, "go 0").touch()
        wait_until(lambda: len(notes(self.longs[0])) == 2)

    def has_survived(self) -> None:
        """Check that every job ran once, and that both runners report the failure once and stop."""
        finished(self.todo[0], *self.todo[LONG:], timeout=LATE)
        Path(self.directory, "go 1").touch()
        done = finished(*self.todo, timeout=LATE)
        assert {(job.status, job.attempts, job.crashes, job.runner_id) for job in done} == {
            (COMPLETED, 1, 0, None)
        }
        assert [job.result for job in done] == ["waited"] * LONG + list(range(SHORT))
        assert_each_ran_once(self.record, range(SHORT))
        assert [len(notes(long)) for long in self.longs] == [2] * LONG
        for command in self.runners:
            assert_one_episode(command)
            command.signal(signal.SIGTERM)
            assert command.wait() == 0
            assert "Traceback" not in command.output()
            assert "lease was revoked" not in command.output()
