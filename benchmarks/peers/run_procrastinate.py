"""procrastinate, on PostgreSQL."""

import logging
import os
from collections.abc import Iterable
from typing import Any

import psycopg
from marks import mark
from procrastinate import App, PsycopgConnector
from protocol import Script

URL = os.environ["BENCH_URL"]
app = App(connector=PsycopgConnector(conninfo=URL))


@app.task(name="nothing")
async def nothing(number: int) -> None:
    mark(number)


def prepare() -> None:
    with app.open():
        app.schema_manager.apply_schema()


def enqueue(numbers: Iterable[int]) -> None:
    with app.open():
        for number in numbers:
            nothing.defer(number=number)


def enqueue_many(numbers: Iterable[int]) -> None:
    calls = [{"number": number} for number in numbers]
    with app.open():
        for start in range(0, len(calls), 1000):
            nothing.batch_defer(*calls[start : start + 1000])


def work(kind: str, concurrency: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    app.run_worker(concurrency=concurrency)


def outcomes() -> dict[str, Any]:
    times = (
        "extract(epoch FROM max(at) FILTER (WHERE type = 'succeeded')"
        " - min(at) FILTER (WHERE type = 'started'))"
    )
    with psycopg.connect(URL) as connection:
        done = connection.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        ).fetchone()[0]
        seconds = connection.execute(f"SELECT {times}::float FROM procrastinate_events").fetchone()[
            0
        ]
    return {"stored": done, "seconds": seconds}


if __name__ == "__main__":
    Script(
        prepare=prepare, enqueue=enqueue, enqueue_many=enqueue_many, work=work, outcomes=outcomes
    ).main()
