"""Every wrong setting is refused with an id, the value and the remedy; and the package keeps the rules of its house."""

import ast
import math
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from peasy_jobs import checks, conf
from peasy_jobs.models import PeasyRunner
from tests import jobs, processes
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
KEEP = "Set it to how many of them to keep, a whole number, or to None to keep all."
SECONDS = "Set it to a number of seconds, {} or more."
NO_COUNT = (-1, 1.5, "10", True, 2**63, [10])
NO_SECONDS = (-0.001, "1", None, True, math.nan, math.inf, 10**400, 1e300, [1])
# setting: (id, hint, right values, wrong values)
RULES: dict[str, tuple[str, str, tuple[Any, ...], tuple[Any, ...]]] = {
    "PEASY_MAX_COMPLETED": ("E001", KEEP, (None, 0, 10**6), NO_COUNT),
    "PEASY_MAX_FAILED": ("E002", KEEP, (None, 0, 10**6), NO_COUNT),
    "PEASY_MAX_CANCELLED": ("E003", KEEP, (None, 0, 10**6), NO_COUNT),
    "PEASY_PRUNE_GRACE": ("E004", SECONDS.format("0"), (0, 0.5, 86400), NO_SECONDS),
    "PEASY_POLLING_INTERVAL": (
        "E005",
        SECONDS.format("0.01"),
        (0.01, 1, 60),
        (0, 0.009, *NO_SECONDS),
    ),
    "PEASY_CONCURRENCY": (
        "E006",
        "Set it to how many workers a runner has, a whole number, 1 or more.",
        (1, 64),
        (0, None, *NO_COUNT),
    ),
    "PEASY_WORKER_TYPE": (
        "E007",
        'Set it to "process" or "thread".',
        ("process", "thread"),
        ("greenlet", "", None, 1, ["process"]),
    ),
    "PEASY_SHUTDOWN_TIMEOUT": ("E008", SECONDS.format("0"), (0, 0.5, 3600), NO_SECONDS),
    "PEASY_LEASE": ("E009", SECONDS.format("2"), (2, 2.5, 3600), (0, 1.9, *NO_SECONDS)),
    "PEASY_CRASH_RETRIES": (
        "E010",
        "Set it to a whole number, 0 or more.",
        (0, 3),
        (None, *NO_COUNT),
    ),
    "PEASY_MAX_PAYLOAD": (
        "E011",
        "Set it to a number of bytes, 1 or more.",
        (1, 2**40),
        (0, None, *NO_COUNT),
    ),
    "PEASY_JOB_TIMEOUT": (
        "E013",
        "Set it to a number of seconds above 0, or to None for no limit.",
        (None, 0.5, 3600),
        (0, *[value for value in NO_SECONDS if value is not None]),
    ),
    "PEASY_MAX_JOBS_PER_WORKER": (
        "E014",
        "Set it to a whole number of jobs, 1 or more, or to None to keep workers for good.",
        (None, 1, 1000),
        (0, *NO_COUNT),
    ),
    "PEASY_SERIALIZER": (
        "E012",
        'Set it to "pickle" or "json".',
        ("pickle", "json"),
        ("yaml", "", None, 1, {}),
    ),
    "PEASY_TOKEN_MAX_AGE": ("E016", SECONDS.format("1"), (1, 3600), (0, 0.9, *NO_SECONDS)),
    "PEASY_DASHBOARD_POLL": (
        "E017",
        "Set it to seconds, 1 or more, or to 0 for none.",
        (0, 1, 5.5),
        (0.5, *NO_SECONDS),
    ),
    **{
        name: (
            id,
            "Set it to the dotted path of a callable, or to None.",
            (None, "django.contrib.auth.get_user"),
            ("", "may", 1, len),
        )
        for name, id in (
            ("PEASY_DASHBOARD_PERMISSION", "E018"),
            ("PEASY_CAN_VIEW_JOB", "E019"),
            ("PEASY_JOB_JSON", "E020"),
            ("PEASY_MASK_ARGUMENT", "E021"),
        )
    },
}


def cases(column: int) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{n}")
        for name, rule in RULES.items()
        for n, value in enumerate(rule[column])
    ]


# The settings


def test_every_setting_has_the_documented_default() -> None:
    given = {f"PEASY_{name.upper()}": value for name, value in asdict(conf.get()).items()}
    assert given == DEFAULTS
    assert not [name for name in dir(django_settings) if name.startswith("PEASY_")], (
        "the tests give none"
    )


def test_every_setting_has_a_rule_and_an_id_of_its_own() -> None:
    assert set(RULES) == set(DEFAULTS)
    assert len({rule[0] for rule in RULES.values()}) == len(RULES)
    assert {f"PEASY_{name.upper()}" for name in conf.RULES} == set(RULES)


@pytest.mark.parametrize(("name", "value"), cases(2))
def test_a_right_value_is_taken(settings: Any, name: str, value: Any) -> None:
    setattr(settings, name, value)
    assert getattr(conf.get(), name.removeprefix("PEASY_").lower()) == value
    assert not run_checks(tags=["peasy_jobs"])


@pytest.mark.parametrize(("name", "value"), cases(3))
def test_a_wrong_value_is_a_check_with_its_id_the_value_and_the_remedy(
    settings: Any, name: str, value: Any
) -> None:
    setattr(settings, name, value)
    [message] = run_checks(tags=["peasy_jobs"])
    assert message.id == f"peasy_jobs.{RULES[name][0]}"
    assert message.msg == f"{name} is {value!r}."
    assert message.hint == RULES[name][1]
    assert message.is_serious()


@pytest.mark.parametrize(("name", "value"), cases(3))
def test_nothing_works_with_a_wrong_value(settings: Any, name: str, value: Any) -> None:
    conf.get()  # read when it was still right
    setattr(settings, name, value)
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured) as refused:
            conf.get()
        assert str(refused.value) == f"{name} is {value!r}. {RULES[name][1]}"
    delattr(settings, name)
    assert conf.get().lease == 30


def test_all_wrong_values_are_told_at_once(settings: Any) -> None:
    settings.PEASY_LEASE, settings.PEASY_CONCURRENCY = 0, 0
    assert {message.id for message in run_checks(tags=["peasy_jobs"])} == {
        "peasy_jobs.E006",
        "peasy_jobs.E009",
    }


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "value"), [(name, rule[3][0]) for name, rule in RULES.items()])
def test_run_peasy_refuses_to_start_on_a_wrong_value(settings: Any, name: str, value: Any) -> None:
    setattr(settings, name, value)
    with pytest.raises(SystemCheckError, match=rf"\(peasy_jobs.{RULES[name][0]}\) {name} is "):
        call_command("run_peasy", "--exit-on-empty", skip_checks=False, stderr=StringIO())
    with pytest.raises(ImproperlyConfigured, match=f"{name} is "):
        call_command("run_peasy", "--exit-on-empty", skip_checks=True)
    assert not PeasyRunner.objects.exists()


def test_run_peasy_says_what_to_do_about_a_wrong_value_and_exits_with_1(
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
def test_a_misspelled_setting_is_a_warning_that_names_the_one_that_is_meant(
    settings: Any, name: str, meant: str
) -> None:
    setattr(settings, name, 5)
    [message] = run_checks(tags=["peasy_jobs"])
    assert (message.id, message.is_serious()) == ("peasy_jobs.W005", False)
    assert message.msg == f"{name} is no setting of peasy_jobs."
    assert message.hint == f"Did you mean {meant}?"
    delattr(settings, name)
    assert not run_checks(tags=["peasy_jobs"])


def test_a_setting_that_is_like_none_is_a_warning_with_all_there_are(settings: Any) -> None:
    settings.PEASY_FOO = 5
    [message] = run_checks(tags=["peasy_jobs"])
    assert (message.id, message.msg) == (
        "peasy_jobs.W005",
        "PEASY_FOO is no setting of peasy_jobs.",
    )
    assert all(name in str(message.hint) for name in DEFAULTS)


# The database


@pytest.fixture
def another_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Makes the jobs live in an SQLite database of this name, with the alias "jobs"; it is never opened."""

    def place(name: Any) -> None:
        given = {"default": {}, "jobs": {"ENGINE": "django.db.backends.sqlite3", "NAME": name}}
        monkeypatch.setitem(
            connections.settings, "jobs", connections.configure_settings(given)["jobs"]
        )
        monkeypatch.setattr("django.db.router.routers", [JobsElsewhere()])

    yield place
    if hasattr(connections._connections, "jobs"):
        del connections["jobs"]


class JobsElsewhere:
    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "jobs" if model._meta.app_label == "peasy_jobs" else None


def test_a_router_that_parts_the_jobs_from_the_data_is_a_warning(
    another_database: Any, tmp_path: Path
) -> None:
    assert not run_checks(tags=["peasy_jobs"])
    another_database(tmp_path / "jobs.sqlite3")
    [message, _] = run_checks(tags=["peasy_jobs"])  # the other one: it is not in WAL mode
    assert message.id == "peasy_jobs.W002"
    assert (
        message.msg
        == "A database router puts the jobs into 'jobs', apart from the data in 'default'."
    )
    assert "transaction.on_commit()" in message.hint
    assert not message.is_serious()


@pytest.mark.parametrize("name", [":memory:", "file:jobs?mode=memory&cache=shared"])
def test_an_in_memory_database_is_a_warning_and_run_peasy_refuses_it(
    another_database: Any, name: str
) -> None:
    another_database(name)
    first, second = run_checks(tags=["peasy_jobs"])
    assert (first.id, second.id) == ("peasy_jobs.W001", "peasy_jobs.W002")
    assert first.msg == "The jobs are in an in-memory database ('jobs')."
    assert "give DATABASES a file or a server" in first.hint
    with pytest.raises(
        CommandError, match=r"in-memory database \('jobs'\), which run_peasy cannot see"
    ):
        call_command("run_peasy", "--exit-on-empty")


def test_the_database_in_memory_that_a_test_runner_makes_is_no_warning(
    another_database: Any,
) -> None:
    """Django checks a site's databases after it has put its own in their place."""
    another_database("file:memorydb_jobs?mode=memory&cache=shared")
    assert [message.id for message in run_checks(tags=["peasy_jobs"])] == ["peasy_jobs.W002"]
    with pytest.raises(CommandError, match="in-memory database"):
        call_command("run_peasy", "--exit-on-empty")


def test_djangos_test_runner_names_its_database_as_we_think(another_database: Any) -> None:
    another_database(":memory:")
    made = connections["jobs"].creation._get_test_db_name()
    assert made.startswith("file:memorydb_jobs?mode=memory")


@pytest.mark.parametrize("version", [(3, 34, 1), (3, 35, 0)])
def test_an_sqlite_that_cannot_claim_is_an_error_with_its_version(
    another_database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
) -> None:
    another_database(tmp_path / "jobs.sqlite3")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))
    errors = [message for message in run_checks(tags=["peasy_jobs"]) if message.is_serious()]
    assert [(error.id, error.msg) for error in errors] == (
        [("peasy_jobs.E015", "SQLite is 3.34.1.")] if version < (3, 35) else []
    )
    assert not errors or "SQLite 3.35 or newer" in errors[0].hint


@pytest.mark.parametrize(
    "name", ["memory", "file:jobs.sqlite3?mode=rwc", Path(":memory:.sqlite3")], ids=str
)
def test_a_file_is_not_taken_for_an_in_memory_database(another_database: Any, name: Any) -> None:
    another_database(name)
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


@pytest.mark.parametrize(
    "name",
    ["PEASY_DASHBOARD_PERMISSION", "PEASY_CAN_VIEW_JOB", "PEASY_JOB_JSON", "PEASY_MASK_ARGUMENT"],
)
@pytest.mark.parametrize(
    "path",
    ["nowhere.at_all", "tests.jobs.no_such_thing", "tests.waiting.DEADLINE", "asyncio.sleep"],
)
def test_a_hook_that_is_not_there_is_an_error(settings: Any, name: str, path: str) -> None:
    setattr(settings, name, path)
    (message,) = run_checks(tags=["peasy_jobs"])
    assert (message.id, message.is_serious()) == ("peasy_jobs.E022", True)
    assert message.msg.startswith(f"{name} is '{path}', which cannot be used: ")


def test_the_pages_without_django_htmx_are_warned_of(settings: Any) -> None:
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_htmx"]
    (message,) = run_checks(tags=["peasy_jobs"])
    assert message.id == "peasy_jobs.W004"
    assert message.hint == 'Add "django_htmx" to INSTALLED_APPS.'
    for module in ("peasy_jobs.status_urls", "tests.apps", "nowhere.at_all"):
        settings.ROOT_URLCONF = module
        assert not run_checks(tags=["peasy_jobs"])


# The terminal


def test_run_peasy_goes_on_when_nobody_reads_what_it_prints(run_peasy: Callable[..., Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = run_peasy(ready=False, stdout=write)
    os.close(write)
    (job,) = finished(jobs.echo("unheard"))
    assert job.result == "unheard"
    command.signal(signal.SIGINT)
    assert command.wait() == 0
    assert "completed" in command.output()  # the log goes elsewhere
    assert "Traceback" not in command.output()


# The house

PACKAGE = processes.REPOSITORY / "peasy_jobs"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), name) for name, path in FILES.items()}
ROOMS = [name for name in TREES if not name.startswith("migrations/")]

Finder = Callable[[ast.AST], bool]


def where(finds: Finder, names: list[str] = ROOMS) -> dict[str, list[int]]:
    """The files, and the lines in them, in which `finds` finds something."""
    found = {name: [node.lineno for node in ast.walk(TREES[name]) if finds(node)] for name in names}
    return {name: lines for name, lines in found.items() if lines}


def imported(node: ast.AST) -> list[str]:
    """The dotted names of what a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "the package imports by full names"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(*modules: str) -> Finder:
    return lambda node: any(
        (name + ".").startswith(f"{module}.") for name in imported(node) for module in modules
    )


WRITERS = {
    "update",
    "create",
    "get_or_create",
    "update_or_create",
    "bulk_create",
    "bulk_update",
    "enqueue",
}
WRITERS |= {f"a{name}" for name in WRITERS} | {"save", "asave", "PeasyJobQueue", "setattr"}


def writes_status(node: ast.AST) -> bool:
    """An assignment to `….status`, a write call that names `status`, or SQL that sets it."""
    if isinstance(node, ast.Attribute):
        return node.attr == "status" and isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (
            re.search(r"\bSET\b.*\bstatus\s*=", node.value, re.DOTALL) is not None
            or "INSERT INTO" in node.value
        )
    if isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        named = {keyword.arg for keyword in node.keywords}
        texts = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
        return called in WRITERS and ("status" in named or "status" in texts)
    return False


@pytest.mark.parametrize(
    ("finds", "source"),
    [
        (imports("pickle"), "import pickle"),
        (imports("pickle"), "from pickle import loads"),
        (imports("django.conf"), "from django.conf import settings"),
        (imports("django.conf"), "import django.conf as c"),
        (imports("multiprocessing"), "from multiprocessing.connection import wait"),
        (imports("multiprocessing"), "import os, multiprocessing"),
        (writes_status, "job.status = 'C'"),
        (writes_status, "job.status, x = 'C', 1"),
        (writes_status, "jobs.filter(pk=1).update(status='C')"),
        (writes_status, "PeasyJobQueue(title='x', status='C')"),
        (writes_status, "PeasyJobQueue.objects.bulk_update(jobs, ['status'])"),
        (writes_status, "job.save(update_fields=('status', 'title'))"),
        (writes_status, "setattr(job, 'status', 'C')"),
        (writes_status, "cursor.execute('UPDATE t SET status = %s')"),
        (writes_status, "cursor.execute(f'UPDATE {t} SET status = %s')"),
    ],
)
def test_the_finders_below_find(finds: Finder, source: str) -> None:
    assert any(finds(node) for node in ast.walk(ast.parse(source)))


def test_the_status_finder_leaves_reading_alone() -> None:
    source = "jobs.filter(status='Q').update(title='x'); print(job.status); JobUpdate(status='C'); 'status set'"
    assert not any(writes_status(node) for node in ast.walk(ast.parse(source)))


def test_only_conf_reads_the_settings_of_the_site() -> None:
    assert set(where(imports("django.conf"))) == {"conf.py"}


def test_only_payloads_pickles() -> None:
    assert set(where(imports("pickle", "cPickle", "_pickle", "shelve", "dill"), list(TREES))) == {
        "payloads.py"
    }


def test_only_queue_writes_a_status() -> None:
    assert set(where(writes_status)) == {"store/querysets.py"}


def test_nothing_of_multiprocessing_is_used() -> None:
    assert where(imports("multiprocessing", "concurrent"), list(TREES)) == {}


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_500_lines(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 500


def functions() -> Iterator[tuple[str, int]]:
    """Every function with the number of lines of its body, without the docstring."""
    for name in ROOMS:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{name}:{node.lineno} {node.name}", lines


def test_no_function_body_is_longer_than_40_lines() -> None:
    lines = dict(functions())
    assert len(lines) > 100, "they are counted at all"
    assert {name: count for name, count in lines.items() if count > 40} == {}


def test_nothing_is_called_a_utility() -> None:
    assert not [
        name for name in FILES if Path(name).stem in ("utils", "helpers", "core", "common", "misc")
    ]


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name
        for name in ROOMS
        if FILES[name].read_text().strip() and not ast.get_docstring(TREES[name])
    ]
    assert silent == []
