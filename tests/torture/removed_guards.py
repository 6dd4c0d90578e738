"""An app that changes the runners of a torture run: another host for some, and removed guards.

Without a guard the torture run must find violations. Nothing in `peasy_jobs` knows of this app.
"""

import os
from time import monotonic
from typing import Any

from django.apps import AppConfig

REMOVED_GUARDS = "PEASY_TORTURE_REMOVED_GUARDS"
HOST = "PEASY_TORTURE_HOST"


class ChangeRunner(AppConfig):
    name = "tests.torture.removed_guards"

    def ready(self) -> None:
        if host := os.environ.get(HOST):
            from peasy_jobs.runner import lease

            lease._host_id = lambda: host
        for name in filter(None, os.environ.get(REMOVED_GUARDS, "").split(",")):
            globals()[f"_{name}"]()


def _late() -> None:
    """Delay the notice that a lease was revoked by one second, in which the runner claims nothing.

    This removes no guard. Without the delay the runner almost always notices before it writes,
    and the fence has nothing to reject.
    """
    from peasy_jobs.runner.lease import Lease

    renew = Lease.renew

    def late(self: Any) -> bool:
        if renew(self):
            self.reaped_at = None
            return True
        if getattr(self, "reaped_at", None) is None:
            self.reaped_at = monotonic()
        self.leased_until = float("-inf")
        return monotonic() < self.reaped_at + 1

    Lease.renew = late


def _fence() -> None:
    """Write an outcome no matter which runner holds the job by now."""
    from peasy_jobs.models import PeasyJobQueue
    from peasy_jobs.store import writing

    guard_values = writing._guard_values

    def unfenced(runner_id: int, updates: Any) -> dict[str, list[Any]]:
        values = guard_values(runner_id, updates)
        held = [
            PeasyJobQueue.objects.filter(pk=pk).values_list("runner", "claims").get()
            for pk in values["pk"]
        ]
        values["held_by"] = [runner for runner, _ in held]
        values["fencing_token"] = [claims for _, claims in held]
        return values

    writing._guard_values = unfenced


def _lease() -> None:
    """Presume every other runner dead at once."""
    from peasy_jobs.runner import lease

    lease._is_gone = lambda runner: True


def _flush() -> None:
    """A runner that stops drops the outcomes that it has not written."""
    from peasy_jobs.runner.loop import Runner

    process_events = Runner._process_events

    def forgetful(self: Any) -> None:
        process_events(self)
        if self.shutdown.signals.count:
            self.held.recorder.updates.clear()

    Runner._process_events = forgetful
