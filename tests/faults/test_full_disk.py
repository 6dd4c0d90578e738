"""A small real disk with an SQLite database, which becomes full while jobs run."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.utils import OperationalError

from tests import jobs
from tests.concurrent_processes import default_database
from tests.faults.load import Load
from tests.faults.test_database_trouble import only_sqlite


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 16 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"A small disk is made with mount, of Linux: {error}.")
    if mounted.returncode:
        pytest.skip(
            f"Only root can mount a small disk, where that is allowed: {mounted.stderr.strip()}"
        )
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def database(disk: Path, transactional_db: None) -> Iterator[dict[str, Any]]:
    """Create the default database of the test on that disk."""
    database = {"ENGINE": connection.settings_dict["ENGINE"], "NAME": str(disk / "site.sqlite3")}
    database["OPTIONS"] = connection.settings_dict["OPTIONS"]
    with default_database(database):
        call_command("migrate", verbosity=0)
        yield database


def fill(path: Path) -> None:
    """Fill the disk so that no page of the database fits on it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "PRAGMA wal_checkpoint(TRUNCATE)"
        )  # what was in the log once is no room for more
    with (
        transaction.atomic(),
        path.open("wb", buffering=0) as file,
        contextlib.suppress(OSError),
    ):  # nobody half-way
        while True:
            file.write(b"x" * 4096)


@only_sqlite
def test_a_full_disk_under_load_loses_no_job_and_runs_none_twice(
    database: dict[str, Any], disk: Path, run_peasy: Callable[..., Any], tmp_path: Path
) -> None:
    load = Load(run_peasy, tmp_path, database)
    fill(disk / "ballast")
    with pytest.raises(OperationalError, match="full"):
        jobs.nothing()
    load.meets_trouble("Cannot use the database (database or disk is full)")
    Path(disk, "ballast").unlink()
    load.has_survived()
