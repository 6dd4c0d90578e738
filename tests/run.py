"""Run the test suites: one for each database that answers, and one in a browser.

    python tests/run.py [--gate] [--newest-django PYTHON] [arguments for pytest]

With arguments for pytest every suite runs exactly what they select; if they name a file, the
browser suite does not run. Without arguments the slow tests are left out. `--gate` includes them
and requires every database and a browser. It also runs what a driver or a Django version can
change: on MariaDB with mysqlclient, and on the newest Django if `--newest-django` names a Python
that has it.

Several suites run at the same time, because part of each is waiting for leases and limits.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

DATABASES = ("sqlite", "postgres", "mariadb")
BROWSER = "browser"
BROWSER_TESTS = "tests/e2e"
CODE = ("benchmarks", "example_project", "peasy_jobs", "tests")
NO_TESTS_COLLECTED = 5  # pytest's exit code

# pytest options: what failed and what was skipped at the end, with the reason
REPORT = ("-rfEs",)
WITHOUT_SLOW = ("-m", "not slow")
HOW_TO_RUN_SLOW = "make test ARGS='-m slow'"

# What no database can change is tested on SQLite alone.
SQLITE_ONLY = tuple(
    f"tests/test_{name}.py"
    for name in (
        "benchmarks",
        "conf_and_checks",
        "example_project",
        "house_rules",
        "import_order",
        "package",
        "reloading",
        "urlresolution",
    )
)
# What a driver can change: every statement of the engine and the pages, and every database error.
DRIVER = (
    *(
        f"tests/test_{name}.py"
        for name in (
            "concurrency",
            "dashboard",
            "peasy_jobs",
            "queue",
            "recorder",
            "run_peasy",
            "state_machine",
            "statistics",
            "status",
            "upgrade",
        )
    ),
    *(
        f"tests/faults/test_{name}.py"
        for name in ("database_trouble", "full_disk", "odd_rows", "server_restart")
    ),
)
# What no Django version can change: processes, signals, limits, outages of a server, and tools of
# this repository.
NOT_DJANGO = (
    *(
        f"tests/test_{name}.py"
        for name in (
            "benchmarks",
            "concurrency",
            "dying",
            "house_rules",
            "package",
            "stopping",
            "torture",
        )
    ),
    *(
        f"tests/faults/test_{name}.py"
        for name in (
            "cancelling",
            "database_trouble",
            "full_disk",
            "hostile_jobs",
            "limits",
            "retries",
            "server_restart",
        )
    ),
)
# The pages that show parts of Django itself: its admin, its login page and its messages.
DJANGO_IN_BROWSER = tuple(f"tests/e2e/test_{name}.py" for name in ("admin", "dashboard"))

# Connects without a database name, as creating the test database does.
CONNECT = """
import sys
from django.db import connection
try:
    with connection._nodb_cursor():
        pass
except Exception as error:
    sys.exit(str(error).partition("\\n")[0])
"""


@dataclass(frozen=True)
class Suite:
    """One run of pytest."""

    name: str
    database: str = "sqlite"
    tests: Sequence[str] = ()
    left_out: Sequence[str] = ()
    slow: bool = False
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    in_browser: bool = False

    @property
    def needs(self) -> str:
        """What has to be there: a database or a browser."""
        return BROWSER if self.in_browser else self.database

    def command(self, workers: int, arguments: Sequence[str]) -> list[str]:
        return [
            *(self.python, "-m", "pytest", *REPORT),
            *(() if self.in_browser else ("-n", str(workers), "--dist", "worksteal")),
            *(() if self.slow or arguments else WITHOUT_SLOW),
            *(f"--ignore={path}" for path in self.left_out),
            *self.tests,
            *arguments,
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of a suite, for the table at the end."""

    text: str
    failed: bool = False


# Probes


def environment_for(database: str) -> dict[str, str]:
    """Return the environment of a process that uses this database."""
    return {
        **os.environ,
        "PEASY_TEST_DATABASE": database,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }


def unreachable(database: str) -> str:
    """Return why `database` cannot be tested, or an empty string."""
    if database == "sqlite":
        return ""
    command = [sys.executable, "-W", "ignore", "-c", CONNECT]
    try:
        probe = subprocess.run(
            command, env=environment_for(database), capture_output=True, text=True, timeout=15
        )
    except subprocess.TimeoutExpired:
        return "no answer within 15 s"
    return reason_of(probe)


def no_browser() -> str:
    """Return why no browser starts, or an empty string. Install one first if that is possible."""
    command = [sys.executable, "-m", "tests.browser", "install"]
    return reason_of(subprocess.run(command, stderr=subprocess.PIPE, text=True))


def reason_of(probe: subprocess.CompletedProcess[str]) -> str:
    if probe.returncode == 0:
        return ""
    return (probe.stderr.strip().splitlines() or ["the probe died"])[-1]


# Running


def run_suite(suite: Suite, workers: int, arguments: Sequence[str]) -> Outcome:
    started, failures = time.monotonic(), []
    with subprocess.Popen(
        suite.command(workers, arguments),
        env={**environment_for(suite.database), **suite.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(f"{suite.name:17}| {line}", end="", flush=True)
            if line.startswith(("FAILED tests", "ERROR tests")):
                failures.append(line.rstrip())
    if suite.in_browser and process.returncode == NO_TESTS_COLLECTED:
        return Outcome("no browser test was selected")
    seconds = f"{time.monotonic() - started:.0f} s"
    if process.returncode == 0:
        return Outcome(f"passed in {seconds}{without(suite, arguments)}")
    # Repeat the failures: the output of other suites may stand in between.
    listed = "".join(f"\n{'':18}{failure}" for failure in failures)
    return Outcome(f"FAILED in {seconds} (pytest exit code {process.returncode}){listed}", True)


def without(suite: Suite, arguments: Sequence[str]) -> str:
    """Return what a suite left out, in words."""
    names = [Path(path).stem.removeprefix("test_") for path in suite.left_out]
    if not (suite.slow or arguments or suite.in_browser):
        names.append("slow tests")
    return f", without {', '.join(names)}" if names else ""


# The plan


def plan(options: argparse.Namespace) -> list[Suite]:
    """Return the suites to run, the longest first."""
    left_out = () if options.arguments else SQLITE_ONLY
    suites = [
        Suite("sqlite", slow=options.gate),
        Suite("postgres", "postgres", left_out=left_out),
        Suite("mariadb", "mariadb", left_out=left_out),
    ]
    if newest := options.newest_django:
        suites.append(Suite("newest django", left_out=NOT_DJANGO, python=newest))
    if options.gate:
        driver = {"PEASY_TEST_MARIADB_DRIVER": "mysqlclient"}
        suites.append(Suite("mysqlclient", "mariadb", tests=DRIVER, environment=driver))
    if not any(Path(argument.partition("::")[0]).exists() for argument in options.arguments):
        suites.append(Suite(BROWSER, tests=[BROWSER_TESTS], in_browser=True))
        if newest:
            name = f"{BROWSER}, newest"
            suites.append(Suite(name, tests=DJANGO_IN_BROWSER, python=newest, in_browser=True))
    return suites


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/run.py",
        description="Run the test suites. Any other argument goes to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gate", action="store_true", help="Require everything, and run slow tests as well."
    )
    parser.add_argument(
        "--newest-django", metavar="PYTHON", help="Also test on the Django this Python has."
    )
    options, options.arguments = parser.parse_known_args(arguments)
    if options.gate:  # in the environment, because tests read it too
        os.environ["PEASY_TEST_REQUIRE"] = ",".join(DATABASES)
        os.environ["PEASY_TEST_REQUIRE_BROWSER"] = "1"
    names = os.environ.get("PEASY_TEST_REQUIRE", "sqlite").split(",")
    options.required = {name.strip() for name in names if name.strip()}
    if unknown := options.required - set(DATABASES):
        known = ", ".join(DATABASES)
        parser.error(f"PEASY_TEST_REQUIRE names {', '.join(sorted(unknown))}. Use: {known}.")
    if os.environ.get("PEASY_TEST_REQUIRE_BROWSER") == "1":
        options.required.add(BROWSER)
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    suites = plan(options)
    compile_once({suite.python for suite in suites})
    missing = {database: unreachable(database) for database in DATABASES}
    if any(suite.in_browser for suite in suites):
        missing[BROWSER] = no_browser()
    runnable = [suite for suite in suites if not missing[suite.needs]]
    workers = 3 if sum(not suite.in_browser for suite in runnable) > 1 else 4

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        outcomes = list(
            pool.map(lambda suite: run_suite(suite, workers, options.arguments), runnable)
        )

    print("\n=== suites ===")
    for suite, outcome in zip(runnable, outcomes, strict=True):
        print(f"{suite.name:17} {outcome.text}")
    unmet = {need: reason for need, reason in missing.items() if reason}
    for need, reason in unmet.items():
        print(f"{need:17} NOT AVAILABLE{', but required' * (need in options.required)}: {reason}")
    if not (options.gate or options.arguments):
        print(f"\nThe slow tests were left out. To run them: {HOW_TO_RUN_SLOW}")
    failed = any(outcome.failed for outcome in outcomes) or options.required & set(unmet)
    return 1 if failed else 0


def compile_once(pythons: set[str]) -> None:
    """Compile the code before hundreds of processes import it.

    Where `PYTHONDONTWRITEBYTECODE` is set, each of them would compile it again.
    """
    for python in pythons:
        subprocess.run([python, "-m", "compileall", "-q", *CODE])


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
