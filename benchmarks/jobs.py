"""The jobs that peasy_jobs runs in the benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from time import sleep
from typing import Any

from benchmarks.peers.marks import mark
from peasy_jobs import conf, payloads
from peasy_jobs.peasy_jobs import peasy


@peasy.job("do nothing")
def nothing(number: int) -> None:
    mark(number)


@peasy.job("sleep")
def pause(number: int, seconds: float) -> None:
    mark(number)
    sleep(seconds)


def row(job: Any, *args: Any) -> dict[str, Any]:
    """Return the columns that a call of this job function writes."""
    data = payloads.dumps(
        list(args),
        job_name=job.job_name,
        column=payloads.ARGS,
        max_bytes=conf.get().max_payload,
        serializer="pickle",
    )
    return {"title": job.title, "job_name": job.job_name, "args_data": data}


def insert(numbers: Iterable[int], queue_name: str = "default") -> None:
    """Insert jobs without calling the job function, the same way for every measurement."""
    from peasy_jobs.models import PeasyJobQueue

    rows = (PeasyJobQueue(**row(nothing, number), queue_name=queue_name) for number in numbers)
    PeasyJobQueue.objects.bulk_create(rows, batch_size=1000)
