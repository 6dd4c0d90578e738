"""Run the example site in its own processes, with its own settings and data."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tests import processes
from tests.waiting import DEADLINE, wait_until

EXAMPLE = processes.REPOSITORY / "example_project"
SAMPLE = EXAMPLE / "airports" / "sample" / "airports.csv"
HEADER = "code,name,city,country,latitude,longitude,elevation\n"
SETUP = """
import json
import django
django.setup()
from django.test import Client
from airports.jobs import import_airports
from airports.models import Airport, Upload
from peasy_jobs.models import PeasyJobQueue

def visitor():
    return Client(headers={"host": "localhost"})
"""


def environment(data: Path, pause: float) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "example.settings",
        "EXAMPLE_DATA": str(data),
        "EXAMPLE_PAUSE": str(pause),
        "PYTHONPATH": os.pathsep.join([str(processes.REPOSITORY), str(EXAMPLE)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "error",
    }


class Site:
    """The example site with its own database."""

    def __init__(self, data: Path) -> None:
        self.database = data / "db.sqlite3"
        self.environment = environment(data, pause=0)
        self.manage("migrate", "--verbosity=0")

    def manage(self, *args: str) -> str:
        return self.run(str(EXAMPLE / "manage.py"), *args)

    def ask(self, code: str, *args: Any) -> Any:
        """Run `code` inside the site and return the value of its last line, an expression.

        `args` is available to it under that name.
        """
        *lines, last = code.strip().splitlines()
        script = "\n".join([SETUP, f"args = {args!r}", *lines, f"print(json.dumps({last}))"])
        return json.loads(self.run("-", script=script).splitlines()[-1])

    def count(self, table: str, where: str = "1") -> int:
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]

    def run(self, *command: str, script: str = "") -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env=self.environment,
            input=script,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Demo:
    """What `make demo` runs, started as from a terminal."""

    def __init__(self, directory: Path, port: str, pause: float = 0) -> None:
        self.token = uuid.uuid4().hex
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / f"{self.token}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(EXAMPLE / "demo.py")],
                env={
                    **environment(directory / "data", pause),
                    "PORT": port,
                    processes.TOKEN: self.token,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> "Demo":
        wait_until(lambda: "Ctrl-C\n" in self.output() or self.process.poll(), message=self.output)
        wait_until(
            lambda: "run_peasy serves" in self.output() or self.process.poll(), message=self.output
        )
        assert self.process.poll() is None, self.output()
        return self

    def password(self) -> str:
        return re.search(r"demo / (\S+)", self.output())[1]

    def ctrl_c(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the script and of everything it started, including orphans."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def owns(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get(processes.TOKEN) == self.token
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def find(self, word: str) -> psutil.Process:
        return next(process for process in self.processes() if word in process.cmdline())


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
