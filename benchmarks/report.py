"""Write what was measured as Markdown and as JSON."""

import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from benchmarks import databases
from benchmarks.cells import PARTS, RAW, Cell, Plan
from benchmarks.systems import OURS, SYSTEMS

TITLES = {
    "throughput": "Throughput: no-op jobs enqueued beforehand, from first start to last finish",
    "latency": "Pick-up latency of a single job on an idle runner",
    "enqueue": "Enqueueing",
    "orm": "Enqueueing compared with the ORM writing the same rows",
    "work": "Jobs that take time",
    "idle": "An idle runner with four workers",
    "growth": "A full table compared with an empty one, 1 process, in turn",
    "dashboard": "The dashboard with 1,000,000 finished and 200,000 waiting jobs, one round",
}
NOTES = {
    "work": '"times the ideal": the ideal is 5 ms per job on four threads without a pause; 1.08 is'
    " 8 % longer.",
    "idle": "PSS is the memory of all processes of the runner; memory that several share is divided"
    " among them. data_version counts how often SQLite was asked for new commits, which reads no"
    " table.",
}
SHORT = (  # part, figure, and its name in the summary
    ("throughput", "jobs/s", "no-op jobs per second, with stored outcomes"),
    ("latency", "p50 ms", "median wait of a single job, ms"),
    ("enqueue", "one at a time, jobs/s", "jobs enqueued per second, one at a time"),
    ("enqueue", "in bulk, jobs/s", "jobs enqueued per second, in bulk (`map()`)"),
)
SETTINGS = (
    "## Settings",
    "",
    "Every system runs the same job, logs at WARNING and uses SQLite in WAL mode with"
    " synchronous NORMAL,",
    "PostgreSQL and MariaDB as configured, and Redis with its default configuration, which has"
    " no append-only file.",
    "PostgreSQL has up-to-date statistics (ANALYZE) of the waiting jobs before a measurement.",
    "",
)
OWN = ("orm", "work", "growth", "dashboard")  # of peasy_jobs alone, with many figures each


def number(value: float) -> str:
    """Format with at least three digits, so that ranges can be compared."""
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:,.1f}"
        if abs(value) >= 10
        else f"{value:,.2f}"
    )


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"**{number(values[0])}**"
    return (
        f"{number(min(values))} / **{number(statistics.median(values))}** / {number(max(values))}"
    )


def best(cells: list[Cell], figure: str) -> Cell | None:
    """Return the cell with the best median."""
    able = [cell for cell in cells if figure in cell.figures]
    choose = max if figure.endswith("/s") else min
    return choose(able, key=lambda cell: statistics.median(cell.figures[figure]), default=None)


def rounds(cells: list[Cell]) -> str:
    """Return how often each figure was measured or failed. Ctrl-C can end a round early."""
    repeated = [cell for cell in cells if not cell.once]
    counts = {
        len(values) + len(cell.failures) for cell in repeated for values in cell.figures.values()
    } or {1}
    least, most = min(counts), max(counts)
    return f"{most} round{'s' * (most > 1)}" if least == most else f"{least} to {most} rounds"


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of what `raw` returns."""
    cells, facts = read(found), found["machine"]
    lines = [
        "# Benchmark",
        "",
        "The figures of peasy_jobs and other queues on one machine, measured by `make bench`.",
        "",
        "A worker runs 20 jobs of 50 ms per second. For such jobs any system that runs a few"
        " hundred no-op jobs per second is fast enough.",
        "",
        f"{found['at'][:10]}, {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        f"All systems in turn, {rounds(cells)}; each figure is minimum / **median** / maximum.",
        "The last columns, such as `peasy_jobs, jobs/s`, compare the best figure of peasy_jobs on"
        " the same database (for Redis: on SQLite): 2 × is twice as good, below 1 × is worse.",
        "",
    ]
    for part in dict.fromkeys(cell.part for cell in cells):
        mine = [cell for cell in cells if cell.part == part]
        lines += [f"## {TITLES.get(part, part)}", ""]
        lines += [NOTES[part], ""] if part in NOTES else []
        if part in OWN:
            lines += [*_own(mine), ""]
            continue
        for database in dict.fromkeys(cell.database for cell in mine):
            lines += [*_table([cell for cell in mine if cell.database == database], mine), ""]
    lines += SETTINGS
    systems = {cell.system.name: cell.system for cell in cells}
    lines += [f"- {system.title}: {system.settings}." for system in systems.values()]
    return "\n".join(lines) + "\n"


def _table(cells: list[Cell], part: list[Cell]) -> Iterator[str]:
    figures = list(dict.fromkeys(name for cell in cells for name in cell.figures))
    database = cells[0].database
    like = [
        cell for cell in part if cell.database == ("sqlite" if database == "redis" else database)
    ]
    theirs = {name for cell in cells if cell.system.name != OURS for name in cell.figures}
    compared = [
        name for name in figures if name in theirs and (name == figures[0] or name.endswith("/s"))
    ]
    ours = {
        figure: best([cell for cell in like if cell.system.name == OURS], figure)
        for figure in compared
    }
    names = [f"peasy_jobs, {figure.removesuffix(', jobs/s')}" for figure in ours]
    heads = [databases.NAMES[database], "setting", *(figures or ["figures"]), *names]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|---|{'---:|' * (max(1, len(figures)) + len(ours))}"
    for cell in cells:
        values = [
            spread(cell.figures[figure]) if figure in cell.figures else "–" for figure in figures
        ] or ["–"]
        if not cell.figures:
            values[0] = f"not measured: {cell.trouble}"
        elif cell.failures:
            values[0] += f" ({len(cell.failures)} failed: {cell.trouble})"
        ratios = [_ratio(cell, figure, ours[figure]) for figure in ours]
        yield f"| {cell.system.title} | {cell.setting} | {' | '.join([*values, *ratios])} |"


def _own(cells: list[Cell]) -> Iterator[str]:
    """A line for each figure, a column for each database."""
    yield f"| | {' | '.join(databases.NAMES[cell.database] for cell in cells)} |"
    yield f"|---|{'---:|' * len(cells)}"
    for figure in dict.fromkeys(name for cell in cells for name in cell.figures):
        values = [spread(cell.figures[figure]) if figure in cell.figures else "–" for cell in cells]
        yield f"| {figure} | {' | '.join(values)} |"
    if any(cell.failures for cell in cells):
        yield f"| not measured | {' | '.join(cell.trouble or '–' for cell in cells)} |"


def _ratio(cell: Cell, figure: str, ours: Cell | None) -> str:
    if ours is None or figure not in cell.figures or cell.system.name == OURS:
        return ""
    mine, theirs = statistics.median(ours.figures[figure]), statistics.median(cell.figures[figure])
    ratio = mine / theirs if figure.endswith("/s") else theirs / mine
    return f"{number(ratio)} ×"


def raw(cells: list[Cell], facts: dict[str, str]) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "cells": [
            {
                "part": cell.part,
                "system": cell.system.title,
                "database": cell.database,
                "setting": cell.setting,
                "figures": {
                    name: [round(value, 3) for value in values]
                    for name, values in cell.figures.items()
                },
                "failures": cell.failures,
            }
            for cell in cells
        ],
    }


def read(found: dict[str, Any]) -> list[Cell]:
    """Return the cells from which `raw` made this."""
    planned = Plan(PARTS, SYSTEMS, databases.NAMES, 1).cells()
    known = {(cell.part, cell.system.title, cell.database, cell.setting): cell for cell in planned}
    cells = []
    for kept in found["cells"]:
        cell = known[kept["part"], kept["system"], kept["database"], kept["setting"]]
        cell.figures, cell.failures = kept["figures"], kept["failures"]
        cells.append(cell)
    return cells


def summary(found: dict[str, Any]) -> str:
    """Return the best of peasy_jobs and of the fastest other system on each database."""
    parts = [part for part, _, _ in SHORT]
    cells = [cell for cell in read(found) if cell.part in parts and cell.system is not RAW]
    names = [name for name in databases.NAMES if any(cell.database == name for cell in cells)]
    lines = [
        f"| | {' | '.join(databases.NAMES[name] for name in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for part, figure, words in SHORT:
        measured = [cell for cell in cells if cell.part == part]
        if not any(figure in cell.figures for cell in measured):
            continue
        ours, others = [], []
        for name in names:
            here = [cell for cell in measured if cell.database == name]
            theirs = [cell for cell in here if cell.system.name != OURS]
            ours.append(
                _short(best([cell for cell in here if cell.system.name == OURS], figure), figure)
            )
            others.append(_short(best(theirs, figure), figure) if theirs else "not measured")
        lines += [f"| **peasy_jobs**: {words} | {' | '.join(ours)} |"]
        lines += [f"| the fastest other system | {' | '.join(others)} |"]
    return "\n".join([*lines, "", f"Each figure is the median of {rounds(cells)}."]) + "\n"


def _short(cell: Cell | None, figure: str) -> str:
    if cell is None:
        return "–"
    median = float(f"{statistics.median(cell.figures[figure]):.3g}")
    who = [cell.setting] if cell.system.name == OURS else [cell.system.title, cell.setting]
    return f"{number(median)} ({', '.join(filter(None, who))})".replace(" ()", "")
