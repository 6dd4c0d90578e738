"""This runner's row and those of the others: register, renew the lease, and rescue the jobs of a runner that died."""

from __future__ import annotations

import logging
import os
import random
import socket
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from django.db import DatabaseError

from peasy_jobs.models import PeasyRunner
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.clock import Clock

if TYPE_CHECKING:
    from peasy_jobs.conf import Conf

logger = logging.getLogger("peasy_jobs")

LEAVE_WITHIN = 3.0  # seconds that a lock on the runners may keep this process from ending
RESCUE_EVERY = 2.0  # seconds; also how soon a runner of the same host is found dead


class Lease:
    """What the other runners know of this one."""

    def __init__(self, jobs: querysets.JobQuerySet, clock: Clock, conf: Conf) -> None:
        self.jobs, self.clock, self.conf = jobs, clock, conf
        self.runners = PeasyRunner.objects.using(jobs.db)
        self.id = 0
        self.renew_at = self.rescue_at = float("-inf")
        self.last_renewal = self.leased_until = self.steady_since = float("-inf")
        self.looked_for_orphans = (
            False  # the ongoing jobs of a published version, which name no runner
        )

    def register(self, queues: list[str]) -> None:
        """Appear under a new id."""
        before = monotonic()
        now = self.clock.sync()
        moment = self.clock.at(monotonic())
        host_id = _host_id()
        runner = self.runners.create(
            host=socket.gethostname()[:255],
            host_id=host_id,
            pid=os.getpid(),
            pid_started=_started(os.getpid()) if host_id else "",
            queues=queues,
            worker_type=self.conf.worker_type,
            concurrency=self.conf.concurrency,
            started=moment,
            heartbeat=moment,
            lease_until=now + self.conf.lease,
        )
        self.id = runner.pk
        self._renewed(before)
        self.steady_since = monotonic()

    def renew(self) -> bool:
        """Renew the lease when a fifth of it is over. False when other runners have taken this one for dead."""
        if monotonic() < self.renew_at:
            return True
        before = monotonic()
        until = self.clock.sync() + self.conf.lease
        heartbeat = self.clock.at(monotonic())
        if not self.runners.filter(pk=self.id).update(heartbeat=heartbeat, lease_until=until):
            return False
        if (
            monotonic() > self.last_renewal + 2 / 5 * self.conf.lease
        ):  # something held us up, and maybe everybody
            self.steady_since = monotonic()
        self._renewed(before)
        return True

    def is_held(self) -> bool:
        return monotonic() < self.leased_until

    def next_due(self) -> float:
        return min(self.renew_at, self.rescue_at)

    def rescue(self) -> int:
        """Give back the jobs of runners that are gone. Returns how many jobs that were.

        A lease that ran out counts only when we renewed ours all through one whole lease: after an outage that
        stopped everybody, nobody is dead.
        """
        if monotonic() < self.rescue_at:
            return 0
        self.rescue_at = monotonic() + RESCUE_EVERY * random.uniform(0.8, 1.2)
        rescued = 0
        if not self.looked_for_orphans:
            rescued = self.jobs.rescue(
                None, "The runner of this job is gone.", self.conf.crash_retries
            )
            self.looked_for_orphans = True
        named = (
            self.jobs.runners_named()
        )  # before the runners are read: whoever is named then has been there
        others = list(self.runners.exclude(pk=self.id))
        now = (
            self.clock.sync() if others else 0.0
        )  # nobody, as a rule, and this is asked every two seconds
        steady = monotonic() - max(self.steady_since, self.clock.stepped_at) > self.conf.lease
        for runner in others:
            if (steady and runner.lease_until < now) or _is_gone(runner):
                where = f"{runner.host}, pid {runner.pid}"
                reason = f"The runner of this job ({where}) died before it had finished."
                # First, and only if it has not come back since: what then names no runner is rescued as a stray.
                if not self.runners.filter(pk=runner.pk, lease_until=runner.lease_until).delete()[
                    0
                ]:
                    continue
                count = self.jobs.rescue(runner.pk, reason, self.conf.crash_retries, where)
                logger.warning("%s is gone. Jobs rescued: %d.", runner, count)
                rescued += count
        for stray in named - {self.id, *(runner.pk for runner in others)}:
            # A runner that was suspended in the middle of a claim, and taken for dead, claims when it goes on.
            reason = "The runner of this job had been taken for dead before it claimed it."
            rescued += self.jobs.rescue(stray, reason, self.conf.crash_retries)
        return rescued

    def unregister(self) -> None:
        """Disappear, unless jobs still name this runner: those are then rescued under its name."""
        until = monotonic() + LEAVE_WITHIN
        while not self.jobs.filter(runner=self.id).exists():
            try:
                self.runners.filter(pk=self.id).delete()
                return
            except DatabaseError as error:
                if not vendors.is_locked(error) or monotonic() > until:
                    raise

    def _renewed(self, at: float) -> None:
        """The lease was renewed by what the clocks said at this moment: what came later does not prolong it."""
        self.last_renewal = at
        self.renew_at = at + self.conf.lease / 5 * random.uniform(0.8, 1)
        self.leased_until = at + self.conf.lease


def _is_gone(runner: PeasyRunner) -> bool:
    """Whether this host can see that the runner's process is gone. False where it cannot tell."""
    if not runner.host_id or runner.host_id != _host_id():
        return False
    try:
        return _started(runner.pid) != runner.pid_started
    except OSError:
        pass
    try:  # /proc may show nothing of another user's process
        os.kill(runner.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _host_id() -> str:
    # A host name is reused and containers share it; the same pid means something else in another PID namespace.
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty for a zombie. Raises `OSError` where that is not shown."""
    state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]
