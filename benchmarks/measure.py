"""The measurements that are the same for every system: enqueueing, throughput, latency."""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from benchmarks import databases
from benchmarks.peers import marks
from benchmarks.systems import System, Unable, Workers, environment

STALL = 30.0  # seconds without a job that began
Figures = dict[str, float]


@contextlib.contextmanager
def place(
    system: System, database: str, jobs: int, settings: dict[str, Any] | None = None, **more: str
) -> Iterator[tuple[dict[str, str], marks.Marks, Path]]:
    """Provide an empty, prepared database, marks for so many jobs, and a file for the log."""
    with tempfile.TemporaryDirectory(prefix="peasy-bench-") as name:
        directory = Path(name)
        with databases.fresh(database, directory) as url:
            path = directory / "marks"
            found = marks.create(path, jobs)
            env = environment(system, url, path, settings or {}, **more)
            system.call(env, "prepare")
            yield env, found, directory / "log"


def wait_for(found: marks.Marks, jobs: int) -> None:
    """Wait until so many jobs have begun."""
    done, since = -1, monotonic()
    while done < jobs:
        if monotonic() > since + STALL:
            raise Unable(
                f"stalled: {max(done, 0):,} of {jobs:,} jobs began, then none for {STALL:g} s"
            )
        sleep(0.05)
        if (now := found.done()) > done:
            done, since = now, monotonic()


def checked(system: System, env: dict[str, str], found: marks.Marks, jobs: int) -> dict[str, Any]:
    """Return the outcomes. Raise `Unable` unless every job ran once and is stored as completed."""
    outcomes: dict[str, Any] = system.call(env, "outcomes", jobs)
    if repeated := found.repeated():
        raise Unable(f"{repeated:,} of {jobs:,} jobs ran more than once")
    if outcomes["stored"] != jobs:
        raise Unable(
            f"{outcomes['stored']:,} of {jobs:,} jobs are stored as completed after one run"
        )
    return outcomes


def throughput(system: System, database: str, workers: Workers, jobs: int) -> Figures:
    """Return jobs per second from first start to last finish, all enqueued beforehand."""
    with place(system, database, jobs, {**system.fast, **workers.settings}) as (env, found, log):
        system.call(env, "preload", 0, jobs)
        databases.analyze(database, env["BENCH_URL"])
        with system.working(env, workers, log):
            wait_for(found, jobs)
            outcomes = checked(system, env, found, jobs)
        return {"jobs/s": jobs / (outcomes["seconds"] or found.seconds())}


def latency(system: System, database: str, samples: int, gap: float) -> Figures:
    """Measure from the return of enqueue, after its commit, to the first line of a lone job."""
    with (
        place(system, database, samples + 10) as (env, found, log),
        system.working(env, system.workers[0], log),
    ):
        return percentiles(system.call(env, "latency", 0, samples, gap))


def percentiles(waits: list[float]) -> Figures:
    waits = sorted(waits)
    p95 = waits[min(len(waits) - 1, int(len(waits) * 0.95))]
    return {"p50 ms": statistics.median(waits), "p95 ms": p95, "max ms": waits[-1]}


def enqueue(system: System, database: str, jobs: int) -> Figures:
    with place(system, database, jobs) as (env, _, _):
        rates: Figures = system.call(env, "enqueue", 0, jobs)
        return {f"{how}, jobs/s": rate for how, rate in rates.items()}
