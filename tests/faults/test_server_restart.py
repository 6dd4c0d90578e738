"""A real database server restarts while jobs run. These tests start a server of their own."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, InterfaceError, connection

from peasy_jobs.models import PeasyJobQueue
from tests.concurrent_processes import default_database
from tests.faults.load import Load
from tests.faults.test_database_trouble import LATE
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="no server that could restart"
)

PROGRAMS = {"postgres": ["initdb", "postgres"], "mariadb": ["mariadb-install-db", "mariadbd"]}
USERS = {"postgres": "postgres", "mariadb": "mysql"}  # neither server runs as root
ENDS = {
    "postgres": {"crash": signal.SIGQUIT, "shutdown": signal.SIGINT},
    "mariadb": {"crash": signal.SIGKILL, "shutdown": signal.SIGTERM},
}


def installed(program: str) -> str | None:
    beside = [*sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True), "/usr/sbin"]
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *beside]))


def free_port() -> int:
    """Return a free port below those of clients, so that none is taken while the server is down."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Server:
    """A server of the kind that the suite runs on, with a data directory and a log of its own."""

    def __init__(self, directory: Path) -> None:
        self.kind, self.directory, self.port = settings.TEST_DATABASE, directory, free_port()
        self.data, self.log = str(directory / "data"), directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        user, name = {"postgres": ("postgres", "postgres"), "mariadb": ("root", "site")}[self.kind]
        where = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "USER": user,
            "PASSWORD": "",
            "NAME": name,
        }
        self.database = {
            **{key: connection.settings_dict[key] for key in ("ENGINE", "OPTIONS")},
            **where,
        }

    def make(self) -> None:
        if os.getuid() == 0:
            shutil.chown(self.directory, USERS[self.kind], USERS[self.kind])
        options = {
            "postgres": [
                "-D",
                self.data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            "mariadb": [
                *self.mariadb_options(),
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
        }[self.kind]
        assert self.spawn(PROGRAMS[self.kind][0], options).wait(LATE) == 0, self.log.read_text()
        if self.kind == "mariadb":
            (self.directory / "init.sql").write_text(
                "CREATE DATABASE IF NOT EXISTS site CHARACTER SET utf8mb4;\n"
            )

    def mariadb_options(self) -> list[str]:
        small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--debug-no-sync"]
        # A temporary folder of its own: where it starts, it deletes what other servers have there.
        return ["--no-defaults", f"--datadir={self.data}", f"--tmpdir={self.directory}", *small]

    def start(self) -> None:
        listen = {
            "postgres": ["-D", self.data, "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-F"],
            "mariadb": [
                *self.mariadb_options(),
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--socket={self.directory}/socket",
                f"--pid-file={self.directory}/pid",
                f"--init-file={self.directory}/init.sql",
                "--skip-name-resolve",
            ],
        }[self.kind]
        self.process = self.spawn(PROGRAMS[self.kind][1], listen)
        wait_until(self.answers, LATE, lambda: self.log.read_text())

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except (DatabaseError, InterfaceError):
            return False
        return True

    def end(self, how: str) -> None:
        connection.close()
        if self.process is not None:
            self.process.send_signal(ENDS[self.kind][how])
            try:
                self.process.wait(LATE)
            finally:
                self.process.kill()
            self.process = None

    def spawn(self, program: str, options: list[str]) -> subprocess.Popen[bytes]:
        path, user = installed(program), USERS[self.kind] if os.getuid() == 0 else None
        assert path is not None
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [path, *options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )


@pytest.fixture(scope="module")
def migrated(django_db_setup: None, django_db_blocker: Any) -> Iterator[Server]:
    """A migrated server that is stopped. Shared by all tests, because making one takes seconds."""
    if missing := [
        program for program in PROGRAMS[settings.TEST_DATABASE] if not installed(program)
    ]:
        reason = f"{' and '.join(missing)} of {settings.TEST_DATABASE} cannot be found here"
        required = os.environ.get("PEASY_TEST_REQUIRE", "").replace(" ", "").split(",")
        (pytest.fail if settings.TEST_DATABASE in required else pytest.skip)(reason)
    # Not below tmp_path: the server runs as a user who cannot enter it.
    with tempfile.TemporaryDirectory(prefix="peasy-") as directory, django_db_blocker.unblock():
        server = Server(Path(directory))
        server.make()
        with default_database(server.database):
            try:
                server.start()
                call_command("migrate", verbosity=0)
            finally:
                server.end("shutdown")
        yield server


@pytest.fixture
def server(migrated: Server, transactional_db: None) -> Iterator[Server]:
    """A running server, which is the default database of the test."""
    with default_database(migrated.database):
        try:
            migrated.start()
            PeasyJobQueue.objects.all().delete()
            yield migrated
        finally:
            migrated.end("shutdown")


@pytest.mark.parametrize("how", ["crash", "shutdown"])
def test_a_restart_of_the_server_under_load_loses_no_job_and_runs_none_twice(
    server: Server, run_peasy: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    load = Load(run_peasy, tmp_path, server.database)
    server.end(how)
    load.meets_trouble("Cannot use the database (")
    server.start()
    load.has_survived()
