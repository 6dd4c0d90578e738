"""Runs the suite on every database that answers, and in a browser, and says what was tested and what failed.

Arguments go to pytest; where they name a file, no other browser test is run. As many suites run at once as there are
processors, but two at least: part of a run is waiting for leases and limits to pass.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

DATABASES = ("sqlite", "postgres", "mariadb")
OPTIONS = (
    "-n",
    "2",
    "-rfEs",
)  # two tests at a time, and in the end what failed and what was skipped, and why
BROWSER = "browser"
# What no database can change is tested on SQLite alone.
ANYWHERE = [
    f"tests/test_{name}.py"
    for name in ("addresses", "example_project", "import_order", "package", "reloading", "wakeup")
]
# Connects without a database name, as the creation of the test database does.
PROBE = """
import sys
from django.db import connection
try:
    with connection._nodb_cursor():
        pass
except Exception as error:
    sys.exit(str(error).partition("\\n")[0])
"""


def environment(database: str) -> dict[str, str]:
    return {
        **os.environ,
        "PEASY_TEST_DATABASE": database,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }


def unreachable(database: str) -> str:
    """Why `database` cannot be tested, or an empty string."""
    if database == "sqlite":
        return ""
    command = [sys.executable, "-W", "ignore", "-c", PROBE]
    try:
        probe = subprocess.run(
            command, env=environment(database), capture_output=True, text=True, timeout=15
        )
    except subprocess.TimeoutExpired:
        return "no answer within 15 s"
    return (
        ""
        if probe.returncode == 0
        else (probe.stderr.strip().splitlines() or ["the probe died"])[-1]
    )


def without_browser() -> str:
    """Why nothing can be looked at in a browser, or an empty string. Installs one where that can be done."""
    probe = subprocess.run(
        [sys.executable, "-m", "tests.browser", "install"], stderr=subprocess.PIPE, text=True
    )
    return (
        ""
        if probe.returncode == 0
        else (probe.stderr.strip().splitlines() or ["the probe died"])[-1]
    )


def run(name: str, arguments: list[str], left_out: list[str]) -> str:
    arguments = [*arguments, *(f"--ignore={path}" for path in left_out)]
    database = "sqlite" if name == BROWSER else name
    started, failures = time.monotonic(), ""
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments],
        env=environment(database),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as suite:
        for line in suite.stdout or ():
            print(f"{name:9}| {line}", end="", flush=True)
            if line.startswith(("FAILED tests", "ERROR tests")):
                failures += f"\n{'':10}{line.rstrip()}"  # once more in the end: much else is printed meanwhile
    if name == BROWSER and suite.returncode == 5:
        return "none of its tests was asked for"
    outcome = "passed" if suite.returncode == 0 else f"FAILED (pytest exit code {suite.returncode})"
    without = f", without {', '.join(left_out)}" * bool(left_out)
    return f"{outcome} in {time.monotonic() - started:.0f} s{without}{failures}"


def main(arguments: list[str]) -> int:
    required = {
        name.strip()
        for name in os.environ.get("PEASY_TEST_REQUIRE", "sqlite").split(",")
        if name.strip()
    }
    if unknown := required - set(DATABASES):
        print(
            f"PEASY_TEST_REQUIRE names {', '.join(sorted(unknown))}. Known: {', '.join(DATABASES)}."
        )
        return 2
    outcomes = {}
    # All that a machine has to do is the same, and what is hurried less trips over its own patience less.
    turns = threading.Semaphore(max(2, os.cpu_count() or 1))

    def test(database: str) -> None:
        if reason := unreachable(database):
            outcomes[database] = (
                f"NOT REACHABLE{', but required' * (database in required)}: {reason}"
            )
        else:
            left_out = [] if database == "sqlite" or arguments else ANYWHERE
            with turns:
                outcomes[database] = run(database, [*OPTIONS, *arguments], left_out)

    def look() -> None:
        if reason := without_browser():
            required = os.environ.get("PEASY_TEST_REQUIRE_BROWSER") == "1"
            outcomes[BROWSER] = f"SKIPPED{', but required' * required}: {reason}"
        else:
            with turns:
                outcomes[BROWSER] = run(BROWSER, ["tests/e2e", *arguments], [])

    suites = [threading.Thread(target=test, args=[database]) for database in DATABASES]
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        outcomes[BROWSER] = "only if a file of its was named"
    else:
        suites.append(threading.Thread(target=look))
    for suite in suites:
        suite.start()
    for suite in suites:
        suite.join()
    print("\n=== databases ===")
    for database in DATABASES:
        print(f"{database:10}{outcomes[database]}")
    print(f"\n=== browser tests ===\n{outcomes[BROWSER]}")
    failed = any(
        outcome.startswith("FAILED") or "but required" in outcome for outcome in outcomes.values()
    )
    return 1 if failed else 0


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
