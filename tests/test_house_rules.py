"""The rules that keep the code readable: size budgets, and who may import, pickle or write what.

A budget accepts the exceptions listed here, each with its reason. Import Linter checks the layers
(`make lint`), ruff the length of lines.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.manual import ROOT
from tests.run import DJANGO_IN_BROWSER, DRIVER, NOT_DJANGO, SQLITE_ONLY
from tests.source_code import (
    FOLDERS,
    Function,
    Matcher,
    attributes_of,
    body_lines,
    count_lines,
    defined_more_than_once,
    functions_of,
    imports,
    modules_with,
    nesting_depth,
    parameter_count,
    parse_folder,
    writes_status,
)


@cache
def package() -> dict[str, ast.Module]:
    return parse_folder("peasy_jobs")


@cache
def everything() -> dict[str, ast.Module]:
    return {name: tree for folder in FOLDERS for name, tree in parse_folder(folder).items()}


# Budgets


class Budget(NamedTuple):
    """A limit, a function that measures the code, and the exceptions with their reasons.

    An exception names a module, or a class or function in it as `module: name`.
    """

    limit: int
    measure: Callable[[], dict[str, int]]
    exceptions: dict[str, str]


def module_of(what: str) -> str:
    return what.partition(":")[0]


def is_test_module(name: str) -> bool:
    return Path(name).name.startswith("test_")


def file_lengths() -> dict[str, int]:
    """Return the lines of every module but test modules, which hold all tests of one subject."""
    return {name: count_lines(name) for name in everything() if not is_test_module(name)}


def function_lengths() -> dict[str, int]:
    return {name: body_lines(function) for name, function in functions()}


def nesting_depths() -> dict[str, int]:
    return {name: nesting_depth(function) for name, function in functions()}


def functions() -> Iterator[tuple[str, Function]]:
    for name, tree in everything().items():
        for function_name, function in functions_of(tree):
            yield f"{name}: {function_name}", function


def parameter_counts() -> dict[str, int]:
    """Return the parameters of every function but tests, whose parameters are fixtures."""
    return {
        name: parameter_count(function)
        for name, function in functions()
        if not function.name.startswith("test_")
    }


def attribute_counts() -> dict[str, int]:
    return {
        f"{name}: {node.name}": len(attributes_of(node))
        for name, tree in everything().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


BUDGETS = {
    "lines of a file": Budget(
        500,
        file_lengths,
        {
            "tests/jobs.py": "the job functions of all tests",
        },
    ),
    "lines of a function": Budget(
        40,
        function_lengths,
        {
            "tests/faults/test_database_trouble.py": "one outage from its start to its end",
            "tests/test_state_machine.py": "one case for each step of the model",
            "tests/test_upgrade.py": "one table of stored values",
        },
    ),
    "parameters of a function": Budget(
        6,
        parameter_counts,
        {
            "peasy_jobs/peasy_jobs.py: Peasy.job": "the keyword-only options of @peasy.job",
            "tests/conftest.py: run_peasy.start": "what a test may vary of the command",
            "tests/processes.py: Command.__init__": "what a test may vary of the command",
        },
    ),
    "nested blocks of a function": Budget(
        3,
        nesting_depths,
        {
            "tests/test_queue.py": "transactions of two connections inside each other",
        },
    ),
    "attributes of a class": Budget(
        15,
        attribute_counts,
        {
            "peasy_jobs/conf.py: Conf": "one field for each setting",
        },
    ),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_nothing_exceeds_its_budget(name: str) -> None:
    limit, measure, exceptions = BUDGETS[name]
    over = {what: size for what, size in measure().items() if size > limit}
    accepted = {what for what in over if {what, module_of(what)} & set(exceptions)}
    assert {what: size for what, size in over.items() if what not in accepted} == {}


@pytest.mark.parametrize("name", BUDGETS)
def test_every_exception_to_a_budget_is_still_needed(name: str) -> None:
    limit, measure, exceptions = BUDGETS[name]
    over = {what for what, size in measure().items() if size > limit}
    assert set(exceptions) - over - {module_of(what) for what in over} == set()


@pytest.mark.parametrize(
    ("source", "depth"),
    [
        ("def f(): pass", 0),
        ("def f():\n for a in b:\n  if a: pass", 2),
        ("def f():\n if a: pass\n elif b: pass\n elif c: pass\n else: pass", 1),
        ("def f():\n if a: pass\n else:\n  for b in c: pass", 2),
        ("def f():\n try: pass\n except E:\n  while a:\n   with b: pass", 3),
        ("def f():\n match a:\n  case 1:\n   if b: pass", 2),
        ("def f():\n if a:\n  def g():\n   if b: pass", 1),
    ],
)
def test_nesting_counts_blocks_inside_each_other(source: str, depth: int) -> None:
    assert nesting_depth(ast.parse(source).body[0]) == depth


def test_parameters_are_counted_without_self() -> None:
    (function,) = ast.parse("def f(self, a, /, b, *c, d=1, **e): pass").body
    assert isinstance(function, ast.FunctionDef)
    assert parameter_count(function) == 3


def test_attributes_are_those_of_self_and_of_data_classes() -> None:
    source = "class A:\n a: int\n b = 1\n def f(self): self.c, self.d.e = 1, 2; other.g = 1"
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    assert attributes_of(definition) == {"a", "c"}


def test_the_lines_of_a_function_are_those_of_its_body() -> None:
    (function,) = ast.parse('def f(\n a,\n):\n """Two\n lines."""\n b = [\n ]\n return b').body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3


# Who may do what


def test_only_conf_reads_the_settings_of_the_site() -> None:
    assert modules_with(imports("django.conf"), package()) == {"peasy_jobs/conf.py"}


def test_only_payloads_pickles() -> None:
    picklers = imports("pickle", "cPickle", "_pickle", "shelve", "dill")
    assert modules_with(picklers, package()) == {"peasy_jobs/payloads.py"}


def test_only_the_store_writes_a_status() -> None:
    writers = modules_with(writes_status, package())
    assert writers, "the matcher finds the writers"
    assert [name for name in writers if not name.startswith("peasy_jobs/store/")] == []


def test_nothing_of_multiprocessing_is_used() -> None:
    assert modules_with(imports("multiprocessing", "concurrent"), package()) == set()


@pytest.mark.parametrize(
    ("matches", "source"),
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
def test_the_matchers_find_what_the_rules_forbid(matches: Matcher, source: str) -> None:
    assert modules_with(matches, {"": ast.parse(source)}) == {""}


@pytest.mark.parametrize(
    "source",
    [
        "jobs.filter(status='Q').update(title='x')",
        "print(job.status)",
        "JobUpdate(status='C')",
        "'status set'",
    ],
)
def test_reading_a_status_is_not_writing_it(source: str) -> None:
    assert modules_with(writes_status, {"": ast.parse(source)}) == set()


# Names

VAGUE_NAMES = {"utils", "helpers", "core", "common", "misc"}
# A name with another meaning in each of its modules
DEFINED_TWICE = {
    "COLUMNS": "the columns that each module reads or writes",
    "PREFIX": "of the names of settings, and of element ids",
    "UNITS": "single units at an axis, and pairs such as 2 h 5 min in a text",
}


def stems(trees: Mapping[str, ast.Module]) -> dict[str, str]:
    """Return the name of each module or package without its folders."""
    paths = {name: Path(name) for name in trees}
    return {
        name: path.parent.name if path.stem == "__init__" else path.stem
        for name, path in paths.items()
    }


def test_no_module_has_a_vague_name() -> None:
    assert [name for name, stem in stems(everything()).items() if stem in VAGUE_NAMES] == []


def test_no_module_has_the_name_of_one_in_the_standard_library() -> None:
    standard = sys.stdlib_module_names - {"__main__"}
    assert [name for name, stem in stems(package()).items() if stem in standard] == []


def test_a_constant_is_defined_in_one_module() -> None:
    twice = defined_more_than_once(package())
    assert {name: where for name, where in twice.items() if name not in DEFINED_TWICE} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [name for name, tree in package().items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


# The tests


@pytest.mark.parametrize("path", sorted({*SQLITE_ONLY, *DRIVER, *NOT_DJANGO, *DJANGO_IN_BROWSER}))
def test_the_plan_of_the_suites_names_files_that_exist(path: str) -> None:
    # pytest ignores `--ignore` of a file that is not there, so nothing else would notice.
    assert (ROOT / path).is_file()
