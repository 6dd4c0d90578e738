"""Running one job returns one outcome, whatever the job does; nothing affects the next job."""

import builtins
import contextlib
import json
import math
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.db import connection, transaction
from django.utils import timezone, translation
from hypothesis import given
from hypothesis import strategies as st

from peasy_jobs import payloads
from peasy_jobs.job import Job
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.runner.stopping import StopController
from peasy_jobs.statuses import COMPLETED, FAILED
from peasy_jobs.store.values import Claim, Run
from peasy_jobs.workers import execution, progress
from peasy_jobs.workers.cleanup import reset_context
from peasy_jobs.workers.errors import MESSAGE_LIMIT, TRACEBACK_LIMIT
from peasy_jobs.workers.progress import current_execution
from peasy_jobs.workers.protocol import (
    Outcome,
    Report,
    StopReason,
    StopRequest,
    Ticket,
    pack_worker_message,
)
from tests import jobs
from tests.waiting import wait_until

loaded: list[bool] = []
clients: list[Any] = []
given_value: list[Any] = []
meeting = threading.Barrier(2)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class ExitsWhilePickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class LeavesMark:
    def __reduce__(self) -> Any:
        return loaded.append, (True,)


@peasy.job("use the cache")
def use_cache() -> None:
    clients.append(caches["default"])


@peasy.job("raise a given exception")
def raise_given() -> None:
    raise given_value[0]


@peasy.job("return a given value")
def return_given() -> Any:
    return given_value[0]


@peasy.job("exit with a given value")
def exit_with() -> None:
    sys.exit(given_value[0])


@peasy.job("meet itself in another thread")
def meet() -> None:
    meeting.wait(5)


@peasy.job("meet itself, and go on until it is asked to stop")
def meet_and_wait(job_pk: int) -> int | None:
    meeting.wait(5)
    wait_until(lambda: peasy.cancelled(job_pk))
    running = current_execution(job_pk)
    return running and running.run.fencing_token


@peasy.job("call itself")
def forever() -> None:
    forever.call()


@peasy.job("return itself")
def deeply_nested() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@peasy.job("raise later")
async def boom_later() -> None:
    raise ValueError("boom")


@peasy.job("chain")
def chain() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ValueError("the effect") from error


@pytest.fixture(autouse=True)
def no_forged_pickle_is_loaded_and_no_execution_remains() -> Iterator[None]:
    loaded.clear(), given_value.clear()
    yield
    assert not loaded, "a forged pickle was loaded"
    assert current_execution(7) is None, "a job that has ended still counts as running"


def stored(value: Any, job_name: str, column: str) -> bytes:
    return payloads.dumps(
        value, job_name=job_name, column=column, max_bytes=10**7, serializer="pickle"
    )


def run_named(
    name: str,
    args: bytes | None = None,
    kwargs: bytes | None = None,
    sent: list[Report] | None = None,
) -> Outcome:
    outcome = execution.run(Run(7, 3, name, args, kwargs, 1), ([] if sent is None else sent).append)
    assert outcome.pk == 7
    assert outcome.fencing_token == 3
    assert outcome.started <= outcome.ended
    assert outcome.error is None or outcome.result is None
    return outcome


def run(job: Job[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    name = job.job_name
    return run_named(
        name, stored(list(args), name, payloads.ARGS), stored(kwargs, name, payloads.KWARGS)
    )


def result(job: Job[..., Any], *args: Any, **kwargs: Any) -> Any:
    outcome = run(job, *args, **kwargs)
    assert outcome.error is None
    if outcome.result is None:
        return None
    return payloads.loads(
        outcome.result, job_name=job.job_name, column=payloads.RESULT, serializer="pickle"
    )


def failure(outcome: Outcome) -> dict[str, str]:
    """Return the error of an outcome without `where`, checked to fit into every database."""
    error = outcome.error
    assert error is not None
    assert set(error) == {"where", "exception", "message", "traceback"}
    assert error["where"] == f"{socket.gethostname()}, pid {os.getpid()}"
    assert error["message"]
    assert len(error["message"]) <= MESSAGE_LIMIT
    assert len(error["traceback"]) <= TRACEBACK_LIMIT
    assert "\0" not in "".join(error.values())
    json.dumps(error, ensure_ascii=False).encode()
    return {name: text for name, text in error.items() if name != "where"}


# What ends well


def test_a_result_is_signed_for_its_job_function() -> None:
    assert result(jobs.give_back, 1, (2,), three={3}) == [[1, (2,)], {"three": {3}}]


def test_a_job_without_arguments_or_a_result_needs_no_payload() -> None:
    outcome = run_named("tests.jobs.nothing")
    assert outcome.status == COMPLETED
    assert outcome.result is None
    assert outcome.error is None
    assert outcome.delay == 0.0


def test_job_pk_is_filled_in_with_the_primary_key() -> None:
    assert result(jobs.own_pk) == 7


def test_a_job_pk_given_by_the_caller_is_kept() -> None:
    assert result(jobs.own_pk, 5) == 5
    assert result(jobs.own_pk, job_pk=6) == 6


def test_an_async_job_is_awaited() -> None:
    assert result(jobs.asynchronous, 41) == 42


def test_progress_is_sent_to_the_runner_and_not_written_by_the_worker() -> None:
    sent: list[Report] = []  # this test has no access to the database
    outcome = run_named(jobs.progress_from_thread.job_name, sent=sent)
    assert outcome.error is None
    assert sent == [Report(7, 3, "from a thread", '{"progress": 30}')]


@pytest.mark.django_db
def test_the_last_progress_report_of_track_is_the_final_state() -> None:
    sent: list[Report] = []
    name = jobs.track_rows.job_name
    assert run_named(name, stored([3], name, payloads.ARGS), sent=sent).error is None
    assert sent[-1] == Report(7, 3, "Importing rows: 3 of 3", '{"progress": 100}')


# What ends badly


def test_a_job_that_raises_fails_with_its_traceback() -> None:
    error = failure(run(jobs.boom, "no such row"))
    assert error["exception"] == "builtins.ValueError"
    assert error["message"] == "ValueError: no such row"
    assert error["traceback"].startswith("Traceback (most recent call last):\n")
    assert error["traceback"].endswith("\nValueError: no such row\n")


@pytest.mark.parametrize("job", [jobs.boom, boom_later, chain], ids=lambda job: job.__name__)
def test_a_traceback_starts_with_a_frame_of_the_job(job: Job[..., Any]) -> None:
    traceback = failure(run(job))["traceback"]
    first = next(line for line in traceback.splitlines() if line.startswith("  File "))
    assert first.startswith(f'  File "{job.function.__code__.co_filename}", line ')
    assert "peasy_jobs/peasy_jobs/" not in traceback
    assert "asgiref" not in traceback


def test_a_traceback_includes_the_cause() -> None:
    assert "KeyError: 'the cause'" in failure(run(chain))["traceback"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "The job called sys.exit(3)."),
        (0, "The job called sys.exit(0)."),
        (None, "The job called sys.exit(None)."),
        ("no space left", "The job called sys.exit('no space left')."),
    ],
    ids=str,
)
def test_a_job_that_calls_sys_exit_fails_with_a_message_that_says_so(
    code: Any, message: str
) -> None:
    given_value.append(code)
    error = failure(run(exit_with))
    assert error["message"] == message
    assert error["exception"] == "builtins.SystemExit"
    assert "sys.exit(" in error["traceback"]


def test_sys_exit_with_an_object_that_cannot_be_shown_fails_the_job() -> None:
    given_value.append(Unprintable())
    assert failure(run(exit_with))["exception"] == "builtins.SystemExit"


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, GeneratorExit, BaseException, SystemExit, MemoryError]
)
def test_no_exception_raised_by_a_job_leaves_run(kind: type[BaseException]) -> None:
    given_value.append(kind())
    error = failure(run(raise_given))
    assert error["exception"] == f"builtins.{kind.__name__}"
    assert "in raise_given" in error["traceback"]


def test_an_exception_without_a_usable_str_is_stored_by_its_class() -> None:
    given_value.append(Unprintable())
    error = failure(run(raise_given))
    assert error["exception"] == "tests.test_execution.Unprintable"
    assert "Unprintable" in error["message"]


def test_an_exception_that_python_cannot_format_is_stored_by_its_class() -> None:
    given_value.append(SyntaxError("bad", ("a file", 1, "no number", "a line")))
    error = failure(run(raise_given))
    assert error["exception"] == "builtins.SyntaxError"
    assert "SyntaxError" in error["message"]


@pytest.mark.parametrize("after", [timedelta(seconds=60), math.nan, -1, "60"], ids=repr)
def test_a_retry_whose_delay_was_made_invalid_fails_the_job(after: Any) -> None:
    given_value.append(peasy.Retry(after=1))
    given_value[0].after = after
    outcome = run(raise_given)
    assert failure(outcome)["message"] == "Retry, which cannot be shown (ValueError)."
    assert outcome.status == FAILED
    assert outcome.delay == 0.0
    pack_worker_message(outcome)


@pytest.mark.django_db
def test_an_argument_that_calls_sys_exit_while_it_is_pickled_is_refused() -> None:
    with pytest.raises(
        payloads.PayloadError, match=r"argument 'value' \(ExitsWhilePickled\) cannot be stored: 3"
    ):
        jobs.echo(ExitsWhilePickled())
    assert not PeasyJobQueue.objects.exists()


def test_a_result_that_calls_sys_exit_while_it_is_pickled_fails_the_job() -> None:
    given_value.append(ExitsWhilePickled())
    assert (
        "its result (ExitsWhilePickled) cannot be stored: 3."
        in failure(run(return_given))["message"]
    )


def test_a_job_with_infinite_recursion_fails() -> None:
    error = failure(run(forever))
    assert error["exception"] == "builtins.RecursionError"
    assert "maximum recursion depth exceeded" in error["message"]


def test_a_long_message_keeps_its_beginning_and_a_long_traceback_its_end() -> None:
    given_value.append(ValueError("x" * 1_000_000 + " the end"))
    error = failure(run(raise_given))
    assert error["message"] == ("ValueError: " + "x" * 1_000_000)[:MESSAGE_LIMIT]
    assert len(error["traceback"]) == TRACEBACK_LIMIT
    assert error["traceback"].endswith("x the end\n")


def test_nul_and_lone_surrogates_are_replaced() -> None:
    given_value.append(ValueError("a\0b\ud800c\U0001f600"))
    error = failure(run(raise_given))
    assert error["message"] == "ValueError: a\ufffdb\ufffdc\U0001f600"
    assert error["traceback"].endswith("ValueError: a\ufffdb\ufffdc\U0001f600\n")


@given(st.text(st.characters(exclude_categories=[])))
def test_an_exception_with_any_text_is_stored(text: str) -> None:
    given_value[:] = [ValueError(text)]
    failure(run(raise_given))


@pytest.mark.parametrize(
    ("job", "kind", "reason"),
    [
        (jobs.generator, "generator", "cannot pickle 'generator' object"),
        (deeply_nested, "list", "maximum recursion depth exceeded"),
    ],
    ids=["generator", "deeply_nested"],
)
def test_a_result_that_cannot_be_stored_fails_the_job(
    job: Job[..., Any], kind: str, reason: str
) -> None:
    error = failure(run(job))
    assert error["message"].startswith(
        f"The job finished, but its result ({kind}) cannot be stored: {reason}"
    )
    assert error["message"].endswith(". Return plain values.")
    assert error["traceback"] == "", "the error was not raised by the job's own code"


def test_arguments_that_no_longer_fit_the_function_fail_the_job() -> None:
    error = failure(run(jobs.nothing, 1, 2))
    assert error["message"].startswith("TypeError: ")
    assert "argument" in error["message"]


# What is never called, loaded or imported


@pytest.mark.parametrize(
    "name", ["tests.jobs.renamed", "tests.gone.export", "tests.jobs.nothing.call"]
)
def test_a_function_that_was_renamed_or_deleted_fails_the_job(name: str) -> None:
    assert failure(run_named(name)) == {
        "exception": "peasy_jobs.exceptions.JobFunctionNotFound",
        "message": f"Cannot import {name}. If it was renamed after this job was enqueued, "
        "keep its old name as well until no job needs it.",
        "traceback": "",
    }


@pytest.mark.parametrize(
    "name",
    [
        "tests.jobs.no_job",
        "tests.jobs.sys",
        "tests.jobs.started",
        "os.system",
        "builtins.exit",
        "sys.exit",
    ],
)
def test_a_callable_that_is_not_a_job_function_is_not_called(name: str) -> None:
    assert failure(run_named(name))["message"] == (
        f"{name} is not decorated with @peasy.job, so the runner will not call it."
    )


@pytest.mark.parametrize(
    "name", ["", ".", "export", ".export", "..", "tests", "no such name", "tests\0.x", "a.\ud800"]
)
def test_a_job_name_that_is_not_a_dotted_path_fails_the_job(name: str) -> None:
    assert failure(run_named(name))["exception"] == "peasy_jobs.exceptions.Failure"


JOB = """
import builtins
builtins.peasy_was_imported = __name__
from peasy_jobs.peasy_jobs import peasy

@peasy.job("export")
def export():
    return "exported"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a package that leaves a mark when it is imported."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "exports.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.peasy_was_imported", None, raising=False)
    yield tmp_path / "shop"
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("shop")]:
        del sys.modules[name]


def test_a_module_outside_the_installed_apps_is_not_imported(shop: Path) -> None:
    assert failure(run_named("shop.exports.export")) == {
        "exception": "peasy_jobs.exceptions.Failure",
        "message": "shop.exports.export is not inside an installed app, "
        "so the runner will not import it.",
        "traceback": "",
    }
    assert builtins.peasy_was_imported is None
    assert not {"shop", "shop.exports"} & set(sys.modules)


def test_a_module_inside_an_installed_app_is_imported(shop: Path, settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
    outcome = run_named("shop.exports.export")
    assert outcome.error is None
    assert builtins.peasy_was_imported == "shop.exports"


def test_a_module_is_not_imported_because_its_name_starts_with_that_of_an_app(
    shop: Path, settings: Any
) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
    shop.with_name("shop2.py").write_text(JOB)
    assert "not inside an installed app" in failure(run_named("shop2.export"))["message"]
    assert builtins.peasy_was_imported is None


def test_a_job_that_runs_twice_at_once_ends_in_both_threads() -> None:
    """It was taken from this runner while that was suspended, and then claimed by it again."""
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(run_named, [f"{__name__}.meet"] * 2))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert current_execution(7) is None


def test_two_simultaneous_runs_of_a_job_are_stopped_separately() -> None:
    with ThreadPoolExecutor(2) as threads:
        runs = [Run(7, claims, f"{__name__}.meet_and_wait", None, None, 1) for claims in (1, 2)]
        request = StopRequest(StopReason.CANCELLED, "It was cancelled.")
        old, new = (threads.submit(execution.run, run, [].append) for run in runs)
        for claims, run in ((1, old), (2, new)):
            assert not run.done()
            wait_until(
                lambda n=claims, r=run: (
                    progress.request_stop(Ticket(7, n), request, interrupt=False) or r.done()
                )
            )
            assert run.result().result == f"J{claims}".encode()


def test_the_time_limit_is_enforced_although_an_earlier_run_was_asked_to_stop() -> None:
    """A request to stop concerns one claim of a job."""
    asked = []

    class Busy:
        job_started = monotonic() - 10

        def __init__(self, claims: int) -> None:
            self.pending = {7: Claim(7, claims, "", "", 1, 0, None, 5)}

        def request_stop(self, claim: Claim, request: StopRequest) -> None:
            asked.append((claim.fencing_token, request.reason))

    StopController(None).enforce([Busy(1), Busy(2)])
    assert asked == [(1, StopReason.TIME_LIMIT), (2, StopReason.TIME_LIMIT)]


def test_a_job_waits_while_another_thread_imports_its_module(shop: Path, settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
    exports = shop / "exports.py"
    exports.write_text("import time\ntime.sleep(0.3)\n" + exports.read_text())
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(run_named, ["shop.exports.export"] * 2))
    assert [outcome.error for outcome in outcomes] == [None, None]


@pytest.mark.parametrize(
    "line", ["import peasy_no_such_library", "1 / 0", "raise SystemExit(3)", "def ("]
)
def test_a_module_that_cannot_be_imported_fails_the_job_with_the_reason(
    shop: Path, settings: Any, line: str
) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
    (shop / "broken.py").write_text(line)
    error = failure(run_named("shop.broken.export"))
    assert "renamed" not in error["message"]
    assert "broken.py" in error["traceback"]


def test_a_row_that_names_a_module_only_imports_it(shop: Path, settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
    assert (
        "is not decorated with @peasy.job" in failure(run_named("shop.exports.builtins"))["message"]
    )


@pytest.mark.parametrize("column", ["args", "kwargs"])
def test_a_forged_payload_fails_the_job_and_is_not_loaded(column: str) -> None:
    forged = payloads.PICKLE + b"x" * 43 + b":" + pickle.dumps(LeavesMark())
    error = failure(run_named("tests.jobs.give_back", **{column: forged}))
    assert error["exception"] == "peasy_jobs.payloads.PayloadRefused"
    assert (
        "were not signed by this site for tests.jobs.give_back, so they were not loaded."
        in error["message"]
    )
    assert error["traceback"] == ""


def test_a_payload_copied_from_another_job_function_fails_the_job() -> None:
    moved = stored((1,), "tests.jobs.nothing", payloads.ARGS)
    error = failure(run_named("tests.jobs.give_back", moved))
    assert error["exception"] == "peasy_jobs.payloads.PayloadRefused"


@pytest.mark.parametrize(
    "data", [b"J", b"J5", b"Jnull", b'J"text"', b'J{"a": 1}', b"\x80\x05N.", b"P"], ids=repr
)
def test_damaged_arguments_fail_the_job_and_are_not_passed_on(data: bytes) -> None:
    assert (
        failure(run_named("tests.jobs.give_back", args=data))["exception"]
        == "peasy_jobs.payloads.PayloadRefused"
    )


@pytest.mark.parametrize("data", [b"J", b"J5", b"Jnull", b'J"text"', b'J[["a", 1]]'], ids=repr)
def test_damaged_keyword_arguments_fail_the_job_and_are_not_passed_on(data: bytes) -> None:
    assert (
        failure(run_named("tests.jobs.give_back", kwargs=data))["exception"]
        == "peasy_jobs.payloads.PayloadRefused"
    )


# Between two jobs


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_a_job_left_open_is_rolled_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = jobs.nothing()
    assert run_named("tests.jobs.open_transaction").error is None
    assert connection.in_atomic_block
    PeasyJobQueue.objects.filter(pk=job.pk).update(title="never")

    reset_context(copy_context())

    assert not connection.in_atomic_block
    job.refresh_from_db()
    assert job.title == "do nothing"
    with transaction.atomic():
        PeasyJobQueue.objects.filter(pk=job.pk).update(title="changed")
    job.refresh_from_db()
    assert job.title == "changed"
    assert "A job left a transaction open on database 'default'. It was rolled back." in caplog.text


@pytest.mark.django_db(transaction=True)
def test_on_commit_callbacks_of_an_open_transaction_never_run() -> None:
    transaction.atomic().__enter__()
    transaction.on_commit(lambda: loaded.append(True))
    reset_context(copy_context())
    with transaction.atomic():
        jobs.nothing()
    assert PeasyJobQueue.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_a_job_began_without_django_is_rolled_back() -> None:
    job = jobs.nothing()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    PeasyJobQueue.objects.filter(pk=job.pk).update(title="never")
    reset_context(copy_context())
    job.refresh_from_db()
    assert job.title == "do nothing"


@pytest.mark.django_db(transaction=True)
def test_autocommit_is_restored_after_a_job_has_turned_it_off() -> None:
    transaction.set_autocommit(False)
    User.objects.create(username="never")
    reset_context(copy_context())
    assert transaction.get_autocommit()
    assert not User.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_a_job_broke_is_replaced() -> None:
    jobs.nothing()
    connection.connection.close()
    with contextlib.suppress(Exception):
        PeasyJobQueue.objects.count()
    reset_context(copy_context())
    assert PeasyJobQueue.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_query_log_of_a_job_is_cleared() -> None:
    connection.force_debug_cursor = True  # as with DEBUG
    try:
        PeasyJobQueue.objects.count()
        assert connection.queries
        reset_context(copy_context())
        assert not connection.queries
    finally:
        connection.force_debug_cursor = False


@pytest.mark.django_db(transaction=True)
def test_language_and_time_zone_activated_by_a_job_are_reset(settings: Any) -> None:
    clean = copy_context()
    for _ in range(2):
        translation.activate("de")
        timezone.activate("Asia/Tokyo")
        clean = reset_context(clean)
        assert translation.get_language() == settings.LANGUAGE_CODE
        assert timezone.get_current_timezone_name() == settings.TIME_ZONE


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "module, value", [(translation, "de"), (timezone, "Asia/Tokyo")], ids=["language", "zone"]
)
def test_language_or_time_zone_alone_is_reset(module: Any, value: str, settings: Any) -> None:
    clean = copy_context()
    module.activate(value)
    reset_context(clean)
    assert translation.get_language() == settings.LANGUAGE_CODE
    assert timezone.get_current_timezone_name() == settings.TIME_ZONE


@pytest.mark.django_db(transaction=True)
def test_values_of_context_variables_are_never_compared_for_equality(settings: Any) -> None:
    kept: ContextVar[Any] = ContextVar("kept", default=None)
    token = kept.set(None)
    clean = copy_context()
    kept.set(mock.MagicMock(__eq__=mock.Mock(side_effect=AssertionError("asked"))))
    translation.activate("de")
    reset_context(clean)
    kept.reset(token)
    assert translation.get_language() == settings.LANGUAGE_CODE


@pytest.mark.django_db(transaction=True)
def test_cache_clients_are_kept_from_one_job_to_the_next() -> None:
    def work() -> None:
        clean = Context()
        for _ in range(3):
            assert run(use_cache).error is None
            translation.activate("de")
            clean = reset_context(clean)

    clients.clear()
    Context().run(work)  # a context without a client
    assert len(clients) == 3
    assert len({id(client) for client in clients}) == 1


def test_a_thread_has_no_current_execution_after_its_job() -> None:
    run(jobs.nothing)
    assert progress._current.get() is None


@pytest.mark.django_db(transaction=True)
def test_an_error_during_cleanup_is_logged_and_not_raised(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("gone")

    monkeypatch.setattr(connection, "close_if_unusable_or_obsolete", refuse)
    reset_context(copy_context())
    assert "Could not clean up after a job." in caplog.text
    assert "OSError: gone" in caplog.text
