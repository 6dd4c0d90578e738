"""Real processes for the tests: start `run_peasy` as a user would, and clean up after it."""

import contextlib
import json
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import DEADLINE, wait_until

REPOSITORY = Path(__file__).parent.parent
# All processes of a command inherit this variable, so that orphans are found, too.
TOKEN = "PEASY_TEST_PROCESS"

both_worker_types = pytest.mark.parametrize("worker_type", ["process", "thread"])


class Command:
    """A management command in its own session, on the database of the running test."""

    def __init__(
        self,
        args: tuple[str, ...],
        directory: Path,
        cwd: Path,
        settings: Mapping[str, Any],
        env: Mapping[str, str],
        flags: tuple[str, ...] = (),
        stdout: int | None = None,
        program: tuple[str, ...] = ("-m", "django"),
    ) -> None:
        self.token = uuid.uuid4().hex
        self.killed = False
        self.output_path = directory / f"{args[0]}-{self.token}.log"
        self.args = args
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PEASY_TEST_SETTINGS": json.dumps(settings),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            **env,
            TOKEN: self.token,
        }
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *flags, *program, *args],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def describe(self) -> str:
        state = f"pid {self.pid}, exit code {self.process.poll()}"
        return f"{' '.join(self.args)} ({state}) printed:\n{self.output()}"

    def wait_for_output(self, text: str, timeout: float = DEADLINE) -> str:
        """Wait until `text` has been printed; an earlier exit fails at once."""

        def printed() -> bool:
            over = self.process.poll() is not None
            if text in self.output():
                return True
            assert not over, f"The command ended before it printed {text!r}. {self.describe()}"
            return False

        wait_until(printed, timeout, lambda: f"{text!r} was not printed. {self.describe()}")
        return self.output()

    def ready(self, timeout: float = DEADLINE) -> "Command":
        self.wait_for_output("run_peasy serves", timeout)
        return self

    def signal(self, number: int, *, group: bool = False) -> None:
        """Signal this process alone, or its whole group as a terminal and systemd do."""
        if group:
            os.killpg(self.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"Still running after {timeout} s. {self.describe()}") from None

    def kill(self) -> None:
        """Kill this process alone, which is how a crash of the runner looks to its workers."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of this command, including descendants and orphans."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def owns(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get(TOKEN) == self.token
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def clean_up(self) -> None:
        """End all processes. Fail if a command that ended by itself left any."""
        ended = self.process.poll() is not None and not self.killed
        try:
            if ended:
                wait_until(
                    lambda: not self.processes(),
                    5,
                    lambda: f"The command left processes behind. {self.describe()}",
                )
        finally:
            # Again until none is left: a process may start another while it is being killed.
            while processes := self.processes():
                kill(processes)
                time.sleep(0.01)
            self.process.wait()
            print(self.describe())


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def children() -> set[psutil.Process]:
    """Return the children of this process, without the two that multiprocessing keeps."""
    kept = {
        multiprocessing.forkserver._forkserver._forkserver_pid,
        multiprocessing.resource_tracker._resource_tracker._pid,
    }
    return {
        process for process in psutil.Process().children(recursive=True) if process.pid not in kept
    }
