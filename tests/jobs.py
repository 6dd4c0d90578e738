"""The jobs of the tests, many of which misbehave.

A runner imports this module by itself, because it is a module `jobs` of an installed app.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from django.utils import timezone, translation

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy

started = time.time()


def note(path: str, line: object) -> None:
    """Append a line to a file: a record of what ran that does not depend on the database."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(path: str | Path) -> list[str]:
    """Return the lines that `note` has written to a file."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@peasy.job("do nothing")
def nothing() -> None:
    pass


@peasy.job("give back")
def give_back(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@peasy.job("return a value")
def echo(value: Any) -> Any:
    return value


@peasy.job("say which language and time zone are in force")
def language_and_zone() -> list[str]:
    return [translation.get_language(), timezone.get_current_timezone_name()]


@peasy.job("sign in")
def sign_in(login: str, password: str, *others: Any) -> None:
    pass


@peasy.job("note")
def write_note(path: str, line: str = "ran") -> None:
    note(path, line)


@peasy.job("know oneself")
def own_pk(job_pk: int) -> int:
    return job_pk


@peasy.job("raise")
def boom(message: str = "boom") -> None:
    raise ValueError(message)


@peasy.job("leave")
def leave(code: int = 3) -> None:
    sys.exit(code)


@peasy.job("die")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@peasy.job("die once")
def die_once(path: str) -> str:
    note(path, "started")
    if len(notes(path)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@peasy.job("return a generator")
def generator() -> Iterator[int]:
    return (number for number in range(3))


@peasy.job("return a lot")
def lots(size: int) -> str:
    return "x" * size


@peasy.job("wait for a file")
def wait_for(path: str, record: str | None = None) -> str:
    """Run until `path` exists."""
    if record:
        note(record, f"started {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.01)
    if record:
        note(record, "ended")
    return "waited"


@peasy.job("show progress and wait")
def progress_then_wait(path: str, job_pk: int) -> None:
    peasy.update_status(job_pk, status_msg="half way", extra={"progress": 50})
    while not Path(path).exists():
        time.sleep(0.01)


@peasy.job("show progress inside a transaction")
def progress_in_transaction(path: str, job_pk: int) -> None:
    with transaction.atomic():
        peasy.update_status(job_pk, status_msg="inside", extra={"progress": 10})
        while not Path(path).exists():
            time.sleep(0.01)


@peasy.job("track rows")
def track_rows(count: int, job_pk: int) -> int:
    return sum(peasy.track(job_pk, range(count), "Importing rows"))


@peasy.job("show progress from a thread")
def progress_from_thread(job_pk: int) -> None:
    thread = threading.Thread(
        target=peasy.update_status, args=[job_pk, "from a thread", {"progress": 30}]
    )
    thread.start()
    thread.join()


@peasy.job("show progress from a fork")
def progress_from_fork(job_pk: int) -> None:
    from django.db import connections

    connections.close_all()
    pid = os.fork()
    if pid == 0:
        try:
            peasy.update_status(job_pk, "from a fork", {"progress": 40})
            connections.close_all()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@peasy.job("show progress of another")
def progress_of(other: int) -> None:
    peasy.update_status(other, "from afar", {"progress": 60})


@peasy.job("leave a transaction open")
def open_transaction() -> None:
    transaction.atomic().__enter__()
    PeasyJobQueue.objects.filter(pk=-1).update(title="never")


@peasy.job("write down the order")
def in_order(path: str, name: str) -> None:
    note(path, name)


@peasy.job("an async job")
async def asynchronous(value: int) -> int:
    return value + 1


def no_job() -> None:
    raise AssertionError("a function that is no job was called")


@peasy.job("print")
def print_line(text: str) -> None:
    print(text)


@peasy.job("die in one of several ways")
def die_by(how: str, record: str) -> None:
    note(record, f"started {os.getpid()}")
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "os._exit":
        os._exit(7)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@peasy.job("hold the interpreter lock")
def hold_gil(record: str) -> int:
    """Call C code that does not let any other thread of this process run for an hour."""
    note(record, f"started {os.getpid()}")
    return sum(range(10**12))


@peasy.job("enqueue others")
def enqueue_notes(record: str, count: int) -> None:
    for number in range(count):
        write_note(record, f"child {number}")


@peasy.job("wait in each run for a file of its own")
def wait_in_run(directory: str) -> str:
    """Wait for the file `1` in `directory` in the first run, for `2` in the second, and so on."""
    record = Path(directory, "record")
    note(str(record), f"started {os.getpid()}")
    run = len(notes(record))
    while not Path(directory, str(run)).exists():
        time.sleep(0.01)
    return f"run {run}"


@peasy.job("last words")
def last_words(path: str, record: str, job_pk: int) -> str:
    note(record, f"started {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.01)
    peasy.update_status(job_pk, "last words", {"progress": 99})
    return "said"


@peasy.job("start a program and wait for a file")
def program_and_wait(path: str, record: str) -> str:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
        note(record, f"{os.getpid()} {program.pid}")
        while not Path(path).exists():
            time.sleep(0.01)
        program.kill()
    return "waited"


@peasy.job("signal the runner and wait")
def signal_runner(pid: int, path: str, record: str) -> None:
    note(record, f"started {os.getpid()}")
    os.kill(pid, signal.SIGTERM)
    while not Path(path).exists():
        time.sleep(0.01)


@peasy.job("write inside a transaction that stays open")
def leave_write_open(pk: int) -> None:
    transaction.atomic().__enter__()
    PeasyJobQueue.objects.filter(pk=pk).update(title="never committed")


@peasy.job("leave a process behind and die")
def die_with_daemon(path: str, record: str) -> None:
    """Fork a process that keeps the worker's files open in a new session until `path` exists."""
    if os.fork() == 0:
        os.setsid()
        note(record, f"daemon {os.getpid()}")
        while not Path(path).exists():
            time.sleep(0.01)
        os._exit(0)
    while not notes(record):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@peasy.job("fork, and return in both")
def return_twice(record: str) -> str:
    pid = os.fork()
    if pid == 0:
        note(record, "child")
        sys.exit("the child")
    os.waitpid(pid, 0)
    note(record, "parent")
    return "the parent"


@peasy.job("use multiprocessing")
def use_multiprocessing(method: str, path: str) -> list[int | None]:
    """Return two exit codes: of a child that ended by itself, and of one that was terminated."""
    context = multiprocessing.get_context(method)
    worker = context.Process(target=Path(path).touch)
    sleeper = context.Process(target=time.sleep, args=[600])
    worker.start()
    sleeper.start()
    worker.join()
    sleeper.terminate()
    sleeper.join()
    return [worker.exitcode, sleeper.exitcode]


@peasy.job("end a program")
def end_program(signum: int) -> int:
    with subprocess.Popen(["sleep", "600"]) as program:
        program.send_signal(signum)
    return program.returncode


@peasy.job("kill the runner, once")
def kill_runner(pid: int, record: str) -> None:
    note(record, f"started {os.getpid()}")
    if len(notes(record)) == 1:
        os.kill(pid, signal.SIGKILL)
        time.sleep(600)


# Jobs that fail and are retried


def _time() -> float:
    return time.time()


@peasy.job("fail some times", retries=3, backoff=[0, 0.5, 1])
def fail_times(record: str, times: int) -> str:
    note(record, f"started {_time()}")
    if len(notes(record)) <= times:
        raise ValueError(f"failure {len(notes(record))}")
    return "at last"


@peasy.job("fail always, with a callable backoff", retries=2, backoff=lambda failures: failures / 2)
def fail_with_callable(record: str) -> None:
    note(record, f"started {_time()}")
    raise ValueError("again")


@peasy.job("fail with a backoff that fails", retries=1, backoff=lambda failures: 1 / 0)
def fail_with_bad_backoff(record: str) -> None:
    note(record, "started")
    raise ValueError("again")


@peasy.job("fail and wait as long as it is by default", retries=1)
def fail_with_default(record: str) -> None:
    note(record, "started")
    raise ValueError("again")


@peasy.job("fail thirty times", retries=29, backoff=[0])
def fail_thirty_times() -> None:
    raise ValueError("again")


@peasy.job("retry on some", retries=5, backoff=[0], retry_on=(ConnectionError, TimeoutError))
def retry_on_some(record: str) -> None:
    """Raise an exception of `retry_on` twice, then another one."""
    note(record, "started")
    if len(notes(record)) <= 2:
        raise ConnectionRefusedError("busy")
    raise ValueError("broken")


@peasy.job("come back")
def come_back(record: str, after: float, times: int) -> str:
    note(record, f"started {_time()}")
    if len(notes(record)) <= times:
        raise peasy.Retry(after=after)
    return "here again"


@peasy.job("give up", retries=5, backoff=[0])
def give_up(record: str) -> None:
    note(record, "started")
    raise peasy.Fail("there is no such customer")


@peasy.job("call oneself off", retries=5, backoff=[0])
def call_off(record: str) -> None:
    note(record, "started")
    raise peasy.Cancel


@peasy.job("return what cannot be stored", retries=5, backoff=[0])
def unstorable(record: str) -> object:
    note(record, "started")
    return (number for number in range(3))


# Jobs that are stopped


def _wait(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


@peasy.job("clean up when stopped")
def clean_up(path: str, record: str) -> str:
    note(record, f"started {os.getpid()}")
    try:
        _wait(path)
    except peasy.Stop as stop:
        note(record, f"cleaned up: {stop}")
        raise
    return "waited"


@peasy.job("clean up when over the limit", timeout=0.5)
def limited(path: str, record: str) -> str:
    return clean_up.call(path, record)


@peasy.job("ignore the request", timeout=0.5)
def stubborn(path: str, record: str) -> None:
    """Start a program, and ignore every request to stop."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
        note(record, f"started {os.getpid()} {program.pid}")
        _wait_whatever_is_said(path, record)


@peasy.job("catch everything that is an error", timeout=0.5)
def catch_errors(record: str) -> None:
    note(record, f"started {os.getpid()}")
    while True:
        try:
            time.sleep(0.01)
            raise ValueError
        except Exception:  # noqa: S112
            continue


@peasy.job("over the limit, with retries", timeout=0.5, retries=1, backoff=[0])
def limited_with_retry(record: str) -> str:
    note(record, f"started {os.getpid()}")
    if len(notes(record)) == 1:
        time.sleep(600)
    return "second"


@peasy.job("ignore the request, with retries", timeout=0.5, retries=1, backoff=[0])
def stubborn_with_retry(record: str) -> str:
    again = notes(record)
    note(record, f"started {os.getpid()}")
    if not again:
        _wait_whatever_is_said(f"{record}-never", record)
    return "second"


def _wait_whatever_is_said(path: str, record: str) -> None:
    # Everything is inside `try`: the request may arrive between any two lines.
    while True:
        try:
            return _wait(path)
        except BaseException:
            note(record, "refused")


@peasy.job("a slow thread", timeout=0.5)
def slow_thread(path: str, record: str) -> str:
    note(record, "started")
    _wait(path)
    note(record, "ended")
    return "waited"


@peasy.job("a slow thread, with retries", timeout=0.5, retries=1, backoff=[0])
def slow_thread_with_retry(directory: str, record: str) -> str:
    """Wait for the file `go` in the first run, but not in the second."""
    note(record, "started")
    if notes(record).count("started") == 1:
        _wait(f"{directory}/go")
    note(record, "ended")
    return "waited"


@peasy.job("return what was asked")
def ask_whether_cancelled(record: str, job_pk: int) -> str:
    note(record, "started")
    while not peasy.cancelled(job_pk):
        time.sleep(0.01)
    note(record, "noticed")
    return "noticed"


@peasy.job("track for ever")
def track_for_ever(record: str, job_pk: int) -> None:
    note(record, "started")
    try:
        for _ in peasy.track(job_pk, iter(int, 1), "Counting"):
            time.sleep(0.01)
    except peasy.Stop as stop:
        note(record, f"noticed: {stop}")
        raise


@peasy.job("show progress for ever")
def report_for_ever(record: str, job_pk: int) -> None:
    note(record, "started")
    try:
        while True:
            peasy.update_status(job_pk, status_msg="still here")
            time.sleep(0.01)
    except peasy.Stop as stop:
        note(record, f"noticed: {stop}")
        raise


@peasy.job("short work")
def short_work(record: str, number: int) -> int:
    note(record, f"{number} {os.getpid()}")
    time.sleep(0.01)
    return number


# Jobs that hold locks in the database


@peasy.job("hold the write lock")
def hold_write_lock(path: str, record: str) -> str:
    with transaction.atomic():
        PeasyJobQueue.objects.filter(pk=-1).update(title="never")
        note(record, f"started {os.getpid()}")
        _wait(path)
    note(record, "ended")
    return "committed"


@peasy.job("start and end")
def start_and_end(record: str, number: int, seconds: float = 0.02) -> int:
    note(record, f"started {number}")
    time.sleep(seconds)
    note(record, f"ended {number}")
    return number


@peasy.job("cancel those that wait behind")
def cancel_others(record: str, job_pk: int) -> None:
    """Cancel the jobs whose primary keys are in `extra`, and wait until no runner has them."""
    pks = PeasyJobQueue.objects.values_list("extra", flat=True).get(pk=job_pk)
    note(record, f"cancelled {[peasy.cancel(pk) for pk in pks]}")
    while PeasyJobQueue.objects.filter(pk__in=pks, runner__isnull=False).exists():
        time.sleep(0.01)


@peasy.job("die, fail twice, end", retries=2, backoff=[0], crash_retries=1)
def fail_and_die(record: str) -> str:
    what = ["dies", "fails", "fails", "ends"][len(notes(record))]
    note(record, what)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fails":
        raise ValueError(what)
    return "done"


@peasy.job("hold one's own row")
def hold_own_row(path: str, record: str, job_pk: int) -> str:
    """Wait inside a transaction that has written to the row of this job."""
    with transaction.atomic():
        PeasyJobQueue.objects.filter(pk=job_pk).update(title="held")
        note(record, "started")
        _wait(path)
    note(record, "ended")
    return "let go"


# Jobs that damage their worker process


class Unflushable:
    """A stream that some library has put in place of standard output, and that is broken."""

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        raise RuntimeError("it is broken")


@peasy.job("leave a broken sys.stdout")
def break_stdout(how: str, record: str) -> int:
    note(record, "ran")
    if how == "closed":
        sys.stdout.close()
    else:
        sys.stdout = {"None": None, "unflushable": Unflushable()}[how]
    return os.getpid()


@peasy.job("close what was open")
def close_descriptors(record: str, returns: bool) -> None:
    note(record, f"started {os.getpid()}")
    os.closerange(3, 1 << 16)
    if not returns:
        time.sleep(600)


@peasy.job("leave the process group")
def leave_group(how: str, record: str) -> None:
    """Leave the process group, and ignore every request to stop."""
    os.setpgid(0, os.getpgid(os.getppid()))
    if how == "setsid":
        os.setsid()
    note(record, f"started {os.getpid()}")
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


# Jobs that return facts about their process


@peasy.job("tell the flags of the interpreter")
def interpreter_flags() -> list[int]:
    return [sys.flags.optimize, sys.flags.utf8_mode]


@peasy.job("tell the session of PostgreSQL")
def database_session(record: str, count: int) -> int:
    """Return when `count` of these jobs have a session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        session = int(cursor.fetchone()[0])
        note(record, session)
        while len(notes(record)) < count:
            time.sleep(0.01)
    return session


# Jobs that change the state of their process


@peasy.job("take over the signals")
def seize_signals(how: str) -> int:
    """Leave handlers, blocked signals or a running timer to the next job of this process."""
    if how == "handlers":
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: os._exit(9))
    elif how == "ignored":
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
    elif how == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    else:
        signal.alarm(600)
    return os.getpid()


@peasy.job("what is left of the alarm")
def alarm_left() -> list[float]:
    return [os.getpid(), *signal.getitimer(signal.ITIMER_REAL)]


@peasy.job("clean up when stopped, later")
async def clean_up_later(path: str, record: str) -> str:
    note(record, f"started {os.getpid()}")
    try:
        while not Path(path).exists():
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note(record, "cancelled")
        raise
    finally:
        await asyncio.sleep(0.1)
        note(record, "cleaned up")
    return "waited"


@peasy.job("async, over the limit", timeout=0.5)
async def limited_later(path: str, record: str) -> str:
    return await clean_up_later.call(path, record)
