"""Measure Python source code for the house rules: sizes, imports, and writes of a job's status."""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "example_project", "peasy_jobs", "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Matcher = Callable[[ast.AST], bool]

BLOCKS = (
    ast.AsyncFor,
    ast.AsyncWith,
    ast.For,
    ast.If,
    ast.Match,
    ast.Try,
    ast.TryStar,
    ast.While,
    ast.With,
)


def parse_folder(folder: str) -> dict[str, ast.Module]:
    """Return the syntax tree of each module below a folder, by its path in the repository.

    Migrations are left out: Django generates them.
    """
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in paths}
    return {
        name: ast.parse(path.read_text(), name)
        for name, path in names.items()
        if "migrations" not in path.parts
    }


def count_lines(name: str) -> int:
    """Return the number of lines of a file of the repository."""
    return len((REPOSITORY / name).read_text().splitlines())


# Functions


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield every function below a node with its dotted name, nested functions included."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.ClassDef):
            yield from functions_of(child, f"{prefix}{child.name}.")
        elif isinstance(child, Function):
            yield f"{prefix}{child.name}", child
            yield from functions_of(child, f"{prefix}{child.name}.")
        else:
            yield from functions_of(child, prefix)


def body_lines(function: Function) -> int:
    """Return the number of lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameter_count(function: Function) -> int:
    """Return the number of parameters without `self`, `cls`, `*args` and `**kwargs`."""
    arguments = function.args
    names = [
        argument.arg
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    ]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def nesting_depth(node: ast.AST) -> int:
    """Return how many blocks stand inside each other below a node.

    An `elif` counts as its `if`. A nested function is measured by itself.
    """
    depths = [0]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        depths.append(nesting_depth(child) + (is_block(child) and not is_elif))
    return max(depths)


def is_block(node: ast.AST) -> bool:
    return isinstance(node, BLOCKS)


# Classes


def attributes_of(definition: ast.ClassDef) -> set[str]:
    """Return the attributes a class assigns on `self`, or declares as a data class does."""
    declared = {
        statement.target.id
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    assigned = {
        node.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return declared | assigned


# Modules


def constants_of(tree: ast.Module) -> set[str]:
    """Return the constants a module assigns at its top level."""
    targets: list[ast.expr] = []
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    names = {
        node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
    }
    return {name for name in names if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}


def defined_more_than_once(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return each constant that several modules define, with those modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for constant in constants_of(tree):
            modules[constant].append(name)
    return {constant: names for constant, names in modules.items() if len(names) > 1}


def modules_with(matches: Matcher, trees: dict[str, ast.Module]) -> set[str]:
    """Return the modules with at least one node that `matches`."""
    return {name for name, tree in trees.items() if any(map(matches, ast.walk(tree)))}


# Matchers


def imports(*modules: str) -> Matcher:
    """Return a matcher of statements that import one of these modules or anything below it."""
    return lambda node: any(
        f"{name}.".startswith(f"{module}.") for name in imported_names(node) for module in modules
    )


def imported_names(node: ast.AST) -> list[str]:
    """Return the dotted names a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "use absolute imports"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


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
    """Match an assignment to `….status`, a write call that names `status`, or SQL that sets it."""
    if isinstance(node, ast.Attribute):
        return node.attr == "status" and isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        sets_status = re.search(r"\bSET\b.*\bstatus\s*=", node.value, re.DOTALL) is not None
        return sets_status or "INSERT INTO" in node.value
    if isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {keyword.arg for keyword in node.keywords}
        texts = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
        return called in WRITERS and "status" in keywords | texts
    return False
