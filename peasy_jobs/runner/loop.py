"""The main loop of one `run_peasy` process.

Each iteration collects what the workers report, writes outcomes, does the periodic work that is
due, claims jobs, hands them out and waits. All of that happens in one thread and on one database
connection.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic

from django.db import DatabaseError, InterfaceError, connections, reset_queries, router

from peasy_jobs import statuses
from peasy_jobs.conf import Conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.runner import capacity, outcomes
from peasy_jobs.runner.capacity import Capacity
from peasy_jobs.runner.demand import Demand
from peasy_jobs.runner.healthcheck import unapplied_migrations
from peasy_jobs.runner.held import CANCEL_CHECK_EVERY, HeldJobs
from peasy_jobs.runner.lease import Lease
from peasy_jobs.runner.maintenance import Maintenance
from peasy_jobs.runner.outage import Outage
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.runner.session import Session
from peasy_jobs.runner.shutdown import Phase, Shutdown
from peasy_jobs.store import vendors, wakeup
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock
from peasy_jobs.store.values import Claim
from peasy_jobs.workers.base import Worker, Workers, distribute
from peasy_jobs.workers.processes import ProcessWorkers
from peasy_jobs.workers.protocol import Outcome, Report, StopReason, StopRequest
from peasy_jobs.workers.threads import ThreadWorkers

logger = logging.getLogger("peasy_jobs")


class Runner:
    """Run jobs in workers until a signal says to stop."""

    workers: Workers

    def __init__(
        self,
        conf: Conf,
        say: Callable[[str], None],
        *,
        queues: Sequence[str] = (),
        exit_on_empty: bool = False,
    ) -> None:
        """Prepare a runner. Nothing is connected or started before `run`.

        say: print a line for the person who started the runner.
        queues: run only the jobs of these queues; all jobs if empty.
        exit_on_empty: exit when no job can run now.
        """
        connection = connections[router.db_for_write(PeasyJobQueue)]
        self.conf = conf
        self.say = say
        self.queues = list(queues)
        self.selector = selectors.DefaultSelector()
        self.session = Session(connection, answer_timeout=conf.lease / 3)
        self.jobs = PeasyJobQueue.objects.using(connection.alias)
        self.clock = Clock(connection)
        self.lease = Lease(self.jobs, self.clock, conf)
        self.maintenance = Maintenance(self.jobs, self.clock, conf)
        self.held = self._new_held_jobs()
        self.capacity = Capacity()
        self.demand = Demand(
            partial(self.jobs.peek, self.queues),
            conf.polling_interval,
            self.selector,
            exit_on_empty=exit_on_empty,
        )
        self.outage = Outage()
        self.shutdown = Shutdown(conf.shutdown_timeout, self.selector)

    def run(self) -> bool:
        """Run jobs until a signal says to stop, or with `exit_on_empty` until none is left.

        Return False if jobs that were given back still run in threads. Threads end only with
        their process, so the process has to exit.
        """
        kind = ProcessWorkers if self.conf.worker_type == "process" else ThreadWorkers
        with self.selector, self.shutdown.signals:
            self.workers = kind(self.conf.concurrency, self.selector, self.conf.max_jobs_per_worker)
            try:
                while not self._is_over():
                    self._wait()
                    self.tick()
            finally:
                self.workers.stop()
                with suppress(DatabaseError, InterfaceError):
                    self.lease.unregister()
                    self.maintenance.counters.write()
        return not any(worker.pending for worker in self.workers.workers)

    def tick(self) -> None:
        """Run one iteration. A database error aborts it without losing anything."""
        self._process_events()
        self._handle_signals()
        self._enforce_limits()
        reset_queries()  # with DEBUG Django keeps every query
        if self.outage.is_waiting():
            return
        try:
            self._connect()
            self.demand.poll_wakeup()
            self._renew_lease()
            self._rescue()
            self._write_outcomes()
            self._mark_started()
            self.maintenance.run_due(backlog=self.demand.backlog)
            self._stop_cancelled()
            self._recall()
            if free_slots := self._free_slots():
                now, idle = monotonic(), self.held.is_idle()
                if self.demand.needs_look(now, idle=idle):
                    self._look(now)
                if self.demand.should_claim(now):
                    self._claim(free_slots)
                elif self.demand.exit_on_empty and idle:
                    self._finish()
        except (DatabaseError, InterfaceError) as error:
            self._back_off(error)
        else:
            self.outage.record_success()
        finally:
            self.session.stop_time_limit()

    def _is_over(self) -> bool:
        phase = self.shutdown.phase
        return phase is Phase.ABANDONED or (phase is not Phase.RUNNING and self.held.is_idle())

    # Steps that do not use the database

    def _process_events(self) -> None:
        self.capacity.as_of = monotonic()
        for event in self.workers.collect():
            if isinstance(event, Outcome):
                if self.held.record_outcome(event):
                    self.capacity.record_duration(event.ended - event.started)
            elif isinstance(event, Report):
                self.held.recorder.record_progress(event)
            else:
                self.held.record_exit(event, stopping=self.shutdown.phase >= Phase.STOPPING)

    def _handle_signals(self) -> None:
        for phase in self.shutdown.advance(monotonic()):
            if phase is Phase.DRAINING:
                self._drain()
            elif phase is Phase.STOPPING:
                self._stop_jobs()
            elif phase is Phase.KILLING:
                self.held.stop_controller.end_grace()

    def _drain(self) -> None:
        logger.info("Stopping: claiming no more jobs, %d still running.", len(self.held))
        for worker in self.workers.workers:
            for claim in worker.recall():
                self.held.give_back(claim)

    def _stop_jobs(self) -> None:
        if self.held:
            count = len(self.held)
            jobs = "1 unfinished job; it" if count == 1 else f"{count} unfinished jobs; they"
            logger.warning("Stopping %s will run again.", jobs)
        why = "at once" if self.shutdown.signals.count > 1 else "and waits no longer"
        self.held.stop_controller.stop_all(self.workers.workers, f"The runner stops {why}.")

    def _enforce_limits(self) -> None:
        for claim in self.held.stop_controller.enforce(self.workers.workers):
            if self.shutdown.phase >= Phase.STOPPING:
                self.held.give_back(claim)  # a thread, which ends with this process

    # Connection and lease

    def _connect(self) -> None:
        self.session.open()
        if not self.demand.is_listening:
            self.demand.listen(self.session.connection)
        if not self.lease.id:
            self._register()
        if self.outage.is_on:  # the answer to a claim may have been lost
            self.jobs.give_back_unknown(self.lease.id, self.held.known_claims())

    def _register(self) -> None:
        if missing := unapplied_migrations(self.session.connection):
            raise DatabaseError(
                f"migrations are missing, {', '.join(missing)}: run manage.py migrate"
            )
        self.lease.register(self.queues)
        self._say_what_is_served()

    def _renew_lease(self) -> None:
        if monotonic() >= self.lease.renew_at:
            self.session.check_file()
        if not self.lease.renew():
            logger.error(
                "This runner's lease was revoked. "
                "Stopping its jobs and registering again under a new id."
            )
            self._drop_jobs()
            self.lease.register(self.queues)

    def _drop_jobs(self) -> None:
        """Stop the held jobs: they no longer belong to this runner."""
        for worker in self.workers.workers:
            worker.recall()
            for claim in list(worker.pending.values())[:1]:  # the running job
                if not worker.kill():
                    revoked = "The job was taken from this runner."
                    worker.request_stop(claim, StopRequest(StopReason.SHUTDOWN, revoked))
        self.held = self._new_held_jobs()

    def _new_held_jobs(self) -> HeldJobs:
        recorder = Recorder(
            self.session.connection, self.jobs, self.clock, self.maintenance.counters
        )
        return HeldJobs(recorder, self.clock, self.conf)

    def _rescue(self) -> None:
        if rescued := self.lease.rescue():
            self.demand.signalled = True
            self.capacity.record_rescue(rescued)

    def _back_off(self, error: Exception) -> None:
        """Retry later, on a new connection unless the error was only a lock."""
        self.outage.record_failure(error)
        if not vendors.is_locked(error):
            self.demand.stop_listening()
            self.session.close()

    # Held jobs

    def _write_outcomes(self) -> None:
        if self.held.recorder.write(self.lease.id, urgent=self._has_idle_worker()):
            self.demand.signalled = True  # jobs went back to the queue, which no wake-up signals

    def _mark_started(self) -> None:
        """Mark the jobs that were claimed ahead and have started.

        If this runner dies, a crash is counted only for marked jobs.
        """
        started = self.held.to_mark_started(self.workers.workers, self.capacity.as_of)
        if started:
            self.jobs.begin(self.lease.id, started, self.clock.at(monotonic()))
            self.held.mark_started(started)

    def _stop_cancelled(self) -> None:
        """Stop the jobs that were cancelled while this runner held them."""
        if not self.held or monotonic() < self.held.cancel_check_at:
            return
        self.held.cancel_check_at = monotonic() + CANCEL_CHECK_EVERY
        cancelled = dict(self.jobs.cancelled_of(self.lease.id))
        for worker in self.workers.workers:
            self._stop_cancelled_of(worker, cancelled)
        unwritten = {update.claim.pk for update in self.held.recorder.unwritten}
        in_workers = (worker.pending for worker in self.workers.workers)
        # Neither a worker nor the recorder has these, so nothing else would close them.
        for pk in cancelled.keys() - unwritten.union(*in_workers):
            self.jobs.close_cancelled(self.lease.id, pk, cancelled[pk], self.clock.at(monotonic()))

    def _stop_cancelled_of(self, worker: Worker, cancelled: dict[int, int]) -> None:
        if not cancelled.keys().isdisjoint(list(worker.pending)[1:]):
            recalled = worker.recall()
            for claim in recalled:
                if claim.pk in cancelled:
                    self.held.give_back(claim)  # the guard in SQL keeps the job cancelled
            self._hand_out([claim for claim in recalled if claim.pk not in cancelled])
        running = next(iter(worker.pending.values()), None)
        if running is not None and running.pk in cancelled:
            cancel = StopRequest(StopReason.CANCELLED, "It was cancelled.")
            self.held.stop_controller.request_stop(worker, running, cancel)

    def _recall(self) -> None:
        """Recall the jobs that wait behind a long one, and share them out again."""
        for worker in self.workers.workers:
            if len(worker.pending) > 1 and self.capacity.is_held_up(worker):
                self._hand_out(worker.recall())

    # Claiming

    def _free_slots(self) -> dict[Worker, int]:
        """Return how many jobs to claim for each worker. Workers that get none are left out."""
        if self.shutdown.phase is not Phase.RUNNING or not self.lease.is_held():
            return {}
        return self.capacity.free_slots(self.workers.workers)

    def _look(self, now: float) -> None:
        """Query the queue without a lock, and promote the scheduled jobs that are due."""
        waiting, due = self.demand.peek()
        seconds_to_due = None if due is None else (due - self.clock.at(now)).total_seconds()
        promoted = 0
        if seconds_to_due is not None and seconds_to_due <= 0:
            promoted = self.jobs.promote(self.clock.at(now))
        self.demand.record_look(
            now, waiting=waiting, seconds_to_due=seconds_to_due, promoted=promoted
        )

    def _claim(self, free_slots: dict[Worker, int]) -> None:
        if not self.lease.is_held():  # the look took too long
            return
        limit, ahead = self.capacity.claim_size(free_slots)
        before = monotonic()
        request = ClaimRequest(
            runner_id=self.lease.id,
            limit=limit,
            ahead=ahead,
            queues=self.queues,
            max_bytes=capacity.LOOK_AHEAD_BYTES,
            now=self.clock.at(before),
        )
        claims = self.jobs.claim(request)
        self.held.add(claims, started=limit - ahead)
        invalid = {claim: reason for claim in claims if (reason := claim.invalid_field())}
        for claim, reason in invalid.items():
            self.held.end(outcomes.invalid_row(claim, reason, self.clock))
        valid = [claim for claim in claims if claim not in invalid] if invalid else claims
        sizes = [claim.payload_bytes() for claim in valid]
        self.capacity.record_claim(len(claims), max(sizes, default=1))
        # A claim that ended at the limit of bytes has left jobs behind.
        is_cut_short = sum(sizes) > capacity.LOOK_AHEAD_BYTES
        self.demand.record_claim(before, backlog=len(claims) == limit or is_cut_short)
        self._hand_out(valid)

    def _hand_out(self, claims: list[Claim]) -> None:
        free_slots = self.capacity.free_slots(self.workers.workers)
        batches, left = distribute(claims, free_slots)
        for claim in left:
            self.held.give_back(claim)
        for worker, batch in batches.items():
            for claim in batch:
                logger.debug("%s (job %d) starts.", claim.title, claim.pk)
            worker.hand_out(batch)

    def _has_idle_worker(self) -> bool:
        """Return whether a worker has no job, so that outcomes are written without delay."""
        return not all(worker.pending for worker in self.workers.workers)

    def _finish(self) -> None:
        """Exit because no job can run now, after pruning, one batch in each iteration."""
        if self.maintenance.prune(grace=0):
            return
        later = self.jobs.in_queues(self.queues).filter(status=statuses.SCHEDULED).count()
        wait = "job waits" if later == 1 else "jobs wait"
        self.say(f"Nothing to run now; {later} {wait} for later.")
        self.shutdown.finish()

    # Waiting

    def _wait(self) -> None:
        """Wait until something is due or arrives."""
        can_claim = bool(self._free_slots()) and not self.outage.is_on
        listening = self.demand.wakeup if can_claim else None
        if wakeup.wait(self.selector, self._next_due(can_claim), listening):
            self.demand.signalled = True

    def _next_due(self, can_claim: bool) -> float:
        """Return the earliest time at which something is due (`time.monotonic()`)."""
        workers = self.workers.workers
        moments = [
            self.shutdown.next_due(),
            self.workers.next_due(),
            self.held.stop_controller.next_deadline(workers),
        ]
        if self.outage.is_on:  # skip what needs the database
            return min(*moments, self.outage.next_due())
        moments.append(self.lease.next_due())
        moments.append(self.maintenance.next_due(backlog=self.demand.backlog))
        moments.append(self.held.next_due(workers, urgent=self._has_idle_worker()))
        moments.append(self.capacity.next_due(workers))
        if can_claim:
            moments.append(self.demand.next_due(monotonic(), idle=self.held.is_idle()))
        return min(moments)

    def _say_what_is_served(self) -> None:
        queues = f"queues {', '.join(self.queues)}" if self.queues else "all queues"
        connection = self.session.connection
        where = f"{connection.vendor} database {connection.settings_dict['NAME']}"
        self.say(f"run_peasy serves {queues} of {where} as runner {self.lease.id}.")
        plural = "s" if self.conf.concurrency > 1 else ""
        workers = f"{self.conf.concurrency} {self.conf.worker_type} worker{plural}"
        self.say(f"{workers}, woken {self.demand.how_woken()}. Ctrl-C stops it.")
