"""Run the torture run briefly on this database, and show that it fails once a guard is removed."""

import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests.processes import REPOSITORY

pytestmark = pytest.mark.timeout(240)
SUSPEND = ("--only", "suspend a runner beyond its lease", "--pause", "0.5")
STOP = ("--only", "stop a runner gracefully")
NO_FAULTS = ("--only", "nothing")


def start_torture(*arguments: str, seconds: int) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "tests.torture"),
        *("--database", settings.TEST_DATABASE),
        *("--seed", "1"),
        *("--seconds", str(seconds)),
    ]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PEASY_TEST_DB_NAME"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result_of(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a torture run. Return its exit code and its output."""
    output, _ = run.communicate()
    print(output)
    return run.returncode, output


def test_a_short_torture_run_loses_nothing() -> None:
    code, output = result_of(start_torture(seconds=20))
    assert code == 0, output
    assert "violations" in output


@pytest.mark.slow
@pytest.mark.skipif(
    settings.TEST_DATABASE != "sqlite", reason="the guards are the same on every database"
)
@pytest.mark.parametrize(
    ("faults", "control", "removed", "violations", "seconds"),
    [
        # "late" delays the notice that a lease was revoked, so that only the fence is left.
        pytest.param(
            SUSPEND,
            "late",
            "late,fence",
            ("the result of another run", "without such an end"),
            15,
            id="fence",
        ),
        pytest.param(
            NO_FAULTS,
            "",
            "lease",
            ("charged with a crash", "two runs at the same time"),
            6,
            id="lease",
        ),
        pytest.param(STOP, "", "flush", ("charged with a crash", "left its row"), 10, id="flush"),
    ],
)
def test_a_torture_run_fails_once_a_guard_is_removed(
    faults: tuple[str, ...], control: str, removed: str, violations: tuple[str, ...], seconds: int
) -> None:
    with_guard = start_torture(*faults, "--remove-guards", control, seconds=seconds)
    without_guard = start_torture(*faults, "--remove-guards", removed, seconds=seconds)
    results = [result_of(run) for run in (with_guard, without_guard)]
    code, output = results[0]
    assert code == 0, output
    code, output = results[1]
    assert code == 1, output
    assert [sign for sign in violations if sign in output] != [], output
