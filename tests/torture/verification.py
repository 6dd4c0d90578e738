"""The check after a torture run: every job, each of its runs, and every change of its row."""

from __future__ import annotations

from collections import Counter, defaultdict
from time import monotonic, time
from typing import Any

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import FINISHED, TRANSITIONS
from peasy_jobs.workers import execution
from tests.torture import database
from tests.torture.faults import LEASE, ORPHANS_LIVE, SUSPENSIONS, FaultInjector
from tests.torture.jobs import DEADLY, ENDS_BADLY
from tests.torture.record import Key, Run

# No job is retried by hand or exhausts a counter here. XX: a cancelled job has stopped running.
UNUSED_VERBS = {"retry", "fail exhausted"}
LEGAL = {old + new for verb, old, new in TRANSITIONS if verb not in UNUSED_VERBS} | {"XX"}
CRASHED = ("The worker running this job died", "The runner of this job")


class Verification:
    """Collect `violations`, and the counts that the table shows."""

    def __init__(
        self, injector: FaultInjector, enqueued: dict[int, str], rolled_back: set[str]
    ) -> None:
        self.injector = injector
        self.record = injector.record
        self.enqueued = enqueued
        self.rolled_back = rolled_back
        self.violations = list(injector.violations)
        self.outcomes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.offset = time() - monotonic()

    def check(self) -> None:
        self.record.read()
        self.injector.learn_names()
        self.changes: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for change in database.audit():
            change["at"] = float(change["at"]) - self.offset  # now in time.monotonic()
            self.changes[change["job"]].append(change)
        rows = {row.pk: row for row in PeasyJobQueue.objects.all()}
        known = {**self.enqueued, **self.record.enqueued}
        lost = [pk for pk in known if pk not in rows or rows[pk].status not in FINISHED]
        self.counts["lost"] = len(lost)
        for pk in lost:
            self._say(pk, "LOST: it was committed but never finished", rows.get(pk))
        for pk, row in rows.items():
            self._check_row(pk, row, known.get(pk))
        for line in [*self.record.twice, *self.record.strays]:
            self.violations.append(f"Two starts of one claim, or a line without a run: {line}")
        for run in self.record.runs.values():
            if run.token in self.rolled_back:
                self.violations.append(f"A job whose transaction was rolled back has run: {run}")
            if len(run.ends) > 1:
                self._say(run.pk, "one run has two ends", rows.get(run.pk))
        self.counts["jobs"] = len(rows)
        if runners := list(PeasyRunner.objects.values_list("pk", "pid", "host_id")):
            self.violations.append(f"Rows of runners are left: {runners}")

    def _check_row(self, pk: int, row: PeasyJobQueue, token: str | None) -> None:
        runs = sorted(self.record.by_pk.get(pk, []), key=lambda run: run.claims)
        self.outcomes[row.get_status_display()] += 1
        self.counts["starts"] += len(runs)
        self.counts["runs again"] += max(0, len(runs) - 1)
        for wrong in self._wrong(row, runs, token):
            self._say(pk, wrong, row)

    def _wrong(self, row: PeasyJobQueue, runs: list[Run], token: str | None) -> list[str]:
        wrong = []
        job = execution.find_job_function(row.job_name)
        budget = 1 if row.crash_retries is None else row.crash_retries
        if row.status not in FINISHED:
            wrong.append("it is not finished")
        if row.runner_id is not None or row.completed is None:
            wrong.append("it still names a runner, or has no completion time")
        if token is not None and any(run.token != token for run in runs):
            wrong.append("it ran with the arguments of another job")
        # Budgets
        if any(run.claims > row.claims for run in runs) or len(runs) > row.claims:
            wrong.append("it started more often than it was claimed")
        if row.crashes > budget + 1 or row.attempts - row.crashes > job.policy.retries + 1:
            wrong.append(
                f"it ran more often than its {job.policy.retries} retries"
                f" and {budget} retries after crashes allow"
            )
        wrong += self._wrong_changes(row, runs)
        wrong += self._wrong_outcome(row, runs, budget)
        wrong += self._overlaps(runs)
        return wrong

    def _wrong_outcome(self, row: PeasyJobQueue, runs: list[Run], budget: int) -> list[str]:
        last = self.record.runs.get(Key(row.pk, row.claims))
        out = last.ends[0]["out"] if last and last.ends else None
        if row.status == row.COMPLETED:
            result = row.result or {}
            if out != "ok":
                return [f"COMPLETED, but the record of its last run ends with {out}"]
            if isinstance(result, dict) and result and result.get("claims") != row.claims:
                return [f"COMPLETED with the result of another run: {result}"]
        if row.status == row.FAILED:
            kind, message = row.errors[-1]["exception"], row.error
            if message.startswith(CRASHED):
                wrong = f"FAILED after {row.crashes} crashes of {budget}: {message}"
                return [] if row.crashes == budget + 1 else [wrong]
            if kind.endswith("TimeLimit"):
                return []
            if out in (None, "ok") or last.kind not in ENDS_BADLY:
                return [f"FAILED ({message}), but the record of its last run ends with {out}"]
            if "claims=" in message and not message.endswith(f"claims={row.claims}"):
                return [f"FAILED with the error of another run: {message}"]
        return []

    def _wrong_changes(self, row: PeasyJobQueue, runs: list[Run]) -> list[str]:
        wrong, claimed, given_back, charged = [], 0, 0, 0
        by_claims = {run.claims: run for run in runs}
        claimed_at = 0.0
        for change in self.changes[row.pk]:
            step = change["old_status"] + change["new_status"]
            grown = change["new_claims"] - change["old_claims"]
            if step not in LEGAL or grown != (step == "QO"):
                wrong.append(f"an illegal change: {change}")
            if step == "QO":
                claimed, claimed_at = claimed + 1, change["at"]
                continue
            run = by_claims.get(change["old_claims"])
            if step == "OC" and (run is None or not run.ends or run.ends[0]["out"] != "ok"):
                wrong.append(f"it became COMPLETED without such an end: {change}")
            if step in ("OQ", "OS", "OF", "OC") and change["new_attempts"] < change["old_attempts"]:
                given_back += 1
                self.counts["given back"] += 1
            if change["new_crashes"] > change["old_crashes"]:
                charged += 1
                self.counts["crashes charged"] += 1
                if not self._crash_has_a_cause(run, change, claimed_at):
                    wrong.append(f"charged with a crash that did not happen: {change}")
        if row.claims != claimed or row.attempts != claimed - given_back or row.crashes != charged:
            wrong.append(
                f"{claimed} claims, {given_back} given back, {charged} crashes do not give its row"
            )
        return wrong

    def _crash_has_a_cause(
        self, run: Run | None, change: dict[str, Any], claimed_at: float
    ) -> bool:
        if run is not None and run.kind in DEADLY:
            return True
        name = self.injector.names.get(change["old_runner_id"])
        if name is None:
            return True  # it was killed before it could print its id
        return self._gone(name, change["at"]) or any(
            fault.kind == "kill a worker"
            and fault.runner == name
            and claimed_at - 0.5 <= fault.began <= change["at"]
            and (run is None or fault.pid == run.pid)
            for fault in self.injector.faults
        )

    def _gone(self, name: str, at: float) -> bool:
        """Return whether this runner was dead at that time, or silent beyond its lease."""
        return any(
            fault.runner == name
            and fault.began <= at
            and (
                fault.kind == "kill a runner"
                or (fault.kind in SUSPENSIONS and fault.ended >= at - 3 * LEASE)
            )
            for fault in self.injector.faults
        )

    def _overlaps(self, runs: list[Run]) -> list[str]:
        wrong = []
        for place, old in enumerate(runs):
            for new in runs[place + 1 :]:
                if old.last <= new.started:
                    continue
                killed = any(
                    fault.kind == "kill a runner"
                    and fault.runner == old.runner
                    and old.last - fault.began < ORPHANS_LIVE
                    for fault in self.injector.faults
                )
                if killed:
                    self.counts["overlaps within two seconds of a runner's death"] += 1
                elif self._gone(old.runner, new.started):
                    self.counts["overlaps with a runner that was silent beyond its lease"] += 1
                else:
                    wrong.append(f"two runs at the same time, for {old.last - new.started:.3f} s")
        return wrong

    def _say(self, pk: int, wrong: str, row: PeasyJobQueue | None) -> None:
        shown = {}
        if row is not None:
            columns = row.__dict__.items()
            shown = {
                name: value
                for name, value in columns
                if name[0] != "_" and not name.endswith("_data")
            }
            shown["errors"] = [
                (entry["at"], entry["exception"], entry["message"]) for entry in row.errors
            ]
        runs = sorted(self.record.by_pk.get(pk, []), key=lambda run: run.claims)
        names = {run.runner for run in runs}
        changes = [
            f"{change['at']:.3f} {change['old_status']}{change['new_status']}"
            f" claims {change['new_claims']}"
            f" attempts {change['new_attempts']} crashes {change['new_crashes']} runner "
            f"{self.injector.names.get(change['old_runner_id'])}->"
            f"{self.injector.names.get(change['new_runner_id'])}"
            for change in self.changes[pk]
        ]
        names |= {self.injector.names.get(change["old_runner_id"]) for change in self.changes[pk]}
        span = [change["at"] for change in self.changes[pk]] or [0.0]
        faults = [
            f"{fault.began:.3f}-{fault.ended:.3f} {fault.kind}"
            f" {fault.runner or 'all'} {fault.pid or ''}"
            for fault in self.injector.faults
            if (fault.runner is None or fault.runner in names)
            and span[0] - 4 * LEASE < fault.began < span[-1] + LEASE
        ]
        listed = "\n    ".join(["", str(shown), *map(str, runs), *changes, *faults])
        self.violations.append(f"Job {pk}: {wrong}.{listed}")
