"""What was measured, as Markdown and as JSON. Measures nothing."""

import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from benchmarks import databases
from benchmarks.cells import RAW, Cell
from benchmarks.systems import OURS

TITLES = {
    "throughput": "Throughput: no-op jobs that wait when the runner starts, from the first start to the last finish",
    "latency": "Pick-up latency of a lone job on an idle runner",
    "enqueue": "Enqueueing",
    "orm": "Enqueueing beside the ORM's own ways to write the same rows",
    "work": "Jobs that take time",
    "idle": "A runner with nothing to do, room for four jobs",
    "growth": "A full table beside an empty one, 1 process, by turns",
    "dashboard": "The dashboard at 1,000,000 finished and 200,000 waiting jobs, one round",
}
SHORT = {  # part: its figure, and what it is called in the summary
    "throughput": ("jobs/s", "no-op jobs a second, outcomes kept"),
    "latency": ("p50 ms", "ms until an idle runner begins a job, half of them"),
}
OWN = ("orm", "work", "growth", "dashboard")  # of peasy_jobs alone, many figures each


def number(value: float) -> str:
    """Three digits at least, so that ranges can be compared."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"**{number(values[0])}**"
    return f"{number(min(values))} / **{number(statistics.median(values))}** / {number(max(values))}"


def best(cells: list[Cell], figure: str) -> Cell | None:
    """Whichever of these cells has the best median."""
    able = [cell for cell in cells if figure in cell.figures]
    choose = max if figure.endswith("/s") else min
    return choose(able, key=lambda cell: statistics.median(cell.figures[figure]), default=None)


def rounds(cells: list[Cell]) -> str:
    """How often each figure was measured, which differs when Ctrl-C has ended a round."""
    counts = {len(values) for cell in cells if not cell.once for values in cell.figures.values()} or {1}
    least, most = min(counts), max(counts)
    return f"{most} round{'s' * (most > 1)}" if least == most else f"{least} to {most} rounds"


def markdown(cells: list[Cell], facts: dict[str, str]) -> str:
    lines = [
        "# How fast",
        "",
        "What peasy_jobs and other queues have done on one machine, as `make bench` measures it.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        f"All systems by turns, {rounds(cells)}; each figure is minimum / **median** / maximum.",
        "The last column says how many times better the best figure of peasy_jobs on the same database is; for Redis, "
        "on SQLite. Below 1 it is worse.",
        "",
    ]
    for part in dict.fromkeys(cell.part for cell in cells):
        mine = [cell for cell in cells if cell.part == part]
        lines += [f"## {TITLES.get(part, part)}", ""]
        if part in OWN:
            lines += [*_own(mine), ""]
            continue
        for database in dict.fromkeys(cell.database for cell in mine):
            lines += [*_table([cell for cell in mine if cell.database == database], mine), ""]
    lines += ["## Settings", ""]
    lines += ["Every system runs the same job, logs at WARNING and has SQLite in WAL mode with synchronous NORMAL,"]
    lines += ["PostgreSQL and MariaDB as they are configured, Redis as it is shipped: without an append-only file."]
    lines += ["PostgreSQL has counted (ANALYZE) the jobs that wait before anybody is measured at them.", ""]
    systems = {cell.system.name: cell.system for cell in cells}
    lines += [f"- {system.title}: {system.settings}." for system in systems.values()]
    return "\n".join(lines) + "\n"


def _table(cells: list[Cell], part: list[Cell]) -> Iterator[str]:
    figures = list(dict.fromkeys(name for cell in cells for name in cell.figures))
    database = cells[0].database
    like = [cell for cell in part if cell.database == ("sqlite" if database == "redis" else database)]
    compared = figures[:1] if len({cell.system.name for cell in [*cells, *like]}) > 1 else []
    ours = {figure: best([cell for cell in like if cell.system.name == OURS], figure) for figure in compared}
    heads = [databases.NAMES[database], "setting", *(figures or ["figures"]), *["peasy_jobs"] * len(ours)]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|---|{'---:|' * (max(1, len(figures)) + len(ours))}"
    for cell in cells:
        values = [spread(cell.figures[figure]) if figure in cell.figures else "–" for figure in figures] or ["–"]
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
                "figures": {name: [round(value, 3) for value in values] for name, values in cell.figures.items()},
                "failures": cell.failures,
            }
            for cell in cells
        ],
    }


def summary(found: dict[str, Any]) -> str:
    """The best of ours and of the fastest peer on each database, of what `raw` returns."""
    parts = [part for part in SHORT if any(cell["part"] == part for cell in found["cells"])]
    names = [name for name in databases.NAMES if any(cell["database"] == name for cell in found["cells"])]
    lines = [f"| | {' | '.join(databases.NAMES[name] for name in names)} |", f"|---|{'---|' * len(names)}"]
    for part in parts:
        figure, words = SHORT[part]
        measured = [cell for cell in found["cells"] if cell["part"] == part and figure in cell["figures"]]
        choose = max if figure.endswith("/s") else min
        for title, is_ours in ((f"**peasy_jobs**: {words}", True), ("the fastest other there", False)):
            row = []
            for name in names:
                here = [cell for cell in measured if cell["database"] == name and cell["system"] != RAW.title]
                able = [cell for cell in here if (cell["system"] == OURS) == is_ours]
                top = choose(able, key=lambda cell: statistics.median(cell["figures"][figure]), default=None)
                row.append(_short(top, figure, is_ours))
            lines.append(f"| {title} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _short(cell: dict[str, Any] | None, figure: str, is_ours: bool) -> str:
    if cell is None:
        return "–"
    who = [cell["setting"]] if is_ours else [cell["system"], cell["setting"]]
    return f"{number(statistics.median(cell['figures'][figure]))} ({', '.join(filter(None, who))})".replace(" ()", "")
