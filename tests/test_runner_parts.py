"""The parts of the runner's loop, each by itself: what it decides, and when it is due next."""

import selectors
from dataclasses import replace
from types import SimpleNamespace

import pytest
from django.db import OperationalError

from peasy_jobs import conf
from peasy_jobs.runner import capacity, outage, shutdown
from peasy_jobs.runner.capacity import Capacity
from peasy_jobs.runner.demand import Demand
from peasy_jobs.runner.loop import Runner
from peasy_jobs.runner.outage import Outage
from peasy_jobs.runner.shutdown import Phase, Shutdown
from peasy_jobs.store.values import Claim
from peasy_jobs.workers.processes import START_RETRY_AFTER, ProcessWorkers

NEVER = float("inf")
SOON = 1_000.0  # a moment on the monotonic clock
SETTINGS = replace(conf.Conf(), worker_type="thread")


def claim(pk=1):
    return Claim(pk, 1, "", "", 1, 0, None, None)


def worker(*pending, busy_since=0.0, room=NEVER, ready=True):
    class FakeWorker(SimpleNamespace):
        __hash__ = object.__hash__

    return FakeWorker(
        pending={each.pk: each for each in pending}, busy_since=busy_since, room=room, ready=ready
    )


@pytest.fixture
def runner():
    """A runner that is not connected and has no workers."""
    made = Runner(SETTINGS, lambda text: None)
    made.workers = SimpleNamespace(workers=[], next_due=lambda: NEVER)
    yield made
    made.selector.close()


# When it is due


def timers_of(part):
    """Return the names of the timers of a part: a name that ends in `_at` is a moment to come."""
    return [name for name in vars(part) if name.endswith("_at")]


def due_of(name, runner):
    """Ask a part when it is due next, in a situation in which all its timers count."""
    part = getattr(runner, name)
    arguments = {
        "maintenance": {"backlog": True},
        "held": {"workers": [], "urgent": False},
        "demand": {"now": 0.0, "idle": False},
        "capacity": {"workers": []},
    }
    return part.next_due(**arguments.get(name, {}))


@pytest.mark.parametrize(
    ("part", "timer"),
    [
        ("lease", "renew_at"),
        ("lease", "rescue_at"),
        ("maintenance", "promote_at"),
        ("maintenance", "prune_at"),
        ("maintenance", "counters_at"),
        ("held", "cancel_check_at"),
        ("demand", "look_at"),
        ("outage", "retry_at"),
        ("shutdown", "stop_at"),
    ],
)
def test_each_timer_of_a_part_decides_when_it_is_due(runner, part, timer):
    runner.held.add([claim()], started=1)
    runner.demand.backlog = runner.demand.signalled = False
    runner.outage.since = 0.0
    for name in timers_of(getattr(runner, part)):
        setattr(getattr(runner, part), name, NEVER)
    assert due_of(part, runner) == NEVER
    setattr(getattr(runner, part), timer, SOON)
    assert due_of(part, runner) == SOON


def test_no_timer_of_any_part_is_missing_in_the_test_above(runner):
    (parameters,) = test_each_timer_of_a_part_decides_when_it_is_due.pytestmark
    found = [
        (name, timer)
        for name, part in vars(runner).items()
        if hasattr(part, "next_due")
        for timer in timers_of(part)
    ]
    assert sorted(found) == sorted(parameters.args[1])


def test_the_loop_waits_for_the_first_of_all_parts(runner):
    parts = [name for name, part in vars(runner).items() if hasattr(part, "next_due")]
    for name in parts:
        getattr(runner, name).next_due = lambda *args, **kwargs: NEVER
    assert runner._next_due(can_claim=True) == NEVER
    for name in set(parts) - {"outage"}:
        getattr(runner, name).next_due = lambda *args, **kwargs: SOON
        assert runner._next_due(can_claim=True) == SOON, name
        getattr(runner, name).next_due = lambda *args, **kwargs: NEVER


def test_during_an_outage_the_loop_waits_for_nothing_that_needs_the_database(runner):
    runner.outage.since, runner.outage.retry_at = 0.0, SOON
    runner.lease.renew_at = runner.lease.rescue_at = 0.0
    assert runner._next_due(can_claim=False) == SOON


@pytest.fixture
def processes():
    """One worker process that is to be started, without the fork server that would do it."""
    made = ProcessWorkers.__new__(ProcessWorkers)
    made.concurrency, made.workers, made.server = 1, [], None
    made.server_started = made.start_at = SOON
    return made


def test_a_fork_server_that_ended_is_started_again_when_that_is_due(processes):
    assert processes.next_due() == SOON + START_RETRY_AFTER


def test_a_worker_process_that_ended_is_started_again_when_that_is_due(processes):
    processes.server = SimpleNamespace()
    assert processes.next_due() == SOON


def test_nothing_is_due_while_all_worker_processes_run(processes):
    processes.server, processes.workers = SimpleNamespace(), [worker()]
    assert processes.next_due() == NEVER


# Shutdown


@pytest.fixture
def ending():
    with selectors.DefaultSelector() as selector:
        yield Shutdown(30, selector)


def test_a_runner_without_a_signal_runs(ending):
    assert ending.advance(SOON) == []
    assert ending.phase is Phase.RUNNING
    assert ending.next_due() == NEVER


def test_the_first_signal_lets_jobs_finish(ending):
    ending.signals.received = 1
    assert ending.advance(SOON) == [Phase.DRAINING]
    assert ending.next_due() == SOON + 30


def test_after_the_timeout_jobs_are_stopped_and_then_abandoned(ending):
    ending.signals.received = 1
    ending.advance(SOON)
    assert ending.advance(SOON + 29) == []
    assert ending.advance(SOON + 30) == [Phase.STOPPING]
    abandon_at = SOON + 30 + shutdown.ABANDON_AFTER
    assert ending.next_due() == abandon_at
    assert ending.advance(abandon_at - 0.1) == []
    ending.advance(abandon_at)
    assert ending.phase is Phase.ABANDONED


def test_a_second_signal_kills_jobs_at_once(ending):
    ending.signals.received = 1
    ending.advance(SOON)
    ending.signals.received = 2
    assert ending.advance(SOON + 1) == [Phase.STOPPING, Phase.KILLING]
    assert ending.next_due() == SOON + 1 + shutdown.ABANDON_AFTER


def test_a_second_signal_after_the_timeout_only_takes_the_grace(ending):
    ending.signals.received = 1
    ending.advance(SOON)
    ending.advance(SOON + 30)
    ending.signals.received = 2
    assert ending.advance(SOON + 31) == [Phase.KILLING]
    assert ending.next_due() == SOON + 30 + shutdown.ABANDON_AFTER


def test_two_signals_at_once_skip_no_phase(ending):
    ending.signals.received = 2
    assert ending.advance(SOON) == [Phase.DRAINING, Phase.STOPPING, Phase.KILLING]


def test_a_phase_is_entered_once(ending):
    ending.signals.received = 2
    ending.advance(SOON)
    assert ending.advance(SOON + 0.1) == []


def test_a_request_to_stop_counts_as_one_signal_with_its_own_grace(ending):
    ending.signals.request(2)
    assert ending.advance(SOON) == [Phase.DRAINING]
    assert ending.next_due() == SOON + 2


def test_a_runner_without_jobs_drains(ending):
    ending.finish()
    assert ending.phase is Phase.DRAINING


# Capacity


def slots(short, *workers):
    return list(short.free_slots(workers).values())


@pytest.fixture
def short():
    """Jobs are known to take a millisecond."""
    made = Capacity()
    made.record_duration(0.001)
    return made


def test_a_worker_gets_one_job_while_nothing_is_known_of_jobs():
    assert slots(Capacity(), worker()) == [1]


def test_a_worker_gets_as_many_short_jobs_as_fill_the_look_ahead(short):
    assert slots(short, worker()) == [int(capacity.LOOK_AHEAD / 0.001)]


def test_a_worker_gets_one_long_job(short):
    short.record_duration(10.0)
    assert slots(short, worker()) == [1]


def test_a_worker_gets_few_jobs_with_large_arguments(short):
    short.record_claim(1, capacity.LOOK_AHEAD_BYTES // 4)
    assert slots(short, worker()) == [5]


def test_recovered_jobs_run_one_at_a_time(short):
    short.record_rescue(2)
    assert slots(short, worker()) == [1]
    short.record_claim(2, 1)
    assert slots(short, worker()) == [100]


def test_a_worker_is_filled_up_when_half_of_its_jobs_have_ended(short):
    more_than_half = [claim(pk) for pk in range(51)]
    assert slots(short, worker(*more_than_half)) == []
    assert slots(short, worker(*more_than_half[1:])) == [50]


def test_a_worker_that_is_held_up_gets_no_more_jobs(short):
    short.as_of = capacity.LOOK_AHEAD * 2
    assert slots(short, worker(claim())) == []


def test_a_worker_that_is_not_ready_or_soon_replaced_gets_no_more_jobs(short):
    assert slots(short, worker(ready=False)) == []
    assert slots(short, worker(room=0)) == []
    assert slots(short, worker(room=7)) == [7]


def test_jobs_are_claimed_ahead_for_all_but_the_idle_workers(short):
    free = short.free_slots([worker(room=5), worker(claim(), room=3)])
    assert short.claim_size(free) == (8, 7)


def test_not_more_than_a_portion_is_claimed_at_once(short):
    free = short.free_slots([worker() for _ in range(20)])
    assert short.claim_size(free)[0] == capacity.LOOK_AHEAD_JOBS


def test_recall_is_due_when_a_worker_with_more_than_one_job_is_held_up(short):
    assert short.next_due([worker(claim())]) == NEVER
    crowded = worker(claim(1), claim(2), busy_since=SOON)
    assert short.next_due([crowded]) == SOON + capacity.LOOK_AHEAD


# Demand


class FakeWakeup:
    polls = False
    recheck_delays = ()


class NotifiedWakeup(FakeWakeup):
    recheck_delays = (0.1, 0.2)


class PollingWakeup(FakeWakeup):
    polls = True


def demand(wakeup, *, exit_on_empty=False, looked_at=SOON):
    """What is known after a look that has found nothing."""
    with selectors.DefaultSelector() as selector:
        made = Demand(lambda: (False, None), 2, selector, exit_on_empty=exit_on_empty)
    made.wakeup = wakeup()
    made.record_look(looked_at, waiting=False, seconds_to_due=None, promoted=0)
    return made


def test_a_runner_that_starts_claims_without_a_look():
    with selectors.DefaultSelector() as selector:
        made = Demand(lambda: (False, None), 2, selector, exit_on_empty=False)
    assert made.should_claim(SOON)
    assert not made.needs_look(SOON, idle=True)


def test_nothing_is_done_before_the_polling_interval_is_over():
    known = demand(FakeWakeup)
    assert not known.needs_look(SOON + 1.7, idle=True)
    assert not known.should_claim(SOON + 1.7)


def test_the_queue_is_looked_at_after_the_polling_interval():
    known = demand(FakeWakeup)
    assert known.next_due(SOON, idle=True) <= SOON + 2
    assert known.needs_look(SOON + 2, idle=True)


def test_a_wakeup_that_polls_makes_other_looks_unnecessary():
    assert demand(PollingWakeup).next_due(SOON, idle=True) == NEVER


def test_a_predicate_changes_nothing():
    known = demand(FakeWakeup)
    known.signalled = True
    before = dict(vars(known))
    known.needs_look(SOON, idle=True)
    known.should_claim(SOON)
    known.next_due(SOON, idle=True)
    assert vars(known) == before


def test_a_signal_leads_to_a_look():
    known = demand(FakeWakeup)
    known.signalled = True
    assert known.needs_look(SOON, idle=True)
    assert not known.should_claim(SOON)


def test_a_look_that_finds_a_job_leads_to_a_claim():
    known = demand(FakeWakeup)
    known.record_look(SOON, waiting=True, seconds_to_due=None, promoted=0)
    assert known.should_claim(SOON)


def test_a_look_that_promotes_a_job_leads_to_a_claim_and_to_another_look():
    known = demand(FakeWakeup)
    known.record_look(SOON, waiting=False, seconds_to_due=-1.0, promoted=1)
    assert known.should_claim(SOON)
    known.record_claim(SOON, backlog=False)
    assert known.needs_look(SOON, idle=False)


def test_a_job_that_another_runner_has_promoted_leads_to_no_other_look():
    known = demand(FakeWakeup)
    known.record_look(SOON, waiting=False, seconds_to_due=-1.0, promoted=0)
    assert not known.needs_look(SOON + 1, idle=True)


def test_the_queue_is_looked_at_when_the_next_scheduled_job_is_due():
    known = demand(PollingWakeup)
    known.record_look(SOON, waiting=False, seconds_to_due=0.5, promoted=0)
    assert known.next_due(SOON, idle=True) == SOON + 0.5


def test_a_notification_leads_to_a_claim_without_a_look():
    known = demand(NotifiedWakeup)
    known.signalled = True
    assert known.should_claim(SOON)
    assert not known.needs_look(SOON, idle=True)


def test_the_queue_is_looked_at_again_after_each_recheck_delay():
    known = demand(NotifiedWakeup)
    known.signalled = True
    known.record_claim(SOON, backlog=False)
    assert known.next_due(SOON, idle=True) == SOON + 0.1
    known.record_look(SOON + 0.1, waiting=False, seconds_to_due=None, promoted=0)
    assert known.next_due(SOON, idle=True) == pytest.approx(SOON + 0.3)
    known.record_look(SOON + 0.3, waiting=False, seconds_to_due=None, promoted=0)
    assert known.next_due(SOON, idle=True) > SOON + 2


def test_notifications_without_a_pause_do_not_postpone_the_look():
    known = demand(NotifiedWakeup)
    for hundredths in range(11):
        known.signalled = True
        known.record_claim(SOON + hundredths / 100, backlog=False)
    assert known.look_at == SOON + 0.1
    known.signalled = True
    assert known.needs_look(SOON + 0.1, idle=False)


def test_a_backlog_is_claimed_without_a_look():
    known = demand(FakeWakeup)
    known.record_claim(SOON, backlog=True)
    assert known.should_claim(SOON)
    assert not known.needs_look(SOON + 10, idle=False)


def test_an_idle_runner_that_exits_on_empty_looks_at_once():
    known = demand(FakeWakeup, exit_on_empty=True)
    assert known.needs_look(SOON, idle=True)
    assert not known.needs_look(SOON, idle=False)


# Outage


@pytest.fixture
def clock(monkeypatch):
    moment = SimpleNamespace(now=SOON)
    monkeypatch.setattr(outage, "monotonic", lambda: moment.now)
    return moment


def warnings(caplog):
    return [record.getMessage() for record in caplog.records]


def test_an_outage_is_reported_once_and_so_is_its_end(clock, caplog):
    broken = Outage()
    for _ in range(3):
        broken.record_failure(OperationalError("no route to host"))
        clock.now += 1
    broken.record_success()
    broken.record_success()
    assert warnings(caplog) == [
        "Cannot use the database (no route to host). Trying until it works again.",
        "The database works again after 3.0 s.",
    ]


def test_the_database_is_tried_again_after_a_moment(clock):
    broken = Outage()
    broken.record_failure(OperationalError("no route to host"))
    assert broken.is_waiting()
    clock.now = broken.next_due()
    assert not broken.is_waiting()
    assert clock.now <= SOON + 0.5


def test_a_short_lock_is_not_reported(clock, caplog):
    broken = Outage()
    broken.record_failure(OperationalError("database is locked"))
    clock.now += 1
    broken.record_success()
    assert warnings(caplog) == []


def test_a_long_lock_is_reported(clock, caplog):
    broken = Outage()
    broken.record_failure(OperationalError("database is locked"))
    clock.now += outage.LOCK_WARNING_AFTER + 1
    broken.record_failure(OperationalError("database is locked"))
    (warning,) = warnings(caplog)
    assert "database is locked" in warning
