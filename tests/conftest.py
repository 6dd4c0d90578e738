import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client

from tests import processes, waiting

# How long an example takes depends on the machine; pytest-timeout limits the test.
hypothesis.settings.register_profile("peasy_jobs", deadline=None)
hypothesis.settings.load_profile("peasy_jobs")


def pytest_report_header() -> str:
    driver = connection.Database.__name__
    if settings.TEST_DATABASE == "mariadb":
        driver = os.environ.get("PEASY_TEST_MARIADB_DRIVER", "pymysql")
    database = f"{settings.TEST_DATABASE} (driver {driver})"
    return f"database: {database}, USE_TZ={settings.USE_TZ}, TIME_ZONE={settings.TIME_ZONE}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that start processes, and start the slow tests first, in different workers.

    xdist gives each worker an equal part of the list in this order, and lets a worker that is done
    take over tests from the end of another's part.
    """
    for item in items:
        if "run_peasy" in getattr(item, "fixturenames", ()):
            item.add_marker("processes")
    workers = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    part = len(others) // workers + 1
    items[:] = [
        item
        for number in range(workers)
        for item in (*slow[number::workers], *others[number * part : (number + 1) * part])
    ]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    # For every process started from here on, a fork server included.
    os.environ["PEASY_TEST_DB_NAME"] = str(connection.settings_dict["NAME"])
    yield
    del os.environ["PEASY_TEST_DB_NAME"]


@pytest.fixture
def run_peasy(transactional_db: None, tmp_path: Path) -> Iterator[Callable[..., processes.Command]]:
    """Start `run_peasy *args` and wait until it is ready, unless `ready=False`."""

    def start(
        *args: str,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        flags: tuple[str, ...] = (),
        ready: bool = True,
        stdout: int | None = None,
        program: tuple[str, ...] = ("-m", "django"),
    ) -> processes.Command:
        command = processes.Command(
            ("run_peasy", *args),
            tmp_path,
            cwd or tmp_path,
            settings or {},
            env or {},
            flags,
            stdout,
            program,
        )
        commands.callback(command.clean_up)
        return command.ready() if ready else command

    with ExitStack() as commands:
        yield start


def user(*names: str, staff: bool = True) -> User:
    person = User.objects.create(username=f"user-{User.objects.count()}", is_staff=staff)
    wanted = [f"{name}_peasyjobqueue" for name in names]
    person.user_permissions.set(Permission.objects.filter(codename__in=wanted))
    return person


@pytest.fixture
def staff(client: Client) -> Client:
    """Return a client whose user may view, change and delete jobs."""
    client.force_login(user("view", "change", "delete"))
    return client


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves processes behind.

    This fixture is set up first, so it checks last, after `run_peasy` has cleaned up.
    """
    before = processes.children()
    yield
    try:
        waiting.wait_until(lambda: processes.children() <= before, 5)
    except AssertionError:
        left = list(processes.children() - before)
        text = f"This test left processes behind: {left}"
        processes.kill(left)
        psutil.wait_procs(left, timeout=5)
        pytest.fail(text)
