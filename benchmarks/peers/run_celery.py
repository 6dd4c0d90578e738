"""celery, on Redis."""

import os
from collections.abc import Iterable
from typing import Any

from celery import Celery
from marks import mark
from protocol import Script

URL = os.environ["BENCH_URL"]
app = Celery("bench", broker=URL, backend=URL)


@app.task(name="nothing")
def nothing(number: int) -> None:
    mark(number)


def enqueue(numbers: Iterable[int]) -> None:
    for number in numbers:
        nothing.delay(number)


def work(kind: str, concurrency: int) -> None:
    app.worker_main(["worker", f"--concurrency={concurrency}", "--loglevel=WARNING"])


def outcomes() -> dict[str, Any]:
    keys = app.backend.client.scan_iter("celery-task-meta-*", count=1000)
    return {"stored": sum(1 for _ in keys), "seconds": None}


if __name__ == "__main__":
    Script(prepare=lambda: None, enqueue=enqueue, work=work, outcomes=outcomes).main()
