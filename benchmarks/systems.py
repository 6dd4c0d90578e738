"""The systems: how each is installed and how its script in `peers/` is run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
ENVIRONMENTS = REPOSITORY / ".venv-bench"
PEERS = tomllib.loads((HERE / "peers.toml").read_text())
OURS = "peasy_jobs"
TIMEOUT = 900  # seconds that a command of a script may take
KEEP_ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}


class Unable(Exception):
    """Something could not be measured. The message is for the table."""


@dataclass(frozen=True)
class Workers:
    """The number of runners, and the workers of each."""

    label: str
    kind: str = "process"
    concurrency: int = 1
    runners: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    databases: tuple[str, ...] = ()  # only these; empty: all


ONE, THREAD = Workers("1 process"), Workers("1 thread", "thread")
FOUR, FOUR_THREADS = Workers("4 processes", concurrency=4), Workers("4 threads", "thread", 4)
TWO, TWO_RUNNERS = Workers("2 processes", concurrency=2), Workers("2 processes", runners=2)


@dataclass(frozen=True)
class System:
    name: str
    title: str
    # For each database the jobs of a throughput measurement, enough for some seconds.
    jobs: dict[str, int]
    workers: tuple[Workers, ...]
    settings: str = ""
    packages: tuple[str, ...] = ()
    gap: float = 1.3  # seconds between two jobs of a latency measurement
    samples: int = 20
    fast: dict[str, Any] = field(default_factory=dict)  # settings for throughput
    idle: tuple[Workers, ...] = ()  # with room for four jobs at once

    @property
    def python(self) -> str:
        return (
            sys.executable
            if self.name == OURS
            else str(ENVIRONMENTS / self.name / "bin" / "python")
        )

    @property
    def script(self) -> Path:
        return HERE / "peers" / f"run_{self.name.replace('-', '_')}.py"

    def install(self) -> None:
        """Install the packages into a separate environment, unless they are there.

        Raises `Unable`.
        """
        if not self.packages:
            return
        stamp = ENVIRONMENTS / self.name / "installed.txt"
        if stamp.exists() and stamp.read_text() == "\n".join(self.packages):
            return
        print(f"Installing {', '.join(self.packages)}", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(stamp.parent)],
            [
                self.python,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "-qq",
                *self.packages,
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Unable(f"could not be installed: {_last_line(done.stderr or done.stdout)}")
        stamp.write_text("\n".join(self.packages))

    def call(self, environment: dict[str, str], *args: object) -> Any:
        """Return the script's answer to a command."""
        printed = answer([self.python, str(self.script), *map(str, args)], environment)
        return json.loads(printed) if printed.strip() else None

    @contextlib.contextmanager
    def working(
        self, environment: dict[str, str], workers: Workers, log: Path
    ) -> Iterator[list[int]]:
        """Start the runners, yield their pids, and end them."""
        command = [self.python, str(self.script), "work", workers.kind, str(workers.concurrency)]
        with log.open("w") as output:
            runners = [
                subprocess.Popen(
                    command, stdout=output, stderr=output, env=environment, start_new_session=True
                )
                for _ in range(workers.runners)
            ]
        try:
            yield [runner.pid for runner in runners]
            for runner in runners:
                if runner.poll() is not None:
                    raise Unable(f"its runner ended: {_last_line(log.read_text())}")
        finally:
            for runner in runners:
                _end(runner)


def answer(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Return what a command prints. Raise `Unable` with its last line if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=TIMEOUT
    )
    if done.returncode:
        raise Unable(f"{' '.join(command[2:])[:80]}: {_last_line(done.stderr)}")
    return done.stdout


def environment(
    system: System, url: str, marks: Path, settings: dict[str, Any], **more: str
) -> dict[str, str]:
    return {
        **os.environ,
        # Only for this package: among the others is one of its releases, with the same name.
        "PYTHONPATH": str(REPOSITORY) if system.name == OURS else "",
        "BENCH_URL": url,
        "BENCH_MARKS": str(marks),
        "BENCH_SETTINGS": json.dumps(settings),
        **more,
    }


def _end(runner: "subprocess.Popen[bytes]") -> None:
    runner.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        runner.wait(10)
    # The group, because some systems leave workers behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def _peer(name: str, **fields: Any) -> System:
    entry = PEERS[name]
    return System(
        name,
        entry["title"],
        packages=tuple(entry["packages"]),
        settings=entry["settings"],
        **fields,
    )


SYSTEMS = {
    system.name: system
    for system in (
        System(
            OURS,
            "peasy_jobs",
            jobs={"sqlite": 60_000, "postgres": 60_000, "mariadb": 15_000},
            workers=(ONE, TWO, THREAD, FOUR_THREADS, Workers("2 runners", runners=2)),
            idle=(FOUR, FOUR_THREADS),
            settings="as shipped, PEASY_MAX_COMPLETED None for throughput",
            gap=0.8,
            samples=60,
            fast=KEEP_ALL,
        ),
        _peer(
            "peasy-jobs-0_4_1",
            jobs={"sqlite": 150, "postgres": 100},
            workers=(ONE,),
            gap=3,
            samples=13,
            fast={"PEASY_POLLING_INTERVAL": 0.01},
            idle=(FOUR,),
        ),
        _peer(
            "django-tasks-db",
            jobs={"sqlite": 3_000, "postgres": 1_500},
            workers=(ONE, TWO_RUNNERS),
            idle=(Workers("4 processes", runners=4),),
        ),
        _peer(
            "huey",
            jobs={"sqlite": 15_000, "redis": 15_000},
            workers=(
                THREAD,
                Workers(
                    "1 thread, synchronous FULL",
                    "thread",
                    settings={"synchronous": "FULL"},
                    databases=("sqlite",),
                ),
                ONE,
                TWO,
            ),
            idle=(FOUR, FOUR_THREADS),
        ),
        _peer(
            "procrastinate",
            jobs={"postgres": 1_500},
            workers=(ONE, Workers("1 process, 10 at once", concurrency=10)),
            idle=(Workers("1 process, 4 at once", concurrency=4),),
        ),
        _peer("pgqueuer", jobs={"postgres": 60_000}, workers=(ONE, TWO_RUNNERS), idle=(ONE,)),
        _peer("celery", jobs={"redis": 4_000}, workers=(ONE, TWO), idle=(FOUR,)),
    )
}
