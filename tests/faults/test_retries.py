"""Failed jobs run again: after what, when and how often, and what is stored of each failure."""

import socket
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from django.db import connection

from peasy_jobs import exceptions
from peasy_jobs.exceptions import Fail, JobFunctionNotFound, NotStorable, Retry, TimeLimit
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.policy import FIRST_DELAY, LONGEST_DELAY, RetryPolicy
from peasy_jobs.runner import outcomes
from peasy_jobs.statuses import CANCELLED, COMPLETED, FAILED, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.store.querysets import Claim
from peasy_jobs.workers.execution import decide_outcome
from peasy_jobs.workers.protocol import Outcome
from tests import jobs
from tests.jobs import notes
from tests.processes import both_worker_types
from tests.rows import finished, row
from tests.waiting import wait_until

LATE = 40


def starts(record) -> list[float]:
    return [float(line.split()[1]) for line in notes(record)]


def scheduled(job: PeasyJobQueue) -> PeasyJobQueue:
    """Wait until a job is scheduled, and return it."""
    wait_until(lambda: row(job).status == SCHEDULED, message=lambda: f"{row(job).__dict__}")
    return row(job)


def now() -> datetime:
    return as_field(database_now(connection))


def make_due(job: PeasyJobQueue) -> None:
    """Move the time of a scheduled job into the past."""
    assert PeasyJobQueue.objects.filter(pk=job.pk, status=SCHEDULED).update(
        run_after=now() - timedelta(seconds=1)
    )


# When it runs again


@both_worker_types
def test_a_failed_job_runs_again_after_each_delay_of_its_backoff(run_peasy, tmp_path, worker_type):
    record = tmp_path / "record"
    command = run_peasy("--worker-type", worker_type)
    (job,) = finished(jobs.fail_times(str(record), 3), timeout=LATE)
    assert job.status == COMPLETED
    assert job.result == "at last"
    assert job.attempts == 4
    assert job.crashes == 0
    assert job.claims == 4
    first, second, third, fourth = starts(record)
    assert second >= first
    assert third - second >= 0.5
    assert fourth - third >= 1
    assert [entry["message"] for entry in job.errors] == [
        f"ValueError: failure {number}" for number in (1, 2, 3)
    ]
    for entry in job.errors:
        assert entry["exception"] == "builtins.ValueError"
        assert "in fail_times" in entry["traceback"]
        host, _, pid = entry["where"].partition(", pid ")
        assert host == socket.gethostname()
        is_runner = int(pid) == command.pid
        assert is_runner is (worker_type == "thread")
    times = [datetime.fromisoformat(entry["at"]) for entry in job.errors]
    assert times == sorted(times)
    assert job.created <= times[0]
    assert times[-1] <= job.completed
    assert job.run_after is None
    assert "Traceback" not in command.output()


def test_a_job_without_retries_left_has_failed(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_times(str(record), 99), timeout=LATE)
    assert job.status == FAILED
    assert job.attempts == 4
    assert job.crashes == 0
    assert len(notes(record)) == 4
    assert len(job.errors) == 4
    assert job.error == "ValueError: failure 4"
    assert job.run_after is None
    assert "ValueError: failure 4" in job.traceback


def test_a_callable_computes_the_delay_from_the_number_of_failures(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_with_callable(str(record)), timeout=LATE)
    first, second, third = starts(record)
    assert second - first >= 0.5
    assert third - second >= 1
    assert job.status == FAILED
    assert job.attempts == 3
    assert len(job.errors) == 3


def test_a_job_that_waits_for_a_retry_is_scheduled_with_a_visible_time(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = scheduled(jobs.fail_with_default(str(record)))
    (entry,) = job.errors
    wait = job.run_after - datetime.fromisoformat(entry["at"])
    assert timedelta(seconds=FIRST_DELAY * 0.75 - 3) < wait <= timedelta(seconds=FIRST_DELAY * 1.25)
    assert job.error == "ValueError: again"
    assert job.attempts == 1
    assert job.runner_id is None
    assert job.completed is None
    assert len(notes(record)) == 1
    make_due(job)
    (job,) = finished(job)
    assert job.status == FAILED
    assert job.attempts == 2
    assert len(job.errors) == 2
    assert len(notes(record)) == 2
    assert "Traceback" not in command.output()


def test_a_job_that_waits_for_a_retry_can_be_cancelled(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    job = scheduled(jobs.fail_with_default(str(record)))
    assert job.cancel() is True
    assert row(job).status == CANCELLED
    assert len(row(job).errors) == 1


def test_a_job_whose_backoff_callable_raises_runs_again_in_a_minute(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = scheduled(jobs.fail_with_bad_backoff(str(record)))
    assert timedelta(seconds=40) < job.run_after - now() <= timedelta(seconds=60)
    assert job.error == "ValueError: again"
    command.wait_for_output(
        f"The backoff of {job.job_name} cannot be used; it runs again in a minute."
    )
    command.wait_for_output("ZeroDivisionError")


# After which exceptions


def test_only_exceptions_named_by_retry_on_lead_to_a_retry(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.retry_on_some(str(record)), timeout=LATE)
    assert job.status == FAILED
    assert job.attempts == 3
    assert len(notes(record)) == 3
    assert [entry["exception"] for entry in job.errors] == [
        *["builtins.ConnectionRefusedError"] * 2,
        "builtins.ValueError",
    ]


@both_worker_types
def test_a_job_that_raises_retry_runs_again_without_a_failure(run_peasy, tmp_path, worker_type):
    record = tmp_path / "record"
    run_peasy("--worker-type", worker_type)
    (job,) = finished(jobs.come_back(str(record), 0.5, 2), timeout=LATE)
    first, second, third = starts(record)
    assert second - first >= 0.5
    assert third - second >= 0.5
    assert job.status == COMPLETED
    assert job.result == "here again"
    assert job.attempts == 1
    assert job.claims == 3
    assert job.errors == []


def test_a_job_that_raises_retry_is_scheduled_in_between(run_peasy, tmp_path):
    run_peasy()
    job = scheduled(jobs.come_back(str(tmp_path / "record"), 60, 1))
    assert timedelta(seconds=40) < job.run_after - now() <= timedelta(seconds=60)
    assert job.attempts == 0
    assert job.errors == []
    assert job.completed is None
    assert job.runner_id is None


def test_a_job_that_raises_fail_has_failed_with_that_message_and_is_not_retried(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.give_up(str(record)))
    assert job.status == FAILED
    assert job.error == "there is no such customer"
    assert job.attempts == 1
    assert len(notes(record)) == 1


def test_a_job_that_raises_cancel_is_cancelled(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.call_off(str(record)))
    assert job.status == CANCELLED
    assert job.errors == []
    assert job.attempts == 1
    assert job.runner_id is None
    assert job.started <= job.completed
    assert len(notes(record)) == 1


def test_a_job_whose_result_cannot_be_stored_has_failed_and_is_not_retried(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.unstorable(str(record)))
    assert job.status == FAILED
    assert job.attempts == 1
    assert job.result is None
    assert len(notes(record)) == 1
    assert job.error.startswith("The job finished, but its result (generator) cannot be stored")


def test_crashes_and_retries_are_counted_separately(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_and_die(str(record)), timeout=LATE)
    assert notes(record) == ["dies", "fails", "fails", "ends"]
    assert job.status == COMPLETED
    assert job.result == "done"
    assert job.attempts == 4
    assert job.crashes == 1
    assert len(job.errors) == 2


# What is stored


def test_the_last_twenty_five_failures_are_stored(run_peasy):
    run_peasy()
    (job,) = finished(jobs.fail_thirty_times(), timeout=LATE)
    assert job.status == FAILED
    assert job.attempts == 30
    assert len(job.errors) == 25
    times = [entry["at"] for entry in job.errors]
    assert times == sorted(times)
    assert set(job.errors[0]) == {"at", "where", "exception", "message", "traceback"}
    assert datetime.fromisoformat(times[-1]) >= job.started


def test_host_and_pid_of_a_worker_that_died_are_stored(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_by("SIGKILL", str(record)))
    assert [entry["where"] for entry in job.errors] == [
        f"{socket.gethostname()}, pid {notes(record)[0].split()[1]}"
    ]


# A missing job function


def test_a_job_whose_function_is_missing_is_tried_each_minute_and_fails_after_three(run_peasy):
    job = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.of_tomorrow")
    run_peasy()
    for time in (1, 2, 3):
        wait_until(lambda time=time: (row(job).status, len(row(job).errors)) == (SCHEDULED, time))
        waiting = row(job)
        assert timedelta(seconds=40) < waiting.run_after - now() <= timedelta(seconds=60)
        assert waiting.attempts == 0
        assert waiting.completed is None
        assert waiting.runner_id is None
        make_due(job)
    (job,) = finished(job)
    assert job.status == FAILED
    assert job.attempts == 1
    assert job.claims == 4
    assert job.run_after is None
    assert len(job.errors) == 4
    assert job.error == str(JobFunctionNotFound("tests.jobs.of_tomorrow"))


def test_a_job_whose_function_appears_within_a_minute_runs(run_peasy):
    job = jobs.echo("in time")
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.of_tomorrow")
    run_peasy()
    scheduled(job)
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.echo")
    make_due(job)
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.result == "in time"
    assert job.attempts == 1
    assert len(job.errors) == 1


# The policy by itself


def with_policy(**options) -> SimpleNamespace:
    return SimpleNamespace(
        job_name="tests.job",
        policy=RetryPolicy(**{"retries": 2, "backoff": [7], "retry_on": BaseException, **options}),
    )


@pytest.mark.parametrize(
    ("exception", "failures", "expected"),
    [
        (ValueError(), 1, (SCHEDULED, 7)),
        (ValueError(), 2, (SCHEDULED, 7)),
        (ValueError(), 3, (FAILED, 0)),
        (SystemExit(1), 1, (SCHEDULED, 7)),
        (KeyboardInterrupt(), 1, (SCHEDULED, 7)),
        (TimeLimit("late"), 1, (SCHEDULED, 7)),
        (Fail("no"), 1, (FAILED, 0)),
        (NotStorable("no"), 1, (FAILED, 0)),
        (Retry(5), 99, (SCHEDULED, 5)),
        (exceptions.Cancel(), 1, (CANCELLED, 0)),
        (JobFunctionNotFound("no"), 1, (FAILED, 0)),
    ],
)
def test_what_a_job_becomes_after_an_exception(exception, failures, expected):
    job = with_policy(retry_on=BaseException)
    assert decide_outcome(job, exception, failures) == expected


@pytest.mark.parametrize(
    ("retry_on", "exception", "status"),
    [
        (OSError, ConnectionError(), SCHEDULED),
        ((OSError, KeyError), KeyError(), SCHEDULED),
        (OSError, ValueError(), FAILED),
        ((), ValueError(), FAILED),
        (OSError, TimeLimit("late"), FAILED),
        (TimeLimit, TimeLimit("late"), SCHEDULED),
    ],
)
def test_retry_on_may_be_one_class_or_several(retry_on, exception, status):
    assert decide_outcome(with_policy(retry_on=retry_on), exception, 1)[0] == status


def test_the_default_delay_doubles_from_ten_seconds_to_an_hour_with_a_jitter_of_a_quarter():
    policy = RetryPolicy(99, None, BaseException)
    for failures in (1, 2, 3, 5, 9, 10, 50, 5000):
        expected = min(FIRST_DELAY * 2 ** (min(failures, 20) - 1), LONGEST_DELAY)
        delays = [policy.delay(failures) for _ in range(200)]
        assert expected * 0.75 <= min(delays) < max(delays) <= expected * 1.25
        assert len(set(delays)) > 100


def test_the_last_delay_of_a_list_is_used_for_all_further_failures():
    policy = RetryPolicy(9, [1, 2.5, 30], BaseException)
    assert [policy.delay(failures) for failures in (1, 2, 3, 4, 99)] == [1, 2.5, 30, 30, 30]


@pytest.mark.parametrize("given", [-1, "soon", None, float("nan"), float("inf"), 10**9])
def test_a_backoff_that_is_no_number_of_seconds_is_logged_and_replaced_by_a_minute(given, caplog):
    assert decide_outcome(with_policy(backoff=lambda failures: given), ValueError(), 1) == (
        SCHEDULED,
        60,
    )
    assert f"backoff gives {given!r}. Give a number of seconds, 0 or more." in caplog.text
    assert "The backoff of tests.job cannot be used" in caplog.text


class FixedClock:
    def at(self, moment: float) -> datetime:
        return datetime(2026, 1, 1) + timedelta(seconds=moment)


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_an_attempt_that_raised_retry_is_not_counted(delay):
    claim = Claim(1, 3, "title", "tests.jobs.nothing", 2, 0, None, None)
    later = outcomes.finished(
        claim, Outcome(1, 3, 1.0, 2.0, SCHEDULED, None, None, delay), FixedClock()
    )
    assert later.status == SCHEDULED
    assert later.attempts == -1
    assert later.run_after == FixedClock().at(2 + delay)


# Invalid options


def function() -> None:
    pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": -1}, "retries is -1. Give a whole number, 0 or more."),
        ({"retries": "3"}, "retries is '3'. Give a whole number, 0 or more."),
        ({"retries": 1.0}, "retries is 1.0. Give a whole number, 0 or more."),
        ({"retries": True}, "retries is True. Give a whole number, 0 or more."),
        ({"retries": None}, "retries is None. Give a whole number, 0 or more."),
        (
            {"backoff": 10},
            "backoff is 10. Give a list of seconds, or a callable that returns them.",
        ),
        (
            {"backoff": []},
            "backoff is []. Give a list of seconds, or a callable that returns them.",
        ),
        (
            {"backoff": "10"},
            "backoff is '10'. Give a list of seconds, or a callable that returns them.",
        ),
        ({"backoff": [10, "20"]}, "backoff gives '20'. Give a number of seconds, 0 or more."),
        ({"backoff": [-1]}, "backoff gives -1. Give a number of seconds, 0 or more."),
        ({"backoff": [float("nan")]}, "backoff gives nan. Give a number of seconds, 0 or more."),
        (
            {"retry_on": "ValueError"},
            "retry_on is 'ValueError'. Give an exception class, or a tuple of them.",
        ),
        (
            {"retry_on": ValueError()},
            "retry_on is ValueError(). Give an exception class, or a tuple of them.",
        ),
        (
            {"retry_on": (OSError, 1)},
            "retry_on is (<class 'OSError'>, 1). Give an exception class, or a tuple of them.",
        ),
        (
            {"retry_on": [OSError]},
            "retry_on is [<class 'OSError'>]. Give an exception class, or a tuple of them.",
        ),
        ({"timeout": 0}, "timeout is 0. Give a number of seconds above 0."),
        ({"timeout": -1}, "timeout is -1. Give a number of seconds above 0."),
        ({"timeout": "60"}, "timeout is '60'. Give a number of seconds above 0."),
        ({"timeout": True}, "timeout is True. Give a number of seconds above 0."),
        ({"timeout": float("nan")}, "timeout is nan. Give a number of seconds above 0."),
        ({"timeout": float("inf")}, "timeout is inf. Give a number of seconds above 0."),
        ({"crash_retries": -1}, "crash_retries is -1. Give a whole number, 0 or more."),
        ({"crash_retries": 0.5}, "crash_retries is 0.5. Give a whole number, 0 or more."),
        ({"crash_retries": False}, "crash_retries is False. Give a whole number, 0 or more."),
    ],
)
def test_an_invalid_option_is_refused_with_its_value_and_the_remedy(options, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        peasy.job("title", **options)(function)
    assert str(raised.value) == message


@pytest.mark.parametrize("after", [-1, "60", None, float("nan"), 10**9])
def test_an_invalid_delay_of_retry_is_refused(after):
    with pytest.raises(ValueError, match="Give a number of seconds, 0 or more"):
        peasy.Retry(after=after)


@pytest.mark.parametrize(
    "options",
    [
        {"retries": 3, "backoff": (1, 2)},
        {"retry_on": (OSError,)},
        {"retry_on": ()},
        {"timeout": 0.5, "crash_retries": 0},
    ],
)
def test_a_valid_option_is_accepted(options):
    job = peasy.job("title", **options)(function)
    for name in ("timeout", "crash_retries"):
        assert getattr(job.options, name) == options.get(name)


def test_the_options_of_the_decorator_are_stored_in_the_row(transactional_db):
    job = jobs.limited("path", "record")
    assert row(job).timeout == 0.5
    assert row(job).crash_retries is None
