"""One loop: collect what the workers report, record it, keep house, claim, hand out, wait. Writes no status itself."""

from __future__ import annotations

import logging
import random
import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    reset_queries,
    router,
)

from peasy_jobs import statuses
from peasy_jobs.conf import Conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import outcomes
from peasy_jobs.runner.healthcheck import unapplied_migrations
from peasy_jobs.runner.lease import Lease
from peasy_jobs.runner.maintenance import Maintenance
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.runner.shutdown import StopSignals
from peasy_jobs.runner.stopping import StopController
from peasy_jobs.runner.watchdog import Watchdog
from peasy_jobs.store import vendors, wakeup
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.workers.base import Worker, WorkerExit, Workers, distribute
from peasy_jobs.workers.execution import Outcome, Report
from peasy_jobs.workers.processes import ProcessWorkers
from peasy_jobs.workers.protocol import StopReason, StopRequest
from peasy_jobs.workers.threads import ThreadWorkers

logger = logging.getLogger("peasy_jobs")

LOCK_TIMEOUT = 0.5  # seconds that the runner's own connection waits for a lock
LOCK_IS_TROUBLE = 3.0  # seconds: a lock of less is everyday life on SQLite
CANCEL_EVERY = 0.5
LOOK_AHEAD = 0.1  # seconds of work that may wait in a worker
LOOK_AHEAD_JOBS, LOOK_AHEAD_BYTES = 1000, 1 << 24  # for each worker
BEGUN_AFTER = 0.01  # seconds: what has ended by then needs no write that says it had begun
GIVE_UP = 5.0  # seconds after a second signal until the runner ends with its outcomes unwritten


class Runner:
    """One `run_peasy`."""

    def __init__(
        self,
        conf: Conf,
        say: Callable[[str], None],
        *,
        queues: Sequence[str] = (),
        exit_on_empty: bool = False,
    ) -> None:
        self.conf, self.say, self.queues, self.exit_on_empty = (
            conf,
            say,
            list(queues),
            exit_on_empty,
        )
        self.connection = connections[router.db_for_write(PeasyJobQueue)]
        self.jobs = PeasyJobQueue.objects.using(self.connection.alias)
        self.clock = Clock(self.connection)
        self.lease = Lease(self.jobs, self.clock, conf)
        self.house = Maintenance(self.jobs, self.clock, conf)
        self.selector = selectors.DefaultSelector()
        self.recorder = Recorder(self.connection, self.jobs, self.clock, self.house.tally)
        self.stopper = StopController(conf.job_timeout)
        self.connected = self.told_trouble = False
        self.file: tuple[int, int] | None = None  # the database's, on SQLite
        self.peek = partial(self.jobs.peek, self.queues)
        self.wakeup: wakeup.Wakeup = wakeup.PollWakeup(self.peek, conf.polling_interval)
        self.signals = StopSignals(self.selector)
        self.silence = Watchdog(conf.lease / 3)
        self.stopping = self.hurried = self.killing = False
        self.kill_at = float("inf")  # when the jobs that still run are ended
        self.held: dict[int, Claim] = {}  # claimed, no outcome yet
        self.ahead: set[int] = set()  # those of them that are not marked as started
        self.pace: float | None = None  # seconds that a job takes
        self.weight = 1  # bytes of the largest arguments among those that were claimed last
        self.recovered_jobs = 0  # jobs of dead runners: they run one at a time, so that who kills its runner is charged
        self.backlog = self.hint = (
            True  # whether there is more than was claimed; whether there may be
        )
        self.recheck_delays: list[float] = []
        self.absorbed_at = self.look_at = self.cancel_at = self.house.prune_at = self.retry_at = 0.0
        self.trouble_since: float | None = None

    def run(self) -> bool:
        """Run jobs until a signal ends it, or until none is left with `exit_on_empty`.

        Returns False when threads had to be left running, with their jobs given back: the process must end at once.
        """
        with self.selector, self.signals:
            kind = ProcessWorkers if self.conf.worker_type == "process" else ThreadWorkers
            self.workers: Workers = kind(
                self.conf.concurrency, self.selector, self.conf.max_jobs_per_worker
            )
            try:
                while not self._over():
                    self._wait()
                    self.turn()
            finally:
                self.workers.stop()
                with suppress(DatabaseError, InterfaceError):
                    self.lease.leave()
                    self.house.tally.write()
        return not any(worker.pending for worker in self.workers.workers)

    def turn(self) -> None:
        """One round of everything but waiting. Trouble with the database ends it; nothing is lost, the next goes on."""
        self._absorb()
        self._heed_signals()
        for claim in self.stopper.enforce(self.workers.workers):
            if self.killing:  # the end of this process will end the thread
                self._give_back(claim)
        reset_queries()
        if monotonic() < self.retry_at:
            return
        try:
            self._connect()
            self.hint |= self.wakeup.has_signal()
            self._stay_alive()
            if self.recorder.write(self.lease.id, urgent=self._is_hungry()):
                self.hint = True  # jobs went back to the queue, which no wake-up tells us of
            self._mark_begun()
            self.house.keep(self.backlog)
            self._stop_cancelled()
            self._recall()
            if not self.stopping:
                self._claim()
        except (DatabaseError, InterfaceError) as error:
            self._wait_out(error)
        else:
            if self.trouble_since is not None:
                if self.told_trouble:
                    logger.warning(
                        "The database works again after %.1f s.", monotonic() - self.trouble_since
                    )
                self.trouble_since = None
        finally:
            self.silence.clear()

    # What workers report

    def _absorb(self) -> None:
        self.absorbed_at = monotonic()
        for event in self.workers.collect():
            if isinstance(event, Outcome):
                self._absorb_outcome(event)
            elif isinstance(event, Report):
                self.recorder.report(event)
            else:
                self._absorb_death(event)

    def _absorb_outcome(self, outcome: Outcome) -> None:
        claim = self.held.get(outcome.pk)
        if claim is None or claim.fencing_token != outcome.fencing_token:
            return  # of a job that was taken from us
        seconds = outcome.ended - outcome.started
        self.pace = seconds if self.pace is None else self.pace + (seconds - self.pace) / 8
        self._end(outcomes.ended(claim, outcome, self.clock))

    def _absorb_death(self, death: WorkerExit) -> None:
        for claim in death.not_started:
            self._give_back(claim)
        for claim in death.running:
            if self.held.get(claim.pk) is not claim:
                continue  # taken from us, and killed for that
            request = self.stopper.forget(claim)
            stopped = request is not None and request.reason is not StopReason.TIME_LIMIT
            if death.reason is None or self.killing or stopped:
                self._give_back(claim)
            elif request:
                self._end(outcomes.killed_late(claim, death, request.message, self.clock))
            else:
                self._end(outcomes.crashed(claim, death, self.conf.crash_retries, self.clock))

    def _give_back(self, claim: Claim) -> None:
        self._end(outcomes.given_back(claim))

    def _end(self, ending: JobUpdate) -> None:
        if self.held.get(ending.claim.pk) is ending.claim:  # not a later claim of the same job
            del self.held[ending.claim.pk]
            self.ahead.discard(ending.claim.pk)
            self.stopper.forget(ending.claim)
        self.recorder.end(ending)

    # What is kept going beside the jobs

    def _connect(self) -> None:
        if not self.connected:
            vendors.configure_runner_settings(self.connection, self.conf.lease / 3)
            self.connection.ensure_connection()
            self.file = vendors.file_of(self.connection)
        self.silence.set(vendors.socket_of(self.connection))
        if not self.connected:
            vendors.configure_session(self.connection, LOCK_TIMEOUT)
            self.wakeup = wakeup.watch(self.connection, self.peek, self.conf.polling_interval)
            if self.wakeup.fileno() >= 0:
                self.selector.register(
                    self.wakeup.fileno(), selectors.EVENT_READ, self.wakeup.readable
                )
            self.connected = self.hint = True
        if not self.lease.id:
            if missing := unapplied_migrations(self.connection):
                raise DatabaseError(
                    f"migrations are missing, {', '.join(missing)}: run manage.py migrate"
                )
            self.lease.register(self.queues)
            self._say_what_is_served()
        if self.trouble_since is not None:
            known = [*self.held.values(), *(ending.claim for ending in self.recorder.unwritten)]
            self.jobs.give_back_unknown(self.lease.id, known)

    def _stay_alive(self) -> None:
        if monotonic() >= self.lease.renew_at and vendors.file_of(self.connection) != self.file:
            raise OperationalError(
                f"{self.connection.settings_dict['NAME']} is not the file it was"
            )
        if not self.lease.renew():
            logger.error(
                "This runner was taken for dead. It ends what it runs and goes on under a new id."
            )
            for worker in self.workers.workers:
                worker.recall()
                for claim in list(worker.pending.values())[:1]:
                    if not worker.kill():
                        revoked = "The job was taken from this runner."
                        worker.request_stop(claim, StopRequest(StopReason.SHUTDOWN, revoked))
            self.held, self.ahead, self.stopper = {}, set(), StopController(self.conf.job_timeout)
            self.recorder = Recorder(self.connection, self.jobs, self.clock, self.house.tally)
            self.lease.register(self.queues)
        if rescued := self.lease.rescue():
            self.hint = True
            self.recovered_jobs += rescued

    def _stop_cancelled(self) -> None:
        """Jobs that were cancelled while this runner held them."""
        if not self.held or monotonic() < self.cancel_at:
            return
        self.cancel_at = monotonic() + CANCEL_EVERY
        cancelled = dict(self.jobs.cancelled_of(self.lease.id))
        for worker in self.workers.workers:
            if not cancelled.keys().isdisjoint(list(worker.pending)[1:]):
                recalled = worker.recall()
                for claim in recalled:
                    if claim.pk in cancelled:
                        self._give_back(claim)  # which the queue refuses: it is closed
                self._hand_out([claim for claim in recalled if claim.pk not in cancelled])
            if (first := next(iter(worker.pending.values()), None)) and first.pk in cancelled:
                cancel = StopRequest(StopReason.CANCELLED, "It was cancelled.")
                self.stopper.request_stop(worker, first, cancel)
        unwritten = {ending.claim.pk for ending in self.recorder.unwritten}
        for pk in cancelled.keys() - unwritten.union(
            *(worker.pending for worker in self.workers.workers)
        ):
            self.jobs.close_cancelled(self.lease.id, pk, cancelled[pk], self.clock.at(monotonic()))

    def _wait_out(self, error: Exception) -> None:
        locked = vendors.is_locked(error)
        if self.trouble_since is None:
            self.trouble_since, self.told_trouble = monotonic(), False
        if not self.told_trouble and (
            not locked or monotonic() - self.trouble_since > LOCK_IS_TROUBLE
        ):
            self.told_trouble = True
            logger.warning(
                "Cannot use the database (%s). Trying until it works again.", str(error).strip()
            )
        self.retry_at = monotonic() + random.uniform(0.1, 0.5)
        if not locked:
            if self.wakeup.fileno() >= 0:
                self.selector.unregister(self.wakeup.fileno())
            self.wakeup, self.connected = (
                wakeup.PollWakeup(self.peek, self.conf.polling_interval),
                False,
            )
            with suppress(Exception):
                self.connection.close()

    # What is claimed

    def _recall(self) -> None:
        """Take from a worker that is held up what it has not begun."""
        for worker in self.workers.workers:
            if len(worker.pending) > 1 and self.absorbed_at - worker.busy_since > LOOK_AHEAD:
                self._hand_out(worker.recall())

    def _claim(self) -> None:
        room = self._room()
        if not room or not self.lease.holds_lease() or not self._worth_claiming():
            return
        if not self.lease.holds_lease():  # looking took so long
            self.hint = True
            return
        # In small portions: while they are claimed no outcome is written, and who has nothing left to do waits.
        limit = min(sum(room.values()), max(LOOK_AHEAD_JOBS, len(room)))
        ahead = limit - sum(not worker.pending for worker in room)
        now = self.clock.at(monotonic())
        claims = self.jobs.claim(self.lease.id, limit, self.queues, now, ahead, LOOK_AHEAD_BYTES)
        self.ahead.update(claim.pk for claim in claims[limit - ahead :])
        self.recovered_jobs = max(0, self.recovered_jobs - len(claims))
        damages = {claim: why for claim in claims if (why := claim.damage())}
        for claim, why in damages.items():
            self._end(outcomes.damaged(claim, why, self.clock))
        sound = [claim for claim in claims if claim not in damages] if damages else claims
        weights = [claim.weight() for claim in sound] or [1]
        self.weight = max(weights)
        self.backlog = (
            len(claims) == limit or sum(weights) > LOOK_AHEAD_BYTES
        )  # there were more, but they are large
        self._hand_out(sound)

    def _room(self) -> dict[Worker, int]:
        """How many more jobs each worker may have: one at a time, unless jobs are seen to be short."""
        depth, now = 1, self.absorbed_at  # nothing is known of what workers did since
        if self.pace is not None and self.pace < LOOK_AHEAD / 2 and not self.recovered_jobs:
            depth = min(
                LOOK_AHEAD_JOBS,
                int(LOOK_AHEAD / max(self.pace, 1e-6)),
                LOOK_AHEAD_BYTES // self.weight + 1,
            )
        # Filled up when half of it is done, so that jobs travel in batches.
        return {
            worker: int(min(depth - len(worker.pending), worker.room))
            for worker in self.workers.workers
            if worker.ready
            and worker.room > 0
            and (
                not worker.pending
                or (len(worker.pending) <= depth // 2 and now - worker.busy_since < LOOK_AHEAD)
            )
        }

    def _worth_claiming(self) -> bool:
        """Whether there are jobs to claim, as far as can be told without taking a lock."""
        if self.backlog:
            return True
        now, idle = monotonic(), not self.held and not self.recorder.unwritten
        if self.hint:
            self.hint, self.recheck_delays = False, list(self.wakeup.recheck_delays)
            if (
                self.recheck_delays and now < self.look_at
            ):  # it was said that there is a job: no look first
                self.look_at = min(self.look_at, now + self.recheck_delays.pop(0))
                return True
        elif now < self.look_at and not (idle and self.exit_on_empty):
            return False
        waiting, due = self.peek()
        pause = float("inf") if self.wakeup.looks and due is None else self.conf.polling_interval
        if due is not None and due <= self.clock.at(now):
            promoted = self.jobs.promote(self.clock.at(now))
            waiting, due = (
                waiting or promoted > 0,
                due if promoted else None,
            )  # there may be more of them
        if self.exit_on_empty and idle and not waiting:
            self._finish()
        self.look_at = now + pause * random.uniform(0.9, 1)
        if self.recheck_delays:
            self.look_at = min(self.look_at, now + self.recheck_delays.pop(0))
        if due is not None:
            self.look_at = min(self.look_at, now + (due - self.clock.at(now)).total_seconds())
        return waiting

    def _hand_out(self, claims: list[Claim]) -> None:
        batches, left = distribute(claims, self._room())
        for claim in left:
            self._give_back(claim)
        for worker, batch in batches.items():
            for claim in batch:
                self.held[claim.pk] = claim
                logger.debug("%s (job %d) starts.", claim.title, claim.pk)
            worker.hand_out(batch)

    def _mark_begun(self) -> None:
        """Say which of the jobs that were claimed ahead have started: only those are charged if this runner dies."""
        begun = [claim for at, claim in self._unmarked() if at <= self.absorbed_at]
        if begun:
            self.jobs.begin(self.lease.id, begun, self.clock.at(monotonic()))
            self.ahead.difference_update(claim.pk for claim in begun)

    def _unmarked(self) -> list[tuple[float, Claim]]:
        """The jobs that have started and are not marked so, each with the moment when it has to be."""
        busy = [worker for worker in self.workers.workers if worker.pending] if self.ahead else []
        heads = [
            (worker.busy_since + BEGUN_AFTER, next(iter(worker.pending.values())))
            for worker in busy
        ]
        return [(at, claim) for at, claim in heads if claim.pk in self.ahead]

    def _is_hungry(self) -> bool:
        """Whether a worker has nothing to do, so that outcomes are written and jobs claimed without delay."""
        return not all(worker.pending for worker in self.workers.workers)

    # How it waits and ends

    def _wait(self) -> None:
        now, looks = monotonic(), False
        if self.retry_at > now:
            moments = [self.retry_at]
        else:
            moments = [self.lease.renew_at, self.lease.rescue_at, self.house.prune_at]
            if self.held:
                moments.append(self.cancel_at)
            moments.append(self.recorder.next_write(urgent=self._is_hungry()))
            moments += [
                worker.busy_since + LOOK_AHEAD
                for worker in self.workers.workers
                if len(worker.pending) > 1
            ]
            moments += [at for at, _ in self._unmarked()]
            if looks := not self.stopping and self.lease.holds_lease() and bool(self._room()):
                empty = self.exit_on_empty and not self.held and not self.recorder.unwritten
                moments.append(now if self.backlog or empty else self.look_at)
        moments.append(self.stopper.next_deadline(self.workers.workers))
        if not self.killing:
            moments.append(self.kill_at)
        self.hint |= wakeup.wait(self.selector, min(moments), self.wakeup if looks else None)

    def _over(self) -> bool:
        if self.stopping and (self.held or self.recorder.unwritten):
            return (
                monotonic() > self.kill_at + GIVE_UP
            )  # the database is away: the jobs will be rescued
        return self.stopping

    def _finish(self) -> None:
        """Nothing is left to run now, and `exit_on_empty` says to end then: when turn by turn all is pruned."""
        if self.house.prune(grace=0):
            return
        later = self.jobs.in_queues(self.queues).filter(status=statuses.SCHEDULED).count()
        self.say(
            f"Nothing to run now; {later} {'job waits' if later == 1 else 'jobs wait'} for later."
        )
        self.stopping = True

    def _heed_signals(self) -> None:
        now = monotonic()
        if self.signals.count and not self.stopping:
            logger.info("Stopping: no more jobs are claimed, %d still run.", len(self.held))
            self.stopping, self.kill_at = (
                True,
                now + min(self.conf.shutdown_timeout, self.signals.grace),
            )
            for worker in self.workers.workers:
                for claim in worker.recall():
                    self._give_back(claim)
        if self.signals.count > 1:
            self.kill_at = min(self.kill_at, now)
        if now >= self.kill_at and not self.killing:
            if self.held:
                logger.warning(
                    "Jobs ended before they have finished: %d. They run again later.",
                    len(self.held),
                )
            self.killing = True
            why = "at once" if self.signals.count > 1 else "and waits no longer"
            self.stopper.stop_all(self.workers.workers, f"The runner stops {why}.")
        if self.signals.count > 1 and not self.hurried:
            self.hurried = True
            self.stopper.end_grace()

    def _say_what_is_served(self) -> None:
        queues = f"queues {', '.join(self.queues)}" if self.queues else "all queues"
        where = f"{self.connection.vendor} database {self.connection.settings_dict['NAME']}"
        self.say(f"run_peasy serves {queues} of {where} as runner {self.lease.id}.")
        workers = f"{self.conf.concurrency} {self.conf.worker_type} worker{'s' * (self.conf.concurrency > 1)}"
        every = "" if self.wakeup.looks else f" and every {self.conf.polling_interval:g} s"
        self.say(f"{workers}, woken {self.wakeup.description}{every}. Ctrl-C stops it.")
