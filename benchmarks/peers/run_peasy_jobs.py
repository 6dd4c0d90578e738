"""peasy_jobs itself, by the protocol of all systems."""

import mmap
import os
from collections.abc import Iterable
from typing import Any

from protocol import Script

os.environ.update(
    DJANGO_SETTINGS_MODULE="site_settings", BENCH_APPS='["django_htmx", "peasy_jobs", "benchmarks"]'
)

import django  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402
from django.db.models import Max, Min  # noqa: E402

django.setup()

from benchmarks import jobs  # noqa: E402
from peasy_jobs.models import PeasyJobQueue  # noqa: E402


def prepare() -> None:
    call_command("migrate", verbosity=0)


def enqueue(numbers: Iterable[int]) -> None:
    for number in numbers:
        jobs.nothing(number)


def enqueue_many(numbers: Iterable[int]) -> None:
    jobs.nothing.map(numbers)


def preload(numbers: Iterable[int]) -> None:
    jobs.insert(numbers)


def count_statements(path: str, connection: Any) -> None:
    """Count the statements of an SQLite connection in a shared file: data_version, and others."""
    with open(path, "r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    def traced(statement: str) -> None:
        counts["data_version" not in statement] += 1

    connection.connection.set_trace_callback(traced)


def work(kind: str, concurrency: int) -> None:
    counter = os.environ.get("BENCH_COUNTER")
    if counter and django.db.connection.vendor == "sqlite":
        connection_created.connect(
            lambda connection, **kwargs: count_statements(counter, connection), weak=False
        )
    queues = [f"--queue={name}" for name in os.environ.get("BENCH_QUEUES", "").split()]
    call_command(
        "run_peasy", f"--worker-type={kind}", f"--concurrency={concurrency}", *queues, verbosity=0
    )


def outcomes() -> dict[str, Any]:
    # Not `claims`, which also counts what was claimed ahead and given back before it began.
    done = PeasyJobQueue.objects.filter(status=PeasyJobQueue.COMPLETED, attempts=1, runner=None)
    times = done.aggregate(first=Min("started"), last=Max("completed"))
    seconds = (times["last"] - times["first"]).total_seconds() if times["last"] else None
    return {"stored": done.count(), "seconds": seconds}


if __name__ == "__main__":
    script = Script(
        prepare=prepare,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        preload=preload,
        work=work,
        outcomes=outcomes,
    )
    script.main()
