"""django-tasks-db: the database backend of django.tasks."""

import json
import os
from collections.abc import Iterable
from typing import Any

from protocol import Script

TASKS = {"TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}}
os.environ.update(
    DJANGO_SETTINGS_MODULE="site_settings",
    BENCH_APPS='["django_tasks", "django_tasks_db"]',
    BENCH_SETTINGS=json.dumps(TASKS),
)

import django  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db.models import Max, Min  # noqa: E402

django.setup()

from django_tasks import task  # noqa: E402
from django_tasks_db.models import DBTaskResult  # noqa: E402
from marks import mark  # noqa: E402


@task()
def nothing(number: int) -> None:
    mark(number)


def prepare() -> None:
    call_command("migrate", verbosity=0)


def enqueue(numbers: Iterable[int]) -> None:
    for number in numbers:
        nothing.enqueue(number)


def work(kind: str, concurrency: int) -> None:
    call_command("db_worker", "--no-startup-delay", "--no-reload")


def outcomes() -> dict[str, Any]:
    done = DBTaskResult.objects.filter(status="SUCCESSFUL")
    times = done.aggregate(first=Min("started_at"), last=Max("finished_at"))
    seconds = (times["last"] - times["first"]).total_seconds() if times["last"] else None
    return {"stored": done.count(), "seconds": seconds}


if __name__ == "__main__":
    Script(prepare=prepare, enqueue=enqueue, work=work, outcomes=outcomes).main()
