"""Two runners, a canceller and a rescuer act on one job in any order, with legal transitions."""

from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import (
    CANCELLED,
    COMPLETED,
    ENQUEUED,
    FAILED,
    ONGOING,
    SCHEDULED,
    TRANSITIONS,
)
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.values import Claim, JobUpdate

pytestmark = pytest.mark.django_db

jobs = PeasyJobQueue.objects
RUNNERS = (1, 2)
LEGAL = {"report": set(), "close": set(), "keep house": set()}
for transition in TRANSITIONS:
    LEGAL.setdefault(transition.verb, set()).add(transition.old + transition.new)
ENDS = (COMPLETED, FAILED, SCHEDULED, ENQUEUED, ENQUEUED)
OLDER = (
    0,
    0,
    1,
    2,
)  # which of its claims, from the newest: a straggler writes of one that is long gone
# Each as often as it makes long lives: a job that is over has none.
STEPS = [
    *[("claim", runner) for runner in RUNNERS] * 30,
    *[("finish", runner, back, status) for runner in RUNNERS for back in OLDER for status in ENDS],
    *[(what, runner, back) for what in ("report", "close") for runner in RUNNERS for back in OLDER],
    *[(what, runner) for what in ("rescue", "give back") for runner in RUNNERS] * 4,
    *[("promote",), ("keep house",)] * 8,
    *[("cancel", True), ("cancel", False)] * 3,
]


class World:
    """One job, and the claims that each runner believes to hold."""

    def __init__(self) -> None:
        self.pk = jobs.create(title="a job", job_name="tests.jobs.nothing").pk
        self.now = as_field(database_now(connection))
        self.claims: dict[int, list[Claim]] = {runner: [] for runner in RUNNERS}

    def row(self) -> dict[str, Any]:
        return jobs.filter(pk=self.pk).values().get()

    def held(self, runner: int, back: int) -> list[Claim]:
        return self.claims[runner][::-1][back : back + 1]

    def do(self, what: str, *how: Any) -> list[Claim]:
        """Take one step. Return the claims whose update was dropped."""
        if what == "claim":
            self.claims[how[0]] += jobs.claim(ClaimRequest(runner_id=how[0], limit=1, now=self.now))
        elif what == "finish":
            runner, back, status = how
            ended = self.now if status in (COMPLETED, FAILED) else None
            error = {"exception": "ValueError", "message": "no"} if status == FAILED else None
            updates = [
                JobUpdate(
                    claim=claim,
                    status=status,
                    completed=ended,
                    error=error,
                    run_after=None if ended else self.now,
                )
                for claim in self.held(runner, back)
            ]
            return [dropped.claim for dropped in jobs.finish(runner, updates, self.now)]
        elif what == "report":
            for claim in self.held(*how):
                jobs.report(
                    self.pk,
                    f"by {claim.fencing_token}",
                    None,
                    runner=how[0],
                    claims=claim.fencing_token,
                    status=ONGOING,
                )
        elif what == "close":
            for claim in self.held(*how):
                jobs.close_cancelled(how[0], self.pk, claim.fencing_token, self.now)
        elif what == "give back":
            jobs.give_back_unknown(how[0], [])
        elif what == "rescue":
            jobs.rescue(how[0], "gone", 1)
        elif what == "cancel" and how[0]:
            jobs.cancel(self.pk)
        elif what == "cancel":
            jobs.filter(pk=self.pk, status__in=(ENQUEUED, SCHEDULED, ONGOING)).update(
                status=CANCELLED
            )
        elif what == "promote":
            jobs.filter(pk=self.pk, status=SCHEDULED).update(run_after=F("created"))
            jobs.promote(self.now)
        else:
            jobs.normalise_external_changes(self.now)
        return []


@pytest.mark.timeout(300)  # thousands of statements, slow on a busy MariaDB
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(STEPS), min_size=6, max_size=24))
def test_no_order_of_steps_causes_an_illegal_transition(plan):
    world = World()
    before = world.row()
    for what, *how in plan:
        refused = world.do(what, *how)
        after = world.row()
        move = before["status"] + after["status"]
        assert before["status"] == after["status"] or move in LEGAL[what], (what, how, move)
        event(f"{what}: {move}")

        assert after["claims"] - before["claims"] == (1 if what == "claim" and move == "QO" else 0)
        if before["status"] in (COMPLETED, FAILED):
            assert after == before, "a finished job does not change"
        if what == "finish" and (held := world.held(how[0], how[1])):
            owned = (before["status"], before["runner_id"], before["claims"]) == (
                ONGOING,
                how[0],
                held[0].fencing_token,
            )
            assert (after["status"] == how[2]) if owned else (before["status"] == after["status"])
            assert not (owned and refused)
        if what == "report" and before != after:
            assert before["status"] == ONGOING
            assert before["runner_id"] == how[0]
        running = after["status"] == ONGOING
        assert (after["runner_id"] is not None) == running or after["status"] == CANCELLED
        assert (after["completed"] is not None) == (after["status"] in (COMPLETED, FAILED)) or (
            after["status"] == CANCELLED
        )
        assert not (after["runner_id"] and after["completed"]), "who runs it has not ended"
        before = after
    jobs.all().delete()
