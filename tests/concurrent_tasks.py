"""The tasks that `ConcurrentProcess` runs, each on its own connection, configured as a runner configures it.

A part prints "ready" and waits for a line, prints "begun" after its first step and waits for another, and prints what
it has done as JSON, with the span in which it did the rest. All that compete are told to go on at the same moment.
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
    """A step is done. After the first wait for all rivals: nobody may have done everything before another begins.

    With `meet` do so after every step, which all rivals of this part have as many of.
    """
    if meet or not times:
        print("begun", flush=True)
        sys.stdin.readline()
    times.append(monotonic())


class Over:
    """Whether so many jobs were made and none of them may still run. Fails when that takes too long."""

    def __init__(self, total: int) -> None:
        self.total, self.deadline = total, monotonic() + PATIENCE

    def __call__(self) -> bool:
        alive = jobs.filter(status__in=(ENQUEUED, SCHEDULED, ONGOING))
        assert monotonic() < self.deadline, (
            f"{jobs.count()} jobs, still alive: {list(alive.values()[:5])}"
        )
        return jobs.count() == self.total and not alive.exists()


def patiently(action: Callable[[], Any]) -> Any:
    """Do the whole of it again when a lock was in the way, as a runner does at its next turn."""
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
    """Claims until nothing is left. Says what it got, as primary key and `claims`."""
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
        if not claims and not waiting.exists():  # what others hold may still come back
            return [(claim.pk, claim.fencing_token) for claim in mine]


def run_jobs(runner: int, limit: int, total: int) -> list[tuple[int, int, str, bool]]:
    """Claims and ends until all is over: of its claims every third fails and every fifth goes back at first.

    Says of each run: primary key, `claims`, the status it was to get, whether it got it.
    """
    runs: list[tuple[int, int, str, bool]] = []
    over = Over(total)
    while not over():
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
    """Enqueues so many jobs, each in a transaction of its own, and as many that it rolls back."""
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
    """Cancels each so-manieth job that it sees alive, in turn by its verb and by an update. Says which it got."""
    cancelled: list[int] = []
    over = Over(total)
    while not over():
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
    """Cancels all jobs, oldest or newest first. Says which it was the one to cancel."""
    pks = jobs.order_by("-pk" if backwards else "pk").values_list("pk", flat=True)
    cancelled = []
    for pk in list(pks):
        if patiently(lambda pk=pk: jobs.cancel(pk)):
            cancelled.append(pk)
        step()
    return cancelled


def rescue_jobs(dead: list[int]) -> list[int]:
    """Rescues the jobs of each of these runners. Says how many it got of each."""
    rescued = []
    for runner in dead:
        rescued.append(patiently(lambda runner=runner: jobs.rescue(runner, "gone", 1)))
        step(meet=True)
    return rescued


def write_outcomes(dead: list[int]) -> list[int]:
    """Ends the jobs of each of these runners, which do not know yet that they were presumed dead. Says which."""
    written: list[int] = []
    for runner in dead:
        pks = jobs.filter(title=f"of runner {runner}").order_by("pk").values_list("pk", flat=True)
        claims = [Claim(pk, 1, "", "", None, None, 1, 0, None, None) for pk in pks]
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
    """Adds a job to each of these minutes, in turn, that ran for each of these seconds, over and over again."""
    counters = Counters("default", Clock(connection))
    for minute, run in zip(minutes, cycle(seconds), strict=False):
        counters.counts, counters.longest = (
            {minute: Counter(completed=1, r0=1)},
            {minute: {"run_max": run}},
        )
        while counters.counts:
            counters.write()
        step(meet=True)


PARTS: dict[str, Callable[..., Any]] = {
    part.__name__: part
    for part in (
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
    part, options = sys.argv[1], json.loads(sys.argv[2])
    if options.pop("configure_session", True):
        vendors.configure_session(connection, LOCK_TIMEOUT)
    elif connection.vendor == "mysql":
        with connection.cursor() as cursor:  # what the server gives to those who set nothing
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    print("ready", flush=True)
    sys.stdin.readline()
    did = PARTS[part](**options)
    print(json.dumps([did, [times[1], times[-1]] if len(times) > 1 else None]))
