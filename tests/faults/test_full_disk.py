"""A disk that is full while jobs run: a real one, small, with an SQLite database on it."""

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.utils import OperationalError

from peasy_jobs.queue import COMPLETED
from tests import jobs
from tests.faults.test_database_trouble import (
    LATE,
    SHORT_LEASE,
    assert_each_ran_once,
    assert_one_episode,
    only_sqlite,
)
from tests.jobs import notes
from tests.rivals import default_database
from tests.rows import finished
from tests.waiting import wait_until

LONG, SHORT = 2, 200


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """16 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if mounted.returncode:
        pytest.skip(f"No file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def database(disk: Path, transactional_db: None) -> Iterator[dict[str, Any]]:
    """The default database of the test, on that disk."""
    database = {"ENGINE": connection.settings_dict["ENGINE"], "NAME": str(disk / "site.sqlite3")}
    database["OPTIONS"] = connection.settings_dict["OPTIONS"]
    with default_database(database):
        call_command("migrate", verbosity=0)
        yield database


def fill(path: Path) -> None:
    """Leave no space for another page of the database."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was in the log once is no room for more
    with transaction.atomic(), path.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # nobody half-way
        while True:
            file.write(b"x" * 4096)


@only_sqlite
def test_a_disk_that_is_full_under_load_loses_no_job_and_runs_none_twice(
    database: dict[str, Any], disk: Path, run_peasy: Callable[..., Any], tmp_path: Path
) -> None:
    record, longs = tmp_path / "record", [tmp_path / f"long {number}" for number in range(LONG)]
    own = {**SHORT_LEASE, "DATABASES": {"default": database}}
    runners = [run_peasy("--concurrency", "3", settings=own, ready=False) for _ in range(2)]
    for command in runners:
        command.ready()
    with transaction.atomic():
        # One ends while the disk is full, and one after.
        todo = [jobs.wait_for.using(priority=9)(str(tmp_path / f"go {n}"), str(longs[n])) for n in range(LONG)]
        todo += [jobs.start_and_end(str(record), number) for number in range(SHORT)]
    wait_until(lambda: all(map(notes, longs)) and len(notes(record)) > SHORT / 4)

    fill(disk / "ballast")
    for command in runners:
        command.wait_for_output("Cannot use the database (database or disk is full)")
    assert len(notes(record)) < 2 * SHORT
    with pytest.raises(OperationalError, match="full"):
        jobs.nothing()
    Path(tmp_path, "go 0").touch()
    wait_until(lambda: len(notes(longs[0])) == 2)
    Path(disk, "ballast").unlink()

    finished(todo[0], *todo[LONG:], timeout=LATE)
    Path(tmp_path, "go 1").touch()
    done = finished(*todo, timeout=LATE)
    assert {(job.status, job.attempts, job.crashes, job.runner_id) for job in done} == {(COMPLETED, 1, 0, None)}
    assert [job.result for job in done] == ["waited"] * LONG + list(range(SHORT))
    assert_each_ran_once(record, range(SHORT))
    assert [len(notes(long)) for long in longs] == [2] * LONG
    for command in runners:
        assert_one_episode(command)
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert "Traceback" not in command.output()
