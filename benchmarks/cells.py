"""The list of what is measured: one cell for each figure of the tables, in the order of a round."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from benchmarks import idle as idling
from benchmarks import measure, ours
from benchmarks.measure import Figures
from benchmarks.systems import OURS, SYSTEMS, System, Unable

# Not a system: what each database does by bare SQL, with nothing run.
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
    run: Callable[[], Figures | Iterable[Figures]]  # the latter when it takes turns by itself
    once: bool = False  # in the first round only: it takes minutes to fill the tables
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return " · ".join(filter(None, (self.part, self.system.title, self.database, self.setting)))

    @property
    def trouble(self) -> str:
        """What went wrong, each thing once, as a cell of a table can hold it."""
        return " ".join("; ".join(dict.fromkeys(self.failures)).replace("|", "/").split())

    def measure(self) -> Figures:
        """Once more. What goes wrong is kept for the table. Returns the last of each figure."""
        measured: Figures = {}
        try:
            found = self.run()
            for figures in [found] if isinstance(found, dict) else found:
                for name, value in figures.items():
                    self.figures.setdefault(name, []).append(value)
                measured |= figures
        except Unable as error:
            self.failures.append(str(error))
        except Exception as error:  # one peer's trouble must not end the others' measurement
            self.failures.append(f"{type(error).__name__}: {error}"[:300])
        return measured


@dataclass(frozen=True)
class Plan:
    parts: Collection[str]
    systems: Collection[str]
    databases: Collection[str]
    scale: float  # of all sizes: 1 is what the tables are made with

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
        """The databases on which peasy_jobs is measured by itself."""
        return [
            name for name in self.databases if OURS in self.systems and name in SYSTEMS[OURS].jobs
        ]

    def pairs(self) -> Iterator[tuple[System, str]]:
        """Systems with each database that they work on, those that share a database one after the other."""
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
        sizes = plan.jobs(system.jobs[database] // 3), plan.jobs(200_000), plan.jobs(1_000_000)
        run = partial(ours.growth, database, *sizes, plan.jobs(20, 5), plan.gap(system))
        yield Cell("growth", system, database, "", run, once=True)


def dashboard(plan: Plan) -> Iterator[Cell]:
    # Always at full size: the script has no other.
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
