"""The lease of this runner, and the jobs of runners whose lease has run out.

Each runner has a row in `PeasyRunner` with the moment until which its lease is valid by the
database's clock. While it is valid nobody else touches the runner's jobs. A runner that does not
renew it in time is presumed dead: another runner deletes its row and puts its jobs back into the
queue.
"""

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
from peasy_jobs.runner.jitter import jittered
from peasy_jobs.store import querysets, vendors
from peasy_jobs.store.clock import Clock

if TYPE_CHECKING:
    from peasy_jobs.conf import Conf

logger = logging.getLogger("peasy_jobs")

NEVER = float("-inf")
UNREGISTER_TIMEOUT = 3.0  # seconds that a lock may keep this process from ending
RESCUE_EVERY = 2.0  # seconds; also how soon a dead runner of the same host is found


class Lease:
    """Register this runner, renew its lease, and rescue the jobs of runners that are dead.

    All moments are `time.monotonic()`; the row has seconds since 1970 by the database's clock.
    """

    def __init__(self, jobs: querysets.JobQuerySet, clock: Clock, conf: Conf) -> None:
        self.jobs = jobs
        self.clock = clock
        self.conf = conf
        self.runners = PeasyRunner.objects.using(jobs.db)
        self.id = 0  # of this runner's row; 0 before it is registered
        self.renew_at = NEVER
        self.rescue_at = NEVER
        self.last_renewal = NEVER
        self.leased_until = NEVER
        self.steady_since = NEVER  # renewed in time without a break since then
        self.looked_for_orphans = False  # jobs that run and name no runner, as of version 0.4

    def register(self, queues: list[str]) -> None:
        """Register this runner under a new id, with a new lease."""
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
        self._record_renewal(before)
        self.steady_since = monotonic()

    def renew(self) -> bool:
        """Renew the lease when a fifth of it is over.

        Return False if the lease was revoked: other runners presumed this one dead.
        """
        if monotonic() < self.renew_at:
            return True
        before = monotonic()
        until = self.clock.sync() + self.conf.lease
        heartbeat = self.clock.at(monotonic())
        if not self.runners.filter(pk=self.id).update(heartbeat=heartbeat, lease_until=until):
            return False
        if monotonic() > self.last_renewal + 2 / 5 * self.conf.lease:
            self.steady_since = monotonic()  # this runner was held up, and maybe all of them were
        self._record_renewal(before)
        return True

    def is_held(self) -> bool:
        """Return whether the lease is still valid, so that jobs may be claimed."""
        return monotonic() < self.leased_until

    def next_due(self) -> float:
        """Return when `renew` or `rescue` has something to do."""
        return min(self.renew_at, self.rescue_at)

    def rescue(self) -> int:
        """Put the jobs of dead runners back into the queue. Return how many jobs that were.

        A lease that has run out counts only after this runner has renewed its own for the length of
        a whole lease: after an outage that stopped every runner, none of them is dead.
        """
        if monotonic() < self.rescue_at:
            return 0
        self.rescue_at = monotonic() + jittered(RESCUE_EVERY)
        rescued = self._rescue_orphans()
        # Read before the runners are: each runner that is named now has registered before.
        named = self.jobs.runners_named()
        others = list(self.runners.exclude(pk=self.id))
        for runner in self._dead(others):
            rescued += self._rescue_jobs_of(runner)
        strays = named - {self.id, *(runner.pk for runner in others)}
        return rescued + sum(map(self._rescue_stray, strays))

    def unregister(self) -> None:
        """Delete this runner's row, unless jobs still name it: they are rescued by that row."""
        until = monotonic() + UNREGISTER_TIMEOUT
        while not self.jobs.filter(runner=self.id).exists():
            try:
                self.runners.filter(pk=self.id).delete()
                return
            except DatabaseError as error:
                if not vendors.is_locked(error) or monotonic() > until:
                    raise

    def _record_renewal(self, at: float) -> None:
        # `at` is before the clocks were read: the lease is not prolonged by the time of the query.
        self.last_renewal = at
        self.renew_at = at + self.conf.lease / 5 * random.uniform(0.8, 1)
        self.leased_until = at + self.conf.lease

    def _dead(self, others: list[PeasyRunner]) -> list[PeasyRunner]:
        if not others:
            return []  # without reading the clock: this is asked every two seconds
        now = self.clock.sync()
        steady = monotonic() - max(self.steady_since, self.clock.stepped_at) > self.conf.lease
        return [
            runner for runner in others if (steady and runner.lease_until < now) or _is_gone(runner)
        ]

    def _rescue_jobs_of(self, runner: PeasyRunner) -> int:
        # Delete the row first, and only if the lease was not renewed since it was read. If this
        # process is killed in between, the jobs name a runner without a row and are strays.
        row = self.runners.filter(pk=runner.pk, lease_until=runner.lease_until)
        deleted, _ = row.delete()
        if not deleted:
            return 0
        where = f"{runner.host}, pid {runner.pid}"
        reason = f"The runner of this job ({where}) died before it had finished."
        count = self.jobs.rescue(runner.pk, reason, self.conf.crash_retries, where)
        logger.warning("%s is gone. Jobs rescued: %d.", runner, count)
        return count

    def _rescue_stray(self, runner_id: int) -> int:
        # A runner that was suspended in the middle of a claim, and presumed dead, still completes
        # that claim when it is resumed.
        reason = "The runner of this job was presumed dead before it claimed the job."
        return self.jobs.rescue(runner_id, reason, self.conf.crash_retries)

    def _rescue_orphans(self) -> int:
        if self.looked_for_orphans:
            return 0
        rescued = self.jobs.rescue(None, "The runner of this job is gone.", self.conf.crash_retries)
        self.looked_for_orphans = True
        return rescued


def _is_gone(runner: PeasyRunner) -> bool:
    """Return whether the runner's process has ended; False if that cannot be seen from here."""
    if not runner.host_id or runner.host_id != _host_id():
        return False
    try:
        return _started(runner.pid) != runner.pid_started
    except OSError:
        pass
    try:  # /proc may hide the processes of other users
        os.kill(runner.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _host_id() -> str:
    """Identify the boot of this host and the PID namespace. Empty where that is unknown.

    A host name is not enough: names are reused, and containers share them. A pid means another
    process in another namespace.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty for a zombie.

    Raises `OSError` if there is no such process, or if it cannot be seen.
    """
    # See proc(5): the command in parentheses may contain spaces. State and start time follow it.
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
