"""peasy-jobs 0.4.1, the release before the rewrite."""

import os
from collections.abc import Iterable
from typing import Any

from protocol import Script

os.environ.update(DJANGO_SETTINGS_MODULE="site_settings", BENCH_APPS='["peasy_jobs"]')

import django  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db.models import Max, Min  # noqa: E402

django.setup()

from marks import mark  # noqa: E402

from peasy_jobs.models import PeasyJobQueue  # noqa: E402
from peasy_jobs.peasy_jobs import peasy  # noqa: E402

nothing = peasy.job("do nothing")(mark)


def prepare() -> None:
    call_command("migrate", verbosity=0)


def enqueue(numbers: Iterable[int]) -> None:
    for number in numbers:
        nothing(number)


def work(kind: str, concurrency: int) -> None:
    peasy.concurrency = concurrency
    call_command("run_peasy")


def outcomes() -> dict[str, Any]:
    done = PeasyJobQueue.objects.filter(status=PeasyJobQueue.COMPLETED)
    times = done.aggregate(first=Min("started"), last=Max("completed"))
    seconds = (times["last"] - times["first"]).total_seconds() if times["last"] else None
    return {"stored": done.count(), "seconds": seconds}


if __name__ == "__main__":
    Script(prepare=prepare, enqueue=enqueue, work=work, outcomes=outcomes).main()
