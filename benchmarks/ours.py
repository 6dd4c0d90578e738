"""What is measured of peasy_jobs alone: beside the bare database, with a full table, with jobs that take time."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

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
    """Jobs that take time: many that sleep for 5 ms, and one long one among many short ones."""
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
            name = f"longest pause between two of {jobs:,} short jobs beside one of {long:g} s, {workers.label}, ms"
            times = sorted(found.times[:jobs])
            figures[name] = 1000 * max(
                after - before for before, after in zip(times, times[1:], strict=False)
            )
    return figures


def growth(
    database: str, jobs: int, waiting: int, finished: int, samples: int, gap: float, turns: int = 3
) -> Iterator[Figures]:
    """The same runner of one queue by turns on an empty table and on a full one; then pruning what has finished."""
    full = f"{waiting:,} waiting and {finished:,} finished rows"
    numbers = jobs + samples + 10  # of the jobs of one turn
    with place(SYSTEM, database, turns * numbers + waiting, KEEP_ALL, BENCH_QUEUES="default") as (
        env,
        found,
        log,
    ):
        probe(env, "finished", finished)
        probe(env, "insert", turns * numbers, waiting, "other")
        for turn in range(turns):
            with place(SYSTEM, database, numbers, KEEP_ALL, BENCH_QUEUES="default") as empty:
                before = _one_queue(*empty, 0, jobs, samples, gap)
            after = _one_queue(env, found, log, turn * numbers, jobs, samples, gap)
            figures = {f"empty table, {name}": value for name, value in before.items()}
            figures |= {f"{full} of another queue, {name}": value for name, value in after.items()}
            figures[f"{full} of another queue, share of the empty table's rate"] = (
                after["jobs/s"] / before["jobs/s"]
            )
            begun = sum(1 for runs in found.runs[turns * numbers :] if runs)
            if waiting - begun > jobs:
                with SYSTEM.working({**env, "BENCH_QUEUES": ""}, ONE, log):
                    own = _rate(found, turns * numbers + begun, jobs)
                figures[f"{full} of its own, jobs/s"] = own
                figures[f"{full} of its own, share of the empty table's rate"] = (
                    own / before["jobs/s"]
                )
            if found.repeated():
                raise Unable(f"{found.repeated():,} jobs ran more than once")
            yield figures
        # Through the front door: a runner that exits when nothing is left prunes all there is to prune.
        yield {
            "pruning, rows/s": probe({**env, "BENCH_SETTINGS": '{"PEASY_PRUNE_GRACE": 0}'}, "prune")
        }


def _one_queue(
    env: dict[str, str], found: Marks, log: Path, first: int, jobs: int, samples: int, gap: float
) -> Figures:
    """Throughput of a runner of one queue, and then its latency."""
    probe(env, "insert", first, jobs, "default")
    probe(env, "settle")
    with SYSTEM.working(env, ONE, log):
        rate = _rate(found, first, jobs)
        waits = percentiles(SYSTEM.call(env, "latency", first + jobs, samples, gap))
    return {"jobs/s": rate, **{f"latency {name}": value for name, value in waits.items()}}


def _rate(found: Marks, first: int, count: int) -> float:
    """Jobs per second from the first start of these jobs to the last, while they are being run."""
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
    """The server time of the pages at a million jobs, as `benchmarks/dashboard.py` measures it."""
    printed = answer([sys.executable, "-m", "benchmarks.dashboard", database])
    lines = [line.split() for line in printed.splitlines() if line.startswith("/peasy/")]
    return {f"{page}, ms": float(milliseconds) for page, milliseconds, *_ in lines}
