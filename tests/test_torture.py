"""A short torture run on the database of this suite, and that it fails as soon as one guard is removed."""

import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests.processes import REPOSITORY

pytestmark = pytest.mark.timeout(240)
SUSPEND = ("--only", "suspend a runner beyond its lease", "--pause", "0.5")
STOP = ("--only", "stop a runner gracefully")
NOTHING = ("--only", "nothing")


def torture(*arguments: str, seconds: int = 20) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "tests.torture",
        "--database",
        settings.TEST_DATABASE,
        "--seed",
        "1",
    ]
    run = subprocess.run(
        [*command, "--seconds", str(seconds), *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PEASY_TEST_DB_NAME"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(run.stdout)
    return run.returncode, run.stdout


def test_a_short_torture_run_loses_nothing() -> None:
    code, output = torture()
    assert code == 0, output
    assert "violations" in output


@pytest.mark.skipif(
    settings.TEST_DATABASE != "sqlite", reason="the guards are the same, and this takes minutes"
)
@pytest.mark.parametrize(
    ("faults", "control", "removed", "seen"),
    [
        # Late: the straggler learns a second later that it was presumed dead. Then only the fence is left.
        pytest.param(
            SUSPEND,
            "late",
            "late,fence",
            "the result of another run|without such an end",
            id="fence",
        ),
        pytest.param(
            NOTHING, "", "lease", "charged with a crash|two runs at the same time", id="lease"
        ),
        pytest.param(STOP, "", "flush", "charged with a crash|left its row", id="flush"),
    ],
)
def test_the_same_run_fails_without_one_guard(
    faults: tuple[str, ...], control: str, removed: str, seen: str
) -> None:
    code, output = torture(*faults, "--remove-guards", control)
    assert code == 0, output
    code, output = torture(*faults, "--remove-guards", removed)
    assert code == 1, output
    assert any(sign in output for sign in seen.split("|")), output
