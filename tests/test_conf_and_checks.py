"""Tests of the settings and the system checks."""

import math
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from peasy_jobs import checks, conf
from peasy_jobs.models import PeasyRunner
from tests import jobs
from tests.rows import finished

DEFAULTS = {
    "PEASY_MAX_COMPLETED": 10,
    "PEASY_MAX_FAILED": 10,
    "PEASY_MAX_CANCELLED": 10,
    "PEASY_PRUNE_GRACE": 60,
    "PEASY_POLLING_INTERVAL": 2,
    "PEASY_CONCURRENCY": 1,
    "PEASY_WORKER_TYPE": "process",
    "PEASY_SHUTDOWN_TIMEOUT": 30,
    "PEASY_LEASE": 30,
    "PEASY_CRASH_RETRIES": 1,
    "PEASY_JOB_TIMEOUT": None,
    "PEASY_MAX_JOBS_PER_WORKER": None,
    "PEASY_MAX_PAYLOAD": 10 * 1024 * 1024,
    "PEASY_SERIALIZER": "pickle",
    "PEASY_TOKEN_MAX_AGE": 86400,
    "PEASY_DASHBOARD_POLL": 5,
    "PEASY_DASHBOARD_PERMISSION": None,
    "PEASY_CAN_VIEW_JOB": None,
    "PEASY_JOB_JSON": None,
    "PEASY_MASK_ARGUMENT": None,
}


class Rule(NamedTuple):
    """What is expected of a setting: the check of an invalid value, and examples of values."""

    check_id: str
    hint: str
    valid: tuple[Any, ...]
    invalid: tuple[Any, ...]


JOBS_TO_KEEP = "Set it to a whole number of jobs, 0 or more, or to None to keep all."
SECONDS = "Set it to a number of seconds, {} or more."
CALLABLE = "Set it to the dotted path of a callable, or to None for the default behaviour."
CALLABLE_PATHS = (None, "django.contrib.auth.get_user")
NOT_PATHS = ("", "may", 1, len)
NOT_COUNTS = (-1, 1.5, "10", True, 2**63, [10])
NOT_SECONDS = (-0.001, "1", True, math.nan, math.inf, 10**400, 1e300, [1])
RULES = {
    "PEASY_MAX_COMPLETED": Rule("E001", JOBS_TO_KEEP, (None, 0, 10**6), NOT_COUNTS),
    "PEASY_MAX_FAILED": Rule("E002", JOBS_TO_KEEP, (None, 0, 10**6), NOT_COUNTS),
    "PEASY_MAX_CANCELLED": Rule("E003", JOBS_TO_KEEP, (None, 0, 10**6), NOT_COUNTS),
    "PEASY_PRUNE_GRACE": Rule(
        "E004", SECONDS.format("0"), valid=(0, 0.5, 86400), invalid=(None, *NOT_SECONDS)
    ),
    "PEASY_POLLING_INTERVAL": Rule(
        "E005", SECONDS.format("0.01"), valid=(0.01, 1, 60), invalid=(0, 0.009, None, *NOT_SECONDS)
    ),
    "PEASY_CONCURRENCY": Rule(
        "E006",
        "Set it to a whole number of workers, 1 or more.",
        valid=(1, 64),
        invalid=(0, None, *NOT_COUNTS),
    ),
    "PEASY_WORKER_TYPE": Rule(
        "E007",
        'Set it to "process" or "thread".',
        valid=("process", "thread"),
        invalid=("greenlet", "", None, 1, ["process"]),
    ),
    "PEASY_SHUTDOWN_TIMEOUT": Rule(
        "E008", SECONDS.format("0"), valid=(0, 0.5, 3600), invalid=(None, *NOT_SECONDS)
    ),
    "PEASY_LEASE": Rule(
        "E009", SECONDS.format("2"), valid=(2, 2.5, 3600), invalid=(0, 1.9, None, *NOT_SECONDS)
    ),
    "PEASY_CRASH_RETRIES": Rule(
        "E010",
        "Set it to a whole number of retries, 0 or more.",
        valid=(0, 3),
        invalid=(None, *NOT_COUNTS),
    ),
    "PEASY_MAX_PAYLOAD": Rule(
        "E011",
        "Set it to a whole number of bytes, 1 or more.",
        valid=(1, 2**40),
        invalid=(0, None, *NOT_COUNTS),
    ),
    "PEASY_SERIALIZER": Rule(
        "E012",
        'Set it to "pickle" or "json".',
        valid=("pickle", "json"),
        invalid=("yaml", "", None, 1, {}),
    ),
    "PEASY_JOB_TIMEOUT": Rule(
        "E013",
        "Set it to a number of seconds above 0, or to None for no limit.",
        valid=(None, 0.5, 3600),
        invalid=(0, *NOT_SECONDS),
    ),
    "PEASY_MAX_JOBS_PER_WORKER": Rule(
        "E014",
        "Set it to a whole number of jobs, 1 or more, or to None to never replace a worker.",
        valid=(None, 1, 1000),
        invalid=(0, *NOT_COUNTS),
    ),
    "PEASY_TOKEN_MAX_AGE": Rule(
        "E016", SECONDS.format("1"), valid=(1, 3600), invalid=(0, 0.9, None, *NOT_SECONDS)
    ),
    "PEASY_DASHBOARD_POLL": Rule(
        "E017",
        "Set it to a number of seconds, 1 or more, or to 0 to turn updates off.",
        valid=(0, 0.0, 1, 5.5),
        invalid=(0.5, False, None, *NOT_SECONDS),
    ),
    "PEASY_DASHBOARD_PERMISSION": Rule("E018", CALLABLE, CALLABLE_PATHS, NOT_PATHS),
    "PEASY_CAN_VIEW_JOB": Rule("E019", CALLABLE, CALLABLE_PATHS, NOT_PATHS),
    "PEASY_JOB_JSON": Rule("E020", CALLABLE, CALLABLE_PATHS, NOT_PATHS),
    "PEASY_MASK_ARGUMENT": Rule("E021", CALLABLE, CALLABLE_PATHS, NOT_PATHS),
}
VALID_VALUES = [
    pytest.param(name, value, id=f"{name}-{number}")
    for name, rule in RULES.items()
    for number, value in enumerate(rule.valid)
]
INVALID_VALUES = [
    pytest.param(name, value, id=f"{name}-{number}")
    for name, rule in RULES.items()
    for number, value in enumerate(rule.invalid)
]


def peasy_checks() -> list[CheckMessage]:
    return run_checks(tags=["peasy_jobs"])


def peasy_check_ids() -> list[str]:
    return [message.id.removeprefix("peasy_jobs.") for message in peasy_checks()]


# The settings


def test_every_setting_has_the_documented_default() -> None:
    values = {f"PEASY_{name.upper()}": value for name, value in asdict(conf.get()).items()}
    assert values == DEFAULTS


def test_the_settings_of_the_tests_set_no_setting_of_peasy_jobs() -> None:
    assert [name for name in dir(django_settings) if name.startswith("PEASY_")] == []


def test_every_setting_is_declared_with_a_check_id_of_its_own() -> None:
    ids = {setting.name: setting.check_id for setting in conf.SETTINGS}
    assert ids == {name: rule.check_id for name, rule in RULES.items()}
    assert len(set(ids.values())) == len(ids)


def test_every_setting_is_declared_with_a_hint() -> None:
    hints = {setting.name: setting.rule.hint for setting in conf.SETTINGS}
    assert hints == {name: rule.hint for name, rule in RULES.items()}


@pytest.mark.parametrize("setting", conf.SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_a_valid_value(setting: conf.Setting) -> None:
    assert setting.rule.accepts(setting.default)


@pytest.mark.parametrize(("name", "value"), VALID_VALUES)
def test_a_valid_value_is_used(settings: Any, name: str, value: Any) -> None:
    setattr(settings, name, value)
    assert getattr(conf.get(), name.removeprefix("PEASY_").lower()) == value


@pytest.mark.parametrize(("name", "value"), VALID_VALUES)
def test_a_valid_value_passes_the_checks(settings: Any, name: str, value: Any) -> None:
    setattr(settings, name, value)
    assert peasy_checks() == []


@pytest.mark.parametrize(("name", "value"), INVALID_VALUES)
def test_an_invalid_value_is_an_error_with_its_id_the_value_and_the_remedy(
    settings: Any, name: str, value: Any
) -> None:
    setattr(settings, name, value)
    [message] = peasy_checks()
    assert message.id == f"peasy_jobs.{RULES[name].check_id}"
    assert message.msg == f"{name} is {value!r}."
    assert message.hint == RULES[name].hint
    assert message.is_serious()


@pytest.mark.parametrize(("name", "value"), INVALID_VALUES)
def test_an_invalid_value_is_refused_at_every_use(settings: Any, name: str, value: Any) -> None:
    conf.get()  # loads the valid values
    setattr(settings, name, value)
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured) as refused:
            conf.get()
        assert str(refused.value) == f"{name} is {value!r}. {RULES[name].hint}"
    delattr(settings, name)
    assert conf.get().lease == 30


def test_all_invalid_values_are_reported_at_once(settings: Any) -> None:
    settings.PEASY_LEASE = 0
    settings.PEASY_CONCURRENCY = 0
    assert sorted(peasy_check_ids()) == ["E006", "E009"]


@pytest.mark.django_db
@pytest.mark.parametrize("name", RULES)
def test_run_peasy_refuses_to_start_with_an_invalid_value(settings: Any, name: str) -> None:
    setattr(settings, name, RULES[name].invalid[0])
    check_id = RULES[name].check_id
    with pytest.raises(SystemCheckError, match=rf"\(peasy_jobs.{check_id}\) {name} is "):
        call_command("run_peasy", "--exit-on-empty", skip_checks=False, stderr=StringIO())
    with pytest.raises(ImproperlyConfigured, match=f"{name} is "):
        call_command("run_peasy", "--exit-on-empty", skip_checks=True)
    assert not PeasyRunner.objects.exists()


def test_run_peasy_says_what_to_do_about_an_invalid_value_and_exits_with_1(
    run_peasy: Callable[..., Any],
) -> None:
    command = run_peasy(settings={"PEASY_WORKER_TYPE": "greenlet"}, ready=False)
    assert command.wait() == 1
    output = command.output()
    assert "(peasy_jobs.E007) PEASY_WORKER_TYPE is 'greenlet'." in output
    assert 'HINT: Set it to "process" or "thread".' in output
    assert "Traceback" not in output
    assert "run_peasy serves" not in output


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PEASY_MAX_COMPLETE", "PEASY_MAX_COMPLETED"),
        ("PEASY_WORKERTYPE", "PEASY_WORKER_TYPE"),
        ("PEASY_JOBS_TIMEOUT", "PEASY_JOB_TIMEOUT"),
    ],
)
def test_a_misspelled_setting_is_a_warning_that_names_the_similar_one(
    settings: Any, name: str, meant: str
) -> None:
    setattr(settings, name, 5)
    [message] = peasy_checks()
    assert message.id == "peasy_jobs.W005"
    assert message.msg == f"{name} is not a setting of peasy_jobs."
    assert message.hint == f"Did you mean {meant}?"
    assert not message.is_serious()
    delattr(settings, name)
    assert peasy_checks() == []


def test_an_unknown_setting_that_resembles_none_is_a_warning_that_lists_all(settings: Any) -> None:
    settings.PEASY_FOO = 5
    [message] = peasy_checks()
    assert message.id == "peasy_jobs.W005"
    assert message.msg == "PEASY_FOO is not a setting of peasy_jobs."
    assert message.hint == f"Remove it, or use one of {', '.join(DEFAULTS)}."


@pytest.mark.parametrize(
    "name",
    ["PEASY_DASHBOARD_PERMISSION", "PEASY_CAN_VIEW_JOB", "PEASY_JOB_JSON", "PEASY_MASK_ARGUMENT"],
)
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.at_all", "ModuleNotFoundError: No module named 'nowhere'"),
        ("tests.jobs.no_such_thing", 'ImportError: Module "tests.jobs" does not define a'),
        ("tests.waiting.DEADLINE", "it is not callable."),
        ("asyncio.sleep", "it is asynchronous."),
    ],
)
def test_a_callable_that_cannot_be_used_is_an_error_with_the_reason(
    settings: Any, name: str, path: str, reason: str
) -> None:
    setattr(settings, name, path)
    [message] = peasy_checks()
    assert message.id == "peasy_jobs.E022"
    assert message.msg.startswith(f"{name} is '{path}', which cannot be used: {reason}")
    assert message.hint == CALLABLE
    assert message.is_serious()


# The database


@pytest.fixture
def place_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Return a function that moves the jobs to an SQLite database of this name.

    The alias of the database is "jobs". It is never opened.
    """

    def place(name: Any) -> None:
        databases = {"default": {}, "jobs": {"ENGINE": "django.db.backends.sqlite3", "NAME": name}}
        configured = connections.configure_settings(databases)
        monkeypatch.setitem(connections.settings, "jobs", configured["jobs"])
        monkeypatch.setattr("django.db.router.routers", [JobsElsewhere()])

    yield place
    if hasattr(connections._connections, "jobs"):
        del connections["jobs"]


class JobsElsewhere:
    """A database router that puts the jobs into the database "jobs"."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "jobs" if model._meta.app_label == "peasy_jobs" else None


def test_a_router_that_separates_the_jobs_from_the_data_is_a_warning(
    place_jobs: Any, tmp_path: Path
) -> None:
    assert peasy_checks() == []
    place_jobs(tmp_path / "jobs.sqlite3")
    message, not_in_wal_mode = peasy_checks()
    assert message.id == "peasy_jobs.W002"
    assert message.msg == "A database router puts the jobs into 'jobs' instead of 'default'."
    assert "transaction.on_commit()" in message.hint
    assert not message.is_serious()
    assert not_in_wal_mode.id == "peasy_jobs.W003"


@pytest.mark.parametrize(
    ("option", "value"), [("init_command", ""), ("transaction_mode", "DEFERRED")]
)
def test_sqlite_without_wal_mode_or_immediate_transactions_is_a_warning(
    place_jobs: Any, tmp_path: Path, option: str, value: str
) -> None:
    options = {"init_command": "PRAGMA journal_mode=WAL;", "transaction_mode": "IMMEDIATE"}
    place_jobs(tmp_path / "jobs.sqlite3")
    connections.settings["jobs"]["OPTIONS"] = options
    assert peasy_check_ids() == ["W002"]
    options[option] = value
    assert peasy_check_ids() == ["W002", "W003"]


@pytest.mark.parametrize("name", [":memory:", "file:jobs?mode=memory&cache=shared"])
def test_an_in_memory_database_is_a_warning(place_jobs: Any, name: str) -> None:
    place_jobs(name)
    in_memory, other_database = peasy_checks()
    assert in_memory.id == "peasy_jobs.W001"
    assert in_memory.msg == "The jobs are in an in-memory database ('jobs')."
    assert "Set DATABASES['jobs'] to a file or a server." in in_memory.hint
    assert other_database.id == "peasy_jobs.W002"


@pytest.mark.parametrize("name", [":memory:", "file:jobs?mode=memory&cache=shared"])
def test_run_peasy_refuses_an_in_memory_database(place_jobs: Any, name: str) -> None:
    place_jobs(name)
    with pytest.raises(
        CommandError, match=r"in-memory database \('jobs'\), which run_peasy cannot see"
    ):
        call_command("run_peasy", "--exit-on-empty")


def test_the_in_memory_database_of_djangos_test_runner_is_no_warning(place_jobs: Any) -> None:
    """The test runner replaces the site's databases by its own before it runs the checks."""
    place_jobs("file:memorydb_jobs?mode=memory&cache=shared")
    assert peasy_check_ids() == ["W002"]
    with pytest.raises(CommandError, match="in-memory database"):
        call_command("run_peasy", "--exit-on-empty")


def test_djangos_test_runner_names_its_database_as_the_check_expects(place_jobs: Any) -> None:
    place_jobs(":memory:")
    name = connections["jobs"].creation._get_test_db_name()
    assert name.startswith("file:memorydb_jobs?mode=memory")


@pytest.fixture
def sqlite_version(
    place_jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Return a function that changes the version of SQLite as Python reports it."""
    place_jobs(tmp_path / "jobs.sqlite3")

    def pretend(*version: int) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))

    return pretend


def test_an_sqlite_that_is_too_old_is_an_error_with_its_version(sqlite_version: Any) -> None:
    sqlite_version(3, 34, 1)
    [error] = [message for message in peasy_checks() if message.is_serious()]
    assert error.id == "peasy_jobs.E015"
    assert error.msg == "SQLite is 3.34.1."
    assert "SQLite 3.35 or newer" in error.hint


def test_the_oldest_supported_sqlite_is_no_error(sqlite_version: Any) -> None:
    sqlite_version(3, 35, 0)
    assert [message for message in peasy_checks() if message.is_serious()] == []


@pytest.mark.parametrize(
    "name", ["memory", "file:jobs.sqlite3?mode=rwc", Path(":memory:.sqlite3")], ids=str
)
def test_a_file_is_not_mistaken_for_an_in_memory_database(place_jobs: Any, name: Any) -> None:
    place_jobs(name)
    assert not checks.is_in_memory("jobs")


def test_run_peasy_refuses_an_in_memory_database_in_one_line_and_exits_with_1(
    run_peasy: Callable[..., Any],
) -> None:
    memory = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    command = run_peasy(settings={"DATABASES": memory}, ready=False)
    assert command.wait() == 1
    output = command.output()
    assert "(peasy_jobs.W001)" in output
    assert "CommandError: The jobs are in an in-memory database ('default')" in output
    assert "Traceback" not in output


# The pages


@pytest.fixture
def without_django_htmx(settings: Any) -> None:
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_htmx"]


def test_a_dashboard_without_django_htmx_is_a_warning(without_django_htmx: None) -> None:
    [message] = peasy_checks()
    assert message.id == "peasy_jobs.W004"
    assert message.hint == 'Add "django_htmx" to INSTALLED_APPS.'


@pytest.mark.parametrize("urlconf", ["peasy_jobs.status_urls", "tests.apps", "nowhere.at_all"])
def test_a_site_without_the_dashboard_does_not_need_django_htmx(
    without_django_htmx: None, settings: Any, urlconf: str
) -> None:
    settings.ROOT_URLCONF = urlconf
    assert peasy_checks() == []


# The terminal


def test_run_peasy_continues_when_its_output_is_closed(run_peasy: Callable[..., Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = run_peasy(ready=False, stdout=write)
    os.close(write)
    (job,) = finished(jobs.echo("unheard"))
    assert job.result == "unheard"
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert "completed" in command.output()  # the log goes to standard error
    assert "Traceback" not in command.output()
