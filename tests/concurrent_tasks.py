"""The tasks of `ConcurrentProcess`, each on a connection configured like a runner's.

A task prints "ready" and waits for a line, prints "begun" after its first step and waits for
another, and at the end prints as JSON what it has done and in which span of time. All tasks are
told to continue at the same moment.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from time import monotonic
from typing import Any

import django
from django.db import OperationalError, connection, transaction

django.setup()

from peasy_jobs.models import PeasyJobQueue  # noqa: E402
from peasy_jobs.runner.counters import Counters  # noqa: E402
from peasy_jobs.runner.session import LOCK_TIMEOUT  # noqa: E402
from peasy_jobs.statuses import COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED  # noqa: E402
from peasy_jobs.store import vendors  # noqa: E402
from peasy_jobs.store.claiming import ClaimRequest  # noqa: E402
from peasy_jobs.store.clock import Clock, as_field, database_now  # noqa: E402
from peasy_jobs.store.values import Claim, JobUpdate  # noqa: E402

jobs = PeasyJobQueue.objects
PATIENCE = 60  # seconds
times: list[float] = []  # when each step was done


def step(*, meet: bool = False) -> None:
    """Record a step, and wait after the first: no task may be done before another begins.

    With `meet`, wait after every step; the concurrent tasks must then have equally many.
    """
    if meet or not times:
        print("begun", flush=True)
        sys.stdin.readline()
    times.append(monotonic())


class AllFinished:
    """Tell whether `total` jobs exist and all are finished. Fail if that takes too long."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.deadline = monotonic() + PATIENCE

    def __call__(self) -> bool:
        unfinished = jobs.filter(status__in=(ENQUEUED, SCHEDULED, ONGOING))
        assert monotonic() < self.deadline, (
            f"{jobs.count()} jobs, unfinished: {list(unfinished.values()[:5])}"
        )
        return jobs.count() == self.total and not unfinished.exists()


def patiently(action: Callable[[], Any]) -> Any:
    """Repeat an action until no lock prevents it, as a runner does in its next iteration."""
    deadline = monotonic() + PATIENCE
    while True:
        try:
            return action()
        except OperationalError as error:
            if not vendors.is_locked(error) or monotonic() > deadline:
                raise


def now() -> Any:
    return as_field(database_now(connection))


def claim_jobs(runner: int, limit: int, queues: list[str]) -> list[tuple[int, int]]:
    """Claim until nothing is left. Return the primary key and fencing token of each claim."""
    mine: list[Claim] = []
    waiting = jobs.in_queues(queues).filter(status=ENQUEUED)
    while True:
        claims = patiently(
            lambda: jobs.claim(
                ClaimRequest(runner_id=runner, limit=limit, queues=queues, now=now())
            )
        )
        step()
        assert len(claims) <= limit
        mine += claims
        if not claims and not waiting.exists():  # another process may still give some back
            return [(claim.pk, claim.fencing_token) for claim in mine]


def run_jobs(runner: int, limit: int, total: int) -> list[tuple[int, int, str, bool]]:
    """Claim and finish jobs until none is left. Every third fails, every fifth is first given back.

    Return for each claim: primary key, fencing token, intended status, whether it was written.
    """
    runs: list[tuple[int, int, str, bool]] = []
    all_finished = AllFinished(total)
    while not all_finished():
        claims = patiently(
            lambda: jobs.claim(ClaimRequest(runner_id=runner, limit=limit, now=now()))
        )
        step()
        updates = [ended(claim) for claim in claims]
        dropped = patiently(lambda updates=updates: jobs.finish(runner, updates, now()))
        lost = [each.claim for each in dropped]
        runs += [
            (update.claim.pk, update.claim.fencing_token, update.status, update.claim not in lost)
            for update in updates
        ]
    return runs


def ended(claim: Claim) -> JobUpdate:
    if claim.pk % 5 == 0 and claim.fencing_token == 1:
        return JobUpdate(claim=claim, status=ENQUEUED, attempts=-1)
    if claim.pk % 3 == 0:
        error = {"exception": "builtins.ValueError", "message": "no", "traceback": ""}
        return JobUpdate(claim=claim, status=FAILED, error=error, started=now(), completed=now())
    return JobUpdate(
        claim=claim, status=COMPLETED, result=b"J%d" % claim.pk, started=now(), completed=now()
    )


def enqueue_jobs(count: int) -> list[int]:
    """Enqueue `count` jobs, each in its own transaction, and as many that are rolled back."""
    pks = []
    for _ in range(count):
        pks.append(patiently(enqueued).pk)
        with transaction.atomic():
            patiently(enqueued)
            transaction.set_rollback(True)
        step()
    return pks


def enqueued() -> PeasyJobQueue:
    return jobs.enqueue(title="a job", job_name="tests.jobs.nothing")


def cancel_some_jobs(every: int, total: int) -> list[int]:
    """Cancel unfinished jobs whose key is a multiple of `every`. Return those it cancelled.

    Odd keys by `cancel`, even ones by an update of the queryset.
    """
    cancelled: list[int] = []
    all_finished = AllFinished(total)
    while not all_finished():
        alive = (
            jobs.filter(status__in=(ENQUEUED, ONGOING)).order_by("pk").values_list("pk", flat=True)
        )
        for pk in [pk for pk in alive if pk % every == 0]:
            if patiently(lambda pk=pk: cancel(pk)):
                cancelled.append(pk)
            step()
    return cancelled


def cancel(pk: int) -> bool:
    if pk % 2:
        return jobs.cancel(pk)
    return bool(jobs.filter(pk=pk, status=ENQUEUED).update(status=PeasyJobQueue.CANCELLED))


def cancel_all_jobs(backwards: bool) -> list[int]:
    """Cancel all jobs, oldest or newest first. Return those that this task cancelled."""
    pks = jobs.order_by("-pk" if backwards else "pk").values_list("pk", flat=True)
    cancelled = []
    for pk in list(pks):
        if patiently(lambda pk=pk: jobs.cancel(pk)):
            cancelled.append(pk)
        step()
    return cancelled


def rescue_jobs(dead: list[int]) -> list[int]:
    """Rescue the jobs of each of these runners. Return how many of each."""
    rescued = []
    for runner in dead:
        rescued.append(patiently(lambda runner=runner: jobs.rescue(runner, "gone", 1)))
        step(meet=True)
    return rescued


def write_outcomes(dead: list[int]) -> list[int]:
    """Write outcomes for runners that do not know yet that they are presumed dead.

    Return the primary keys of those that were written.
    """
    written: list[int] = []
    for runner in dead:
        pks = jobs.filter(title=f"of runner {runner}").order_by("pk").values_list("pk", flat=True)
        claims = [Claim(pk, 1, "", "", 1, 0, None, None) for pk in pks]
        updates = [
            JobUpdate(claim=claim, status=COMPLETED, result=b"J1", completed=now())
            for claim in claims
        ]
        dropped = patiently(
            lambda runner=runner, updates=updates: jobs.finish(runner, updates, now())
        )
        lost = [each.claim for each in dropped]
        written += [claim.pk for claim in claims if claim not in lost]
        step(meet=True)
    return written


def write_statistics(minutes: list[int], seconds: list[float]) -> None:
    """Add a job to the statistics of each minute, with the run times in turn."""
    counters = Counters("default", Clock(connection))
    for minute, run in zip(minutes, cycle(seconds), strict=False):
        counters.counts, counters.longest = (
            {minute: Counter(completed=1, r0=1)},
            {minute: {"run_max": run}},
        )
        while counters.counts:
            counters.write()
        step(meet=True)


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task
    for task in (
        claim_jobs,
        run_jobs,
        enqueue_jobs,
        cancel_some_jobs,
        cancel_all_jobs,
        rescue_jobs,
        write_outcomes,
        write_statistics,
    )
}

if __name__ == "__main__":
    task, options = sys.argv[1], json.loads(sys.argv[2])
    if options.pop("configure_session", True):
        vendors.configure_session(connection, LOCK_TIMEOUT)
    elif connection.vendor == "mysql":
        with connection.cursor() as cursor:  # the server's own default
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    print("ready", flush=True)
    sys.stdin.readline()
    done = TASKS[task](**options)
    print(json.dumps([done, [times[1], times[-1]] if len(times) > 1 else None]))
