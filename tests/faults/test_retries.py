"""A job fails and runs again: after what, when and how often; and what is kept of each failed attempt."""

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
from peasy_jobs.workers import execution
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
    """Wait until a job waits for its time."""
    wait_until(lambda: row(job).status == SCHEDULED, message=lambda: f"{row(job).__dict__}")
    return row(job)


def now() -> datetime:
    return as_field(database_now(connection))


def make_due(job: PeasyJobQueue) -> None:
    """Time passes."""
    assert PeasyJobQueue.objects.filter(pk=job.pk, status=SCHEDULED).update(
        run_after=now() - timedelta(seconds=1)
    )


# When it runs again


@both_worker_types
def test_a_job_that_fails_runs_again_after_each_of_the_seconds_of_its_list(
    run_peasy, tmp_path, worker_type
):
    record = tmp_path / "record"
    command = run_peasy("--worker-type", worker_type)
    (job,) = finished(jobs.fail_times(str(record), 3), timeout=LATE)
    assert (job.status, job.result, job.attempts, job.crashes, job.claims) == (
        COMPLETED,
        "at last",
        4,
        0,
        4,
    )
    first, second, third, fourth = starts(record)
    assert (second >= first, third - second >= 0.5, fourth - third >= 1) == (True, True, True)
    assert [entry["message"] for entry in job.errors] == [
        f"ValueError: failure {number}" for number in (1, 2, 3)
    ]
    for entry in job.errors:
        assert entry["exception"] == "builtins.ValueError"
        assert "in fail_times" in entry["traceback"]
        host, _, pid = entry["where"].partition(", pid ")
        assert host == socket.gethostname()
        assert (int(pid) == command.pid) == (worker_type == "thread")
    times = [datetime.fromisoformat(entry["at"]) for entry in job.errors]
    assert times == sorted(times)
    assert job.created <= times[0]
    assert times[-1] <= job.completed
    assert job.run_after is None
    assert "Traceback" not in command.output()


def test_a_job_has_failed_when_its_retries_are_used_up(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_times(str(record), 99), timeout=LATE)
    assert (job.status, job.attempts, job.crashes, len(notes(record)), len(job.errors)) == (
        FAILED,
        4,
        0,
        4,
        4,
    )
    assert (job.error, job.run_after) == ("ValueError: failure 4", None)
    assert "ValueError: failure 4" in job.traceback


def test_a_callable_says_how_long_to_wait_from_the_number_of_failures(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_with_callable(str(record)), timeout=LATE)
    first, second, third = starts(record)
    assert second - first >= 0.5
    assert third - second >= 1
    assert (job.status, job.attempts, len(job.errors)) == (FAILED, 3, 3)


def test_a_job_that_waits_for_a_retry_is_scheduled_and_its_time_is_visible(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = scheduled(jobs.fail_with_default(str(record)))
    (entry,) = job.errors
    wait = job.run_after - datetime.fromisoformat(entry["at"])
    assert timedelta(seconds=FIRST_DELAY * 0.75 - 3) < wait <= timedelta(seconds=FIRST_DELAY * 1.25)
    assert (job.error, job.attempts, job.runner_id, job.completed) == (
        "ValueError: again",
        1,
        None,
        None,
    )
    assert len(notes(record)) == 1
    make_due(job)
    (job,) = finished(job)
    assert (job.status, job.attempts, len(job.errors), len(notes(record))) == (FAILED, 2, 2, 2)
    assert "Traceback" not in command.output()


def test_a_job_that_waits_for_a_retry_can_be_cancelled(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    job = scheduled(jobs.fail_with_default(str(record)))
    assert job.cancel() is True
    assert (row(job).status, len(row(job).errors)) == (CANCELLED, 1)


def test_a_callable_that_fails_costs_a_minute_and_not_the_job(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy()
    job = scheduled(jobs.fail_with_bad_backoff(str(record)))
    assert timedelta(seconds=40) < job.run_after - now() <= timedelta(seconds=60)
    assert job.error == "ValueError: again"
    command.wait_for_output(
        f"The backoff of {job.job_name} cannot be used; it runs again in a minute."
    )
    command.wait_for_output("ZeroDivisionError")


# After what


def test_only_the_exceptions_that_are_named_are_worth_a_retry(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.retry_on_some(str(record)), timeout=LATE)
    assert (job.status, job.attempts, len(notes(record))) == (FAILED, 3, 3)
    assert [entry["exception"] for entry in job.errors] == [
        *["builtins.ConnectionRefusedError"] * 2,
        "builtins.ValueError",
    ]


@both_worker_types
def test_a_job_may_come_back_later_on_purpose_which_is_no_failure(run_peasy, tmp_path, worker_type):
    record = tmp_path / "record"
    run_peasy("--worker-type", worker_type)
    (job,) = finished(jobs.come_back(str(record), 0.5, 2), timeout=LATE)
    first, second, third = starts(record)
    assert second - first >= 0.5
    assert third - second >= 0.5
    assert (job.status, job.result, job.attempts, job.claims, job.errors) == (
        COMPLETED,
        "here again",
        1,
        3,
        [],
    )


def test_a_job_that_comes_back_later_is_scheduled_meanwhile(run_peasy, tmp_path):
    run_peasy()
    job = scheduled(jobs.come_back(str(tmp_path / "record"), 60, 1))
    assert timedelta(seconds=40) < job.run_after - now() <= timedelta(seconds=60)
    assert (job.attempts, job.errors, job.completed, job.runner_id) == (0, [], None, None)


def test_fail_ends_a_job_at_once_in_its_own_words(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.give_up(str(record)))
    assert (job.status, job.error, job.attempts) == (FAILED, "there is no such customer", 1)
    assert len(notes(record)) == 1


def test_cancel_ends_a_job_as_cancelled(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.call_off(str(record)))
    assert (job.status, job.errors, job.attempts, job.runner_id) == (CANCELLED, [], 1, None)
    assert job.started <= job.completed
    assert len(notes(record)) == 1


def test_a_job_whose_result_cannot_be_stored_has_failed_and_never_runs_again(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.unstorable(str(record)))
    assert (job.status, job.attempts, job.result, len(notes(record))) == (FAILED, 1, None, 1)
    assert job.error.startswith("The job finished, but its result (generator) cannot be stored")


def test_crashes_do_not_use_up_retries_nor_retries_crashes(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy()
    (job,) = finished(jobs.fail_and_die(str(record)), timeout=LATE)
    assert notes(record) == ["dies", "fails", "fails", "ends"]
    assert (job.status, job.result, job.attempts, job.crashes, len(job.errors)) == (
        COMPLETED,
        "done",
        4,
        1,
        2,
    )


# What is kept


def test_the_newest_twenty_five_failures_are_kept(run_peasy):
    run_peasy()
    (job,) = finished(jobs.fail_thirty_times(), timeout=LATE)
    assert (job.status, job.attempts, len(job.errors)) == (FAILED, 30, 25)
    times = [entry["at"] for entry in job.errors]
    assert times == sorted(times)
    assert set(job.errors[0]) == {"at", "where", "exception", "message", "traceback"}
    assert datetime.fromisoformat(times[-1]) >= job.started


def test_of_a_worker_that_died_it_is_kept_where_that_was(run_peasy, tmp_path):
    record = tmp_path / "record"
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_by("SIGKILL", str(record)))
    assert [entry["where"] for entry in job.errors] == [
        f"{socket.gethostname()}, pid {notes(record)[0].split()[1]}"
    ]


# A function that is not there


def test_an_unknown_function_is_waited_for_three_minutes_and_has_then_failed(run_peasy):
    job = jobs.nothing()
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.of_tomorrow")
    run_peasy()
    for time in (1, 2, 3):
        wait_until(lambda time=time: (row(job).status, len(row(job).errors)) == (SCHEDULED, time))
        waiting = row(job)
        assert timedelta(seconds=40) < waiting.run_after - now() <= timedelta(seconds=60)
        assert (waiting.attempts, waiting.completed, waiting.runner_id) == (0, None, None)
        make_due(job)
    (job,) = finished(job)
    assert (job.status, job.attempts, job.claims, job.run_after, len(job.errors)) == (
        FAILED,
        1,
        4,
        None,
        4,
    )
    assert job.error == str(JobFunctionNotFound("tests.jobs.of_tomorrow"))


def test_a_function_that_is_there_after_a_minute_runs(run_peasy):
    job = jobs.echo("in time")
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.of_tomorrow")
    run_peasy()
    scheduled(job)
    PeasyJobQueue.objects.filter(pk=job.pk).update(job_name="tests.jobs.echo")
    make_due(job)
    (job,) = finished(job)
    assert (job.status, job.result, job.attempts, len(job.errors)) == (COMPLETED, "in time", 1, 1)


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
        (JobFunctionNotFound("no"), 1, (FAILED, execution.NOT_FOUND_DELAY)),
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
def test_retry_on_takes_a_class_or_several(retry_on, exception, status):
    assert decide_outcome(with_policy(retry_on=retry_on), exception, 1)[0] == status


def test_by_default_the_wait_doubles_from_ten_seconds_to_an_hour_more_or_less_a_quarter():
    policy = RetryPolicy(99, None, BaseException)
    for failures in (1, 2, 3, 5, 9, 10, 50, 5000):
        expected = min(FIRST_DELAY * 2 ** (min(failures, 20) - 1), LONGEST_DELAY)
        delays = [policy.delay(failures) for _ in range(200)]
        assert expected * 0.75 <= min(delays) < max(delays) <= expected * 1.25
        assert len(set(delays)) > 100


def test_the_last_of_a_list_counts_for_all_further_failures():
    policy = RetryPolicy(9, [1, 2.5, 30], BaseException)
    assert [policy.delay(failures) for failures in (1, 2, 3, 4, 99)] == [1, 2.5, 30, 30, 30]


@pytest.mark.parametrize("given", [-1, "soon", None, float("nan"), float("inf"), 10**9])
def test_a_callable_that_gives_no_number_of_seconds_is_said_and_costs_a_minute(given, caplog):
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
def test_a_run_that_came_back_on_purpose_counts_as_no_attempt(delay):
    claim = Claim(1, 3, "title", "tests.jobs.nothing", None, None, 2, 0, None, None)
    later = outcomes.ended(
        claim, Outcome(1, 3, 1.0, 2.0, SCHEDULED, None, None, delay), FixedClock()
    )
    assert (later.status, later.attempts, later.run_after) == (
        SCHEDULED,
        -1,
        FixedClock().at(2 + delay),
    )


# Wrong options


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
def test_a_wrong_option_is_refused_with_its_value_and_what_to_give(options, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        peasy.job("title", **options)(function)
    assert str(raised.value) == message


@pytest.mark.parametrize("after", [-1, "60", None, float("nan"), 10**9])
def test_a_wrong_time_to_come_back_is_refused(after):
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
def test_a_right_option_is_taken(options):
    job = peasy.job("title", **options)(function)
    for name in ("timeout", "crash_retries"):
        assert getattr(job.options, name) == options.get(name)


def test_the_options_of_the_decorator_arrive_in_the_row(transactional_db):
    job = jobs.limited("path", "record")
    assert (row(job).timeout, row(job).crash_retries) == (0.5, None)
