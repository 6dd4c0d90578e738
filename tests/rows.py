"""Read and await the state of jobs and runners in the database."""

import psutil
from django.conf import settings

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import FINISHED, ONGOING
from tests.processes import Command
from tests.waiting import DEADLINE, wait_until


def row(job: PeasyJobQueue) -> PeasyJobQueue:
    """Return the job as it is now."""
    return PeasyJobQueue.objects.get(pk=job.pk)


def finished(*jobs: PeasyJobQueue, timeout: float = DEADLINE) -> list[PeasyJobQueue]:
    """Wait until all of these jobs are finished. Return them, freshly read, in the same order."""
    pks = [job.pk for job in jobs]
    mine = PeasyJobQueue.objects.filter(pk__in=pks)

    def over() -> bool:
        return mine.filter(status__in=FINISHED).count() == len(pks)

    wait_until(
        over,
        timeout,
        lambda: f"Jobs: {list(mine.values_list('pk', 'title', 'status', 'errors')[:20])}",
    )
    found = mine.in_bulk()
    return [found[pk] for pk in pks]


def running(job: PeasyJobQueue) -> PeasyJobQueue:
    """Wait until a job runs. Return it, freshly read."""
    wait_until(
        lambda: row(job).status == ONGOING and row(job).started,
        message=lambda: f"{row(job).__dict__}",
    )
    return row(job)


def runner() -> PeasyRunner:
    """Return the only runner."""
    return PeasyRunner.objects.get()


def heartbeats(count: int) -> None:
    """Wait until the only runner has renewed its lease `count` times."""
    for _ in range(count):
        last = runner().heartbeat
        wait_until(lambda last=last: runner().heartbeat != last)


def with_app(name: str) -> dict[str, list[str]]:
    """Return settings for a runner that also has this app."""
    return {"INSTALLED_APPS": [*settings.INSTALLED_APPS, name]}


def is_gone(pid: int) -> bool:
    """Return whether no such process runs any more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def server_of(command: Command) -> psutil.Process:
    (server,) = psutil.Process(command.pid).children()
    return server


def workers_of(command: Command) -> list[psutil.Process]:
    """Return the worker processes, as soon as the fork server has all of them."""
    return wait_until(
        lambda: len(workers := server_of(command).children()) == runner().concurrency and workers,
        message=lambda: command.describe(),
    )


def assert_gone(command: Command) -> None:
    """Check that no process and no row of a runner is left."""
    wait_until(
        lambda: not command.processes(), 2, lambda: f"{command.processes()} {command.describe()}"
    )
    assert not PeasyRunner.objects.filter(pid=command.pid).exists()
