"""The measurements: one cell for each row of the tables, in the order of a round."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from benchmarks import idle as idling
from benchmarks import measure, ours
from benchmarks.measure import Figures
from benchmarks.systems import OURS, SYSTEMS, System, Unable

# Not a system: what each database does with plain SQL, without running jobs.
RAW = System(
    "raw",
    "the database alone",
    jobs={},
    workers=(),
    settings="bare SQL, claim and finish in batches of 100",
)


@dataclass
class Cell:
    part: str
    system: System
    database: str
    setting: str
    run: Callable[[], Figures | Iterable[Figures]]  # an iterable if it alternates by itself
    once: bool = False  # only in the first round, because filling the tables takes minutes
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return " · ".join(filter(None, (self.part, self.system.title, self.database, self.setting)))

    @property
    def trouble(self) -> str:
        """Return each failure once, in a form that fits into a cell of a Markdown table."""
        return " ".join("; ".join(dict.fromkeys(self.failures)).replace("|", "/").split())

    def measure(self) -> Figures:
        """Measure once more. Keep failures for the table. Return the last value of each figure."""
        measured: Figures = {}
        try:
            found = self.run()
            for figures in [found] if isinstance(found, dict) else found:
                for name, value in figures.items():
                    self.figures.setdefault(name, []).append(value)
                measured |= figures
        except Unable as error:
            self.failures.append(str(error))
        except Exception as error:  # a failing system must not stop the measurement of the others
            self.failures.append(f"{type(error).__name__}: {error}"[:300])
        return measured


@dataclass(frozen=True)
class Plan:
    parts: Collection[str]
    systems: Collection[str]
    databases: Collection[str]
    scale: float  # factor for all sizes; the published tables use 1

    def jobs(self, count: int, least: int = 30) -> int:
        return max(least, int(count * self.scale))

    def seconds(self, whole: float) -> float:
        return max(2.0, whole * self.scale)

    def gap(self, system: System) -> float:
        return system.gap * min(1.0, self.scale * 10)

    def cells(self) -> Iterator[Cell]:
        for part in PARTS:
            if part in self.parts:
                yield from PARTS[part](self)

    def own(self) -> list[str]:
        """Return the databases on which peasy_jobs is measured by itself."""
        return [
            name for name in self.databases if OURS in self.systems and name in SYSTEMS[OURS].jobs
        ]

    def pairs(self) -> Iterator[tuple[System, str]]:
        """Yield each system with each of its databases, grouped by database."""
        for database in self.databases:
            for name in self.systems:
                if database in SYSTEMS[name].jobs:
                    yield SYSTEMS[name], database


def throughput(plan: Plan) -> Iterator[Cell]:
    for system, database in plan.pairs():
        jobs = plan.jobs(system.jobs[database])
        if system.name == OURS:
            yield Cell(
                "throughput", RAW, database, "batches of 100", partial(ours.raw, database, jobs)
            )
        for workers in system.workers:
            if workers.databases and database not in workers.databases:
                continue
            run = partial(measure.throughput, system, database, workers, jobs * workers.runners)
            yield Cell("throughput", system, database, workers.label, run)


def latency(plan: Plan) -> Iterator[Cell]:
    for system, database in plan.pairs():
        run = partial(
            measure.latency, system, database, plan.jobs(system.samples, 5), plan.gap(system)
        )
        yield Cell("latency", system, database, "", run)


def enqueue(plan: Plan) -> Iterator[Cell]:
    for system, database in plan.pairs():
        yield Cell(
            "enqueue",
            system,
            database,
            "",
            partial(measure.enqueue, system, database, plan.jobs(3_000)),
        )


def idle(plan: Plan) -> Iterator[Cell]:
    for system, database in plan.pairs():
        for workers in system.idle:
            run = partial(idling.idle, system, database, workers, plan.seconds(20))
            yield Cell("idle", system, database, workers.label, run)


def orm(plan: Plan) -> Iterator[Cell]:
    for database in plan.own():
        yield Cell(
            "orm", SYSTEMS[OURS], database, "", partial(ours.orm, database, plan.jobs(3_000))
        )


def work(plan: Plan) -> Iterator[Cell]:
    for database in plan.own():
        run = partial(ours.work, database, plan.jobs(10_000), plan.seconds(30))
        yield Cell("work", SYSTEMS[OURS], database, "", run)


def growth(plan: Plan) -> Iterator[Cell]:
    system = SYSTEMS[OURS]
    for database in plan.own():
        sizes = ours.Sizes(
            jobs=plan.jobs(system.jobs[database] // 3),
            waiting=plan.jobs(200_000),
            finished=plan.jobs(1_000_000),
            samples=plan.jobs(20, 5),
            gap=plan.gap(system),
        )
        run = partial(ours.growth, database, sizes)
        yield Cell("growth", system, database, "", run, once=True)


def dashboard(plan: Plan) -> Iterator[Cell]:
    # The script always measures at full size.
    for database in plan.own() if plan.scale >= 1 else ():
        yield Cell(
            "dashboard", SYSTEMS[OURS], database, "", partial(ours.dashboard, database), once=True
        )


PARTS: dict[str, Callable[[Plan], Iterator[Cell]]] = {
    "throughput": throughput,
    "latency": latency,
    "enqueue": enqueue,
    "orm": orm,
    "work": work,
    "idle": idle,
    "growth": growth,
    "dashboard": dashboard,
}
