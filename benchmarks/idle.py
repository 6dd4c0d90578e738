"""Measure an idle runner: CPU time, memory, and statements sent to the database."""

import os
from pathlib import Path
from time import monotonic, sleep

from benchmarks import databases
from benchmarks.measure import Figures, place, wait_for
from benchmarks.systems import OURS, System, Workers

WARM_UP = 20  # jobs
REST = 8.0  # seconds between the last job and the measurement


def idle(system: System, database: str, workers: Workers, seconds: float) -> Figures:
    with place(system, database, WARM_UP) as (env, found, log):
        system.call(env, "preload", 0, WARM_UP)
        counter = log.with_name("statements")
        counter.write_bytes(bytes(16))
        with system.working({**env, "BENCH_COUNTER": str(counter)}, workers, log) as pids:
            wait_for(found, WARM_UP)
            sleep(min(REST, seconds))
            before, asked, started = (
                _cpu(pids),
                _questions(system, database, env, counter),
                monotonic(),
            )
            sleep(seconds)
            minutes = (monotonic() - started) / 60
            spent, after = _cpu(pids) - before, _questions(system, database, env, counter)
            figures = {"CPU s/min": spent / minutes}
            figures |= {name: (after[name] - asked[name]) / minutes for name in after}
            return figures | {"PSS MiB": pss(pids), "processes": float(len(_tree(pids)))}


def _tree(pids: list[int]) -> list[int]:
    import psutil

    roots = [psutil.Process(pid) for pid in pids]
    return [process.pid for root in roots for process in (root, *root.children(recursive=True))]


def _cpu(pids: list[int]) -> float:
    """Return the CPU seconds of the process tree, from counters that are finer than ticks."""
    return sum(
        int(Path(task).read_text().split()[0]) / 1e9
        for pid in _tree(pids)
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def pss(pids: list[int]) -> float:
    lines = [
        line
        for pid in _tree(pids)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _questions(system: System, database: str, env: dict[str, str], counter: Path) -> Figures:
    """Return how much the database has been asked so far, in the unit it can report."""
    if database == "postgres":
        name = os.path.basename(env["BENCH_URL"])
        statement = (
            f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
        )
        return {"transactions/min": float(databases.execute(database, statement)[0][0])}
    if database == "mariadb":  # of the whole server, which must be idle otherwise
        answer = databases.execute(database, "SHOW GLOBAL STATUS LIKE 'Questions'")
        return {"statements/min": float(answer[0][1])}
    if database == "sqlite" and system.name == OURS:
        looks, statements = memoryview(counter.read_bytes()).cast("q")
        return {"data_version/min": float(looks), "statements/min": float(statements)}
    return {}
