"""Measure peasy_jobs alone: against plain SQL, with a full table, with jobs that take time."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from benchmarks import databases
from benchmarks.measure import Figures, checked, percentiles, place, wait_for
from benchmarks.peers.marks import Marks
from benchmarks.systems import KEEP_ALL, ONE, OURS, SYSTEMS, TIMEOUT, Unable, Workers, answer

SYSTEM = SYSTEMS[OURS]
THREADS = Workers("4 threads", "thread", 4)
SHORT = 0.005  # seconds


def probe(env: dict[str, str], *args: object) -> Any:
    return json.loads(answer([sys.executable, "-m", "benchmarks.probe", *map(str, args)], env))


def raw(database: str, jobs: int) -> Figures:
    with place(SYSTEM, database, 1) as (env, _, _):
        probe(env, "insert", 0, jobs, "default")
        databases.analyze(database, env["BENCH_URL"])
        figures: Figures = probe(env, "raw", jobs)
        return figures


def orm(database: str, jobs: int) -> Figures:
    with place(SYSTEM, database, 1) as (env, _, _):
        figures: Figures = probe(env, "compare", jobs)
        return figures


def work(database: str, jobs: int, long: float) -> Figures:
    """Measure many jobs that sleep for 5 ms, and one long job among many short ones."""
    figures = {}
    with place(SYSTEM, database, jobs, KEEP_ALL) as (env, found, log):
        probe(env, "sleepers", jobs, SHORT)
        with SYSTEM.working(env, THREADS, log):
            wait_for(found, jobs)
            checked(SYSTEM, env, found, jobs)
        ideal = jobs * SHORT / THREADS.concurrency
        figures[f"{jobs:,} jobs of 5 ms on 4 threads, times the ideal"] = (
            found.seconds() + SHORT
        ) / ideal
    for workers in (Workers("2 processes", concurrency=2), THREADS):
        with place(SYSTEM, database, jobs + 1, KEEP_ALL) as (env, found, log):
            probe(env, "mix", jobs, long)
            with SYSTEM.working(env, workers, log):
                wait_for(found, jobs + 1)
                checked(SYSTEM, env, found, jobs + 1)
            name = (
                f"longest pause between two of {jobs:,} short jobs"
                f" beside one of {long:g} s, {workers.label}, ms"
            )
            times = sorted(found.times[:jobs])
            figures[name] = 1000 * max(
                after - before for before, after in zip(times, times[1:], strict=False)
            )
    return figures


class Sizes(NamedTuple):
    """The numbers of jobs of `growth`."""

    jobs: int  # of a throughput measurement
    waiting: int
    finished: int
    samples: int  # of a latency measurement
    gap: float  # seconds between two of those
    turns: int = 3

    @property
    def numbers(self) -> int:
        """The job numbers that one turn needs."""
        return self.jobs + self.samples + 10


class Place(NamedTuple):
    """What `place` provides."""

    env: dict[str, str]
    found: Marks
    log: Path


def growth(database: str, sizes: Sizes) -> Iterator[Figures]:
    """Measure a runner of one queue on an empty and on a full table in turn, and then pruning."""
    total = sizes.turns * sizes.numbers + sizes.waiting
    with place(SYSTEM, database, total, KEEP_ALL, BENCH_QUEUES="default") as parts:
        full = Place(*parts)
        probe(full.env, "finished", sizes.finished)
        probe(full.env, "insert", sizes.turns * sizes.numbers, sizes.waiting, "other")
        for turn in range(sizes.turns):
            yield _growth_turn(database, full, turn, sizes)
        # A runner that exits when nothing is left prunes everything there is to prune.
        settings = {"BENCH_SETTINGS": '{"PEASY_PRUNE_GRACE": 0}'}
        yield {"pruning, rows/s": probe({**full.env, **settings}, "prune")}


def _growth_turn(database: str, full: Place, turn: int, sizes: Sizes) -> Figures:
    with place(SYSTEM, database, sizes.numbers, KEEP_ALL, BENCH_QUEUES="default") as empty:
        before = _one_queue(Place(*empty), 0, sizes)
    after = _one_queue(full, turn * sizes.numbers, sizes)
    rows = f"{sizes.waiting:,} waiting and {sizes.finished:,} finished rows"
    figures = {f"empty table, {name}": value for name, value in before.items()}
    figures |= {f"{rows} of another queue, {name}": value for name, value in after.items()}
    share = after["jobs/s"] / before["jobs/s"]
    figures[f"{rows} of another queue, share of the empty table's rate"] = share

    first = sizes.turns * sizes.numbers  # of the jobs that wait in the other queue
    begun = sum(1 for runs in full.found.runs[first:] if runs)
    if sizes.waiting - begun > sizes.jobs:
        with SYSTEM.working({**full.env, "BENCH_QUEUES": ""}, ONE, full.log):
            own = _rate(full.found, first + begun, sizes.jobs)
        figures[f"{rows} of its own, jobs/s"] = own
        share = own / before["jobs/s"]
        figures[f"{rows} of its own, share of the empty table's rate"] = share
    if repeated := full.found.repeated():
        raise Unable(f"{repeated:,} jobs ran more than once")
    return figures


def _one_queue(where: Place, first: int, sizes: Sizes) -> Figures:
    """Return the throughput of a runner of one queue, and then its latency."""
    env, found, log = where
    probe(env, "insert", first, sizes.jobs, "default")
    probe(env, "settle")
    with SYSTEM.working(env, ONE, log):
        rate = _rate(found, first, sizes.jobs)
        command = ("latency", first + sizes.jobs, sizes.samples, sizes.gap)
        waits = percentiles(SYSTEM.call(env, *command))
    return {"jobs/s": rate, **{f"latency {name}": value for name, value in waits.items()}}


def _rate(found: Marks, first: int, count: int) -> float:
    """Return jobs per second from the first start of these jobs to the last."""
    slots, deadline = found.runs[first : first + count], monotonic() + TIMEOUT
    while not all(slots):
        if monotonic() > deadline:
            raise Unable(
                f"{sum(1 for runs in slots if runs):,} of {count:,} jobs began within {TIMEOUT} s"
            )
        sleep(0.02)
    times = found.times[first : first + count]
    return count / (max(times) - min(times))


def dashboard(database: str) -> Figures:
    """Return the server time of the pages, as `benchmarks/dashboard.py` measures it."""
    printed = answer([sys.executable, "-m", "benchmarks.dashboard", database])
    lines = [line.split() for line in printed.splitlines() if line.startswith("/peasy/")]
    return {f"{page}, ms": float(milliseconds) for page, milliseconds, *_ in lines}
