"""Measure peasy_jobs and other queues in turn: `make bench`, `python -m benchmarks --help`."""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import databases, machine, plot, report
from benchmarks.cells import PARTS, Cell, Plan
from benchmarks.systems import SYSTEMS, Unable


def chosen(known: list[str]) -> "argparse._ActionType":
    def names(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(known)}")
        return [name for name in known if name in text.split(",")]

    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    for option, known in (("only", PARTS), ("systems", SYSTEMS), ("databases", databases.NAMES)):
        names = list(known)
        parser.add_argument(
            f"--{option}",
            type=chosen(names),
            default=names,
            metavar="A,B",
            help=f"Only these of: {', '.join(names)}.",
        )
    parser.add_argument(
        "--repetitions", type=int, default=3, help="How often each figure is measured (default: 3)."
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="Factor for the number of jobs (default: 1)."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="One repetition at scale 0.01, to see that everything works.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="The folder to write to (default: docs)."
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="Measure nothing, only redraw the page and picture from benchmark.json.",
    )
    options = parser.parse_args()
    if options.quick:
        options.repetitions, options.scale = 1, 0.01
    return options


def install(cells: list[Cell]) -> list[Cell]:
    """Return the cells that can be measured. Record in each other one why it cannot."""
    reasons: dict[str, str] = {}
    for system in {cell.system.name: cell.system for cell in cells}.values():
        try:
            system.install()
        except Unable as error:
            reasons[system.name] = str(error)
    for kind in {cell.database for cell in cells}:
        if (version := databases.version(kind)).startswith("cannot"):
            reasons[kind] = f"{databases.NAMES[kind]} {version}"
    able = []
    for cell in cells:
        if reason := reasons.get(cell.system.name) or reasons.get(cell.database):
            cell.failures.append(reason)
        else:
            able.append(cell)
    return able


def write(cells: list[Cell], options: argparse.Namespace, facts: dict[str, str]) -> str:
    options.out.mkdir(parents=True, exist_ok=True)
    found = report.raw(cells, facts)
    (options.out / "benchmark.json").write_text(json.dumps(found, indent=1) + "\n")
    return draw(found, options.out)


def draw(found: dict[str, Any], out: Path) -> str:
    (out / "benchmark.md").write_text(report.markdown(found))
    if panels := plot.panels(report.read(found)):
        (out / "benchmark.svg").write_text(plot.svg(panels))
    return report.summary(found)


def main() -> None:
    options = arguments()
    if options.draw:
        print(draw(json.loads((options.out / "benchmark.json").read_text()), options.out))
        return
    facts = machine.describe(options.databases)
    cells = list(Plan(options.only, options.systems, options.databases, options.scale).cells())
    able = install(cells)
    with suppress(KeyboardInterrupt):  # keeps what has been measured until then
        for repetition in range(1, options.repetitions + 1):
            for cell in (cell for cell in able if repetition == 1 or not cell.once):
                measure(cell, f"{repetition}/{options.repetitions}")
            write(cells, options, facts)
    print(write(cells, options, facts))


def measure(cell: Cell, repetition: str) -> None:
    """Measure a cell once more, and print its figures or failures."""
    failures = len(cell.failures)
    figures = [f"{name}: {report.number(value)}" for name, value in cell.measure().items()]
    results = ", ".join([*figures, *cell.failures[failures:]])
    print(
        f"{repetition}, load {machine.load():.1f}, {cell}: {results}", file=sys.stderr, flush=True
    )


if __name__ == "__main__":
    main()
