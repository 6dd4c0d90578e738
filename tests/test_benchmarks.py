"""Tests that the benchmarks run, and report what they could not measure."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from benchmarks import measure, plot, report
from benchmarks.cells import RAW, Cell
from benchmarks.peers import marks
from benchmarks.systems import OURS, SYSTEMS, Unable
from tests.processes import REPOSITORY

pytestmark = pytest.mark.timeout(240)


def measured(system: str, rates: list[float], setting: str = "1 process") -> Cell:
    waiting = iter(rates)
    cell = Cell("throughput", SYSTEMS[system], "sqlite", setting, lambda: {"jobs/s": next(waiting)})
    for _ in rates:
        cell.measure()
    return cell


@pytest.mark.slow
@pytest.mark.skipif(settings.TEST_DATABASE != "sqlite", reason="it creates its own databases")
def test_a_quick_run_measures_ours_and_writes_a_table_and_a_picture(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--systems",
        OURS,
        "--databases",
        "sqlite",
    ]
    run = subprocess.run(
        [*command, "--only", "throughput,latency", "--out", str(tmp_path)],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PEASY_TEST_DB_NAME"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    cells = json.loads((tmp_path / "benchmark.json").read_text())["cells"]
    assert {cell["part"] for cell in cells} == {"throughput", "latency"}
    assert not [cell["failures"] for cell in cells if cell["failures"]]
    assert all(min(values) > 0 for cell in cells for values in cell["figures"].values())
    assert "| peasy_jobs | 2 processes | **" in (tmp_path / "benchmark.md").read_text()
    ElementTree.parse(tmp_path / "benchmark.svg")


def tables(cells: list[Cell], facts: dict[str, str] | None = None) -> str:
    return report.markdown(report.raw(cells, facts or {}))


def test_the_table_shows_the_spread_and_how_far_ahead_the_best_of_ours_is() -> None:
    cells = [
        measured(OURS, [900, 1000, 2000]),
        measured(OURS, [10, 10, 10], "1 thread"),
        measured("huey", [400, 500, 600]),
    ]
    table = tables(cells, {"cpu": "one"})
    assert "All systems in turn, 3 rounds;" in table
    assert "| peasy_jobs | 1 process | 900 / **1,000** / 2,000 |  |" in table
    assert "| huey 3.5.4 | 1 process | 400 / **500** / 600 | 2.00 × |" in table


def test_the_table_says_so_when_not_all_was_measured_in_the_last_round() -> None:
    cells = [measured(OURS, [900, 1000]), measured("huey", [400])]
    assert "All systems in turn, 1 to 2 rounds;" in tables(cells)


def test_a_round_in_which_a_peer_failed_is_one_that_was_measured() -> None:
    broken = measured("huey", [400])
    broken.failures.append("stalled")
    assert "All systems in turn, 2 rounds;" in tables([measured(OURS, [900, 1000]), broken])


def test_each_way_to_enqueue_has_a_ratio_where_others_have_that_way_too() -> None:
    def cell(system: str, database: str, *rates: float) -> Cell:
        names = ("one at a time, jobs/s", "in bulk, jobs/s")
        found = Cell(
            "enqueue", SYSTEMS[system], database, "", lambda: dict(zip(names, rates, strict=False))
        )
        found.measure()
        return found

    lines = tables(
        [
            cell(OURS, "postgres", 100, 500),
            cell("pgqueuer", "postgres", 200, 5000),
            cell(OURS, "sqlite", 100, 500),
            cell("huey", "sqlite", 400),
        ]
    ).splitlines()
    figures = "setting | one at a time, jobs/s | in bulk, jobs/s"
    one, bulk = "peasy_jobs, one at a time", "peasy_jobs, in bulk"
    assert f"| PostgreSQL | {figures} | {one} | {bulk} |" in lines
    assert "| pgqueuer 1.6.0 |  | **200** | **5,000** | 0.50 × | 0.10 × |" in lines
    assert f"| SQLite | {figures} | {one} |" in lines
    assert "| huey 3.5.4 |  | **400** | – | 0.25 × |" in lines


def test_a_peer_that_cannot_be_measured_is_in_the_table_with_the_reason() -> None:
    def stall() -> measure.Figures:
        raise Unable("stalled: 3 of 40 jobs began")

    stalled = Cell("throughput", SYSTEMS["peasy-jobs-0_4_1"], "sqlite", "1 process", stall)
    assert stalled.measure() == {}
    table = tables([measured(OURS, [1000]), stalled])
    assert "| peasy-jobs 0.4.1 | 1 process | not measured: stalled: 3 of 40 jobs began |" in table


def test_what_went_wrong_does_not_break_the_row_of_the_table() -> None:
    odd = "a | b\nc"
    partly, never = measured("huey", [400]), measured("django-tasks-db", [])
    own = Cell("work", SYSTEMS[OURS], "sqlite", "", lambda: {}, failures=[odd])
    for cell in (partly, never):
        cell.failures += [odd, odd]
    table = tables([partly, never, own])
    assert "| huey 3.5.4 | 1 process | **400** (2 failed: a / b c) |" in table
    assert "| django-tasks-db 0.13.0 | 1 process | not measured: a / b c |" in table
    assert "| not measured | a / b c |" in table


def test_what_takes_turns_by_itself_gives_a_figure_for_each_and_keeps_them_when_it_breaks_off() -> (
    None
):
    def turns() -> Iterator[measure.Figures]:
        yield {"jobs/s": 900.0}
        yield {"jobs/s": 1100.0, "share": 1.5}
        raise Unable("stalled")

    cell = Cell("growth", SYSTEMS[OURS], "sqlite", "", turns, once=True)
    assert cell.measure() == {"jobs/s": 1100.0, "share": 1.5}
    assert (cell.figures, cell.failures) == (
        {"jobs/s": [900.0, 1100.0], "share": [1.5]},
        ["stalled"],
    )


def test_a_job_that_ran_twice_or_is_not_stored_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, found = SYSTEMS[OURS], marks.create(tmp_path / "marks", 3)
    monkeypatch.setattr(type(system), "call", lambda *args: {"stored": 2, "seconds": 1.0})
    for number in range(3):
        found.mark(number)
    with pytest.raises(Unable, match="2 of 3 jobs are stored"):
        measure.checked(system, {}, found, 3)
    found.mark(1)
    with pytest.raises(Unable, match="1 of 3 jobs ran more than once"):
        measure.checked(system, {}, found, 3)


def test_the_picture_has_a_bar_for_the_best_setting_of_each_system() -> None:
    cells = [
        measured(OURS, [900, 1000]),
        measured(OURS, [2000], "4 threads"),
        measured("huey", [500]),
    ]
    picture = plot.svg(plot.panels(cells))
    assert picture.count('<rect class="bar') == 2
    assert "4 threads" in picture
    assert (
        ElementTree.fromstring(picture)
        .get("aria-label", "")
        .endswith("peasy_jobs 2,000, huey 3.5.4 500.")
    )


def test_the_picture_has_a_ground_of_its_own_in_light_and_in_dark() -> None:
    picture = plot.svg(plot.panels([measured(OURS, [900])]))
    assert picture.count(".ground { fill:") == 2 and picture.index(
        'class="ground"'
    ) < picture.index("<text")


def test_the_summary_has_the_best_of_ours_and_the_fastest_other_on_each_database() -> None:
    cells = [
        measured(OURS, [900]),
        measured(OURS, [28_691], "4 threads"),
        measured("huey", [500]),
        measured("huey", [400], "1 thread"),
    ]
    cells += [
        Cell("throughput", RAW, "sqlite", "batches of 100", lambda: {"jobs/s": 99_999}),
        Cell("latency", SYSTEMS[OURS], "mariadb", "", lambda: {"p50 ms": 61.0}),
    ]
    for cell in cells[-2:]:
        cell.measure()
    assert report.summary(report.raw(cells, {})).splitlines() == [
        "| | SQLite | MariaDB |",
        "|---|---|---|",
        "| **peasy_jobs**: no-op jobs per second, with stored outcomes | 28,700 (4 threads) | – |",
        "| the fastest other system | 500 (huey 3.5.4, 1 process) | not measured |",
        "| **peasy_jobs**: median wait of a single job, ms | – | 61.0 |",
        "| the fastest other system | not measured | not measured |",
        "",
        "Each figure is the median of 1 round.",
    ]


def test_the_manual_shows_what_the_benchmark_has_found() -> None:
    # `python -m benchmarks --draw` updates the page and the picture, and prints the README's
    # table.
    docs = REPOSITORY / "docs"
    found = json.loads((docs / "benchmark.json").read_text())
    assert report.summary(found) in (REPOSITORY / "README.md").read_text()
    assert report.markdown(found) == (docs / "benchmark.md").read_text()
    assert plot.svg(plot.panels(report.read(found))) == (docs / "benchmark.svg").read_text()
